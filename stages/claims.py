"""Judge the claims of one paper: data/results/<preset>/<paper>/ -> results/<preset>/<paper>/{claims,metrics}.json.

Both files are committed, so that one can read the verdicts without running anything, and `git diff` shows what changed.
"""

from pathlib import Path

from lightning_modules.files import ROOT, write_json
from stages.arms import describe
from stages.command import run_stage, stage_arguments
from stages.page import Paper
from stages.plan import Plan, load_plan
from stages.report import read_paper, unavailable_data


def judge(plan: Plan, stem: str, root: Path) -> Paper:
    """Write the claims of a paper with their verdicts, and the metrics of each arm over seeds; gives the paper."""
    paper = read_paper(plan, stem, root, unavailable_data(plan))
    out = root / "results" / plan.preset / stem
    write_json(out / "claims.json", paper.rows)
    write_json(out / "metrics.json", {arm.name: arm.metrics for arm in paper.arms + paper.sweeps if not arm.missing})
    return paper


def main() -> None:
    """Judge the paper named on the command line."""
    arguments = stage_arguments("paper")
    plan = load_plan(arguments.preset)
    paper = judge(plan, arguments.paper, ROOT)
    describe(plan, paper.facts, paper.rows)


if __name__ == "__main__":
    run_stage(main)
