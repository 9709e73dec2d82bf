"""Check the plan of a preset, with every configuration and every claim in it: `make check-plan`."""

from stages.command import run_stage, stage_arguments
from stages.composing import check, check_claims
from stages.plan import load_plan


def main() -> None:
    """Raise an error for the first problem found."""
    plan = load_plan(stage_arguments().preset)
    check(plan)
    check_claims(plan)


if __name__ == "__main__":
    run_stage(main)
