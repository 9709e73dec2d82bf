"""Check the plan of a preset with every configuration and claim in it, and what is compared: `make check-plan`."""

from lightning_modules.files import ROOT
from stages.command import run_stage, stage_arguments
from stages.composing import check, check_claims
from stages.page import comparing
from stages.plan import PRESETS, load_plan


def main() -> None:
    """Raise an error for the first problem found."""
    plan = load_plan(stage_arguments().preset)
    check(plan)
    check_claims(plan)
    comparing.check(ROOT / comparing.FILE, [arm for preset in PRESETS for arm in load_plan(preset).evaluate])


if __name__ == "__main__":
    run_stage(main)
