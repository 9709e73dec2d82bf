"""Check the plan of a preset, with every configuration and every claim that it needs: what `make check-plan` runs."""

from stages.command import run_stage, stage_arguments
from stages.composing import check, check_claims
from stages.plan import load_plan


def main() -> None:
    """Raise the first thing that does not hold."""
    plan = load_plan(stage_arguments().preset)
    check(plan)
    check_claims(plan)


if __name__ == "__main__":
    run_stage(main)
