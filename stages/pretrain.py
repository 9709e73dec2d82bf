"""Train every seed of one arm: conf/system + data/datasets -> data/runs/<preset>/<arm>/pretrain/seed-<seed>/.

With `--seed N`, train only this seed into the seed store (`lightning_modules/seed_store.py`), and write no output of
the stage. A later call without `--seed` takes it from the store.
"""

from lightning_modules.files import ROOT
from stages.command import run_stage, stage_arguments
from stages.composing import compose, trainer_name
from stages.plan import load_plan
from stages.training import train


def main() -> None:
    """Compose the configuration, then train."""
    arguments = stage_arguments("arm", "--seed")
    plan = load_plan(arguments.preset)
    row = plan.row("pretrain", arguments.arm)
    config = compose(
        plan.preset, system=row.system, dataset=row.dataset, trainer=trainer_name(), overrides=row.overrides
    )
    out = ROOT / "data/runs" / plan.preset / row.arm / "pretrain"
    train(plan, row, {"pretrain": config}, stage="pretrain", out=out, folders={"pretrain": out}, only=arguments.seed)


if __name__ == "__main__":
    run_stage(main)
