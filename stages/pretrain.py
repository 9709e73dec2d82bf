"""Train every seed of one arm: conf/system + data/datasets -> data/runs/<preset>/<arm>/pretrain/seed-<seed>/.

With `--seed N`, train only this seed into the seed store (`lightning_modules/seed_store.py`), and write no output of
the stage. A later call without `--seed` takes it from the store.
"""

from lightning_modules.files import ROOT
from stages.arms import record_training
from stages.command import run_stage, stage_arguments
from stages.composing import compose, trainer_name
from stages.plan import load_plan


def main() -> None:
    """Compose the configuration, then call `training.train_arm`."""
    arguments = stage_arguments("arm", "--seed")
    plan = load_plan(arguments.preset)
    row = plan.row("pretrain", arguments.arm)
    config = compose(
        plan.preset, system=row.system, dataset=row.dataset, trainer=trainer_name(), overrides=row.overrides
    )

    from lightning_modules import training  # imports torch and Lightning: only after the plan was checked

    runs = ROOT / "data/runs" / plan.preset
    out = runs / row.arm / "pretrain"
    training.train_arm(
        config,
        stage="pretrain",
        arm=row.arm,
        paper=row.paper,
        system=row.system,
        preset=plan.preset,
        seeds=plan.seeds_of(row),
        only=arguments.seed,
        dataset=ROOT / "data/datasets" / row.dataset / plan.preset,
        sources=ROOT / "data/sources" / plan.preset / f"pretrain.{row.system}.json",
        start=runs / row.start / "pretrain" if row.start else None,
        out=out,
    )
    if arguments.seed is None:
        record_training(plan, row, out)


if __name__ == "__main__":
    run_stage(main)
