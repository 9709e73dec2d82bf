"""Fine-tune and probe the encoder of one pre-trained arm, for every seed.

data/runs/<preset>/<from>/pretrain + data/datasets -> data/runs/<preset>/<system>-<dataset>/finetune/<from>/<protocol>/.
With `--seed N`, train only this seed, with every protocol, into the seed store, and write no output of the stage.
"""

from lightning_modules.files import ROOT
from stages.command import run_stage, stage_arguments
from stages.composing import compose, trainer_name
from stages.plan import load_plan
from stages.training import train


def main() -> None:
    """Compose the configuration, then train with every protocol."""
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
    out, configs = ROOT / "data/runs" / plan.preset / row.comparison / "finetune" / row.start, {}
    for protocol, recipe in config["system"]["downstream"].items():
        system = {"model": recipe.pop("model"), "data": recipe.pop("data"), protocol: recipe}
        configs[protocol] = {"system": system, "trainer": config["trainer"]}
    folders = {protocol: out / protocol for protocol in configs}
    train(plan, row, configs, stage="finetune", out=out, folders=folders, only=arguments.seed)


if __name__ == "__main__":
    run_stage(main)
