"""The facts files of all papers: valid, and naming only arms of the plans of this repository."""

from pathlib import Path

import pytest

from lightning_modules.metrics.claims import check_plan, load_facts
from stages.plan import load_plan

ROOT = Path(__file__).parents[1]
FACTS = sorted(ROOT.glob("lightning_modules/*/facts.yaml"))


@pytest.mark.parametrize("plan", ["tiny", "paper"])
@pytest.mark.parametrize("path", FACTS, ids=lambda path: path.parent.name)
def test_facts_are_valid_and_name_arms_of_the_plan(path, plan):
    plan = load_plan(plan)
    check_plan(load_facts(path), plan.evaluate, plan.preset)
