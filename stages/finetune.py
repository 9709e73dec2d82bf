"""Fine-tune and probe the encoder of one pre-trained arm, for every seed.

data/runs/<preset>/<from>/pretrain + data/datasets -> data/runs/<preset>/<system>-<dataset>/finetune/<from>/<protocol>/.
With `--seed N`, train only this seed, with every protocol, into the seed store, and write no output of the stage.
"""

from lightning_modules.files import ROOT
from stages.arms import record_training
from stages.command import run_stage, stage_arguments
from stages.composing import compose, trainer_name
from stages.plan import load_plan


def main() -> None:
    """Compose the configuration, then call `training.train_stages` with every protocol."""
    arguments = stage_arguments("arm", "--seed")
    plan = load_plan(arguments.preset)
    row = plan.row("finetune", arguments.arm)
    config = compose(
        plan.preset,
        system=row.system,
        dataset=row.dataset,
        trainer=trainer_name(),
        overrides=row.overrides,
        stage="finetune",
    )

    from lightning_modules import training  # imports torch and Lightning: only after the plan was checked

    runs = ROOT / "data/runs" / plan.preset
    out, configs = runs / row.comparison / "finetune" / row.start, {}
    for protocol, recipe in config["system"]["downstream"].items():
        system = {"model": recipe.pop("model"), "data": recipe.pop("data"), protocol: recipe}
        configs[protocol] = {"system": system, "trainer": config["trainer"]}
    training.train_stages(
        configs,
        arm=row.arm,
        paper=row.paper,
        system=row.system,
        preset=plan.preset,
        seeds=plan.seeds_of(row),
        only=arguments.seed,
        dataset=ROOT / "data/datasets" / row.dataset / plan.preset,
        sources=ROOT / "data/sources" / plan.preset / f"finetune.{row.system}.json",
        start=runs / row.start / "pretrain",
        out=out,
        folders={protocol: out / protocol for protocol in configs},
    )
    if arguments.seed is None:
        for protocol in configs:
            record_training(plan, row, out / protocol)


if __name__ == "__main__":
    run_stage(main)
