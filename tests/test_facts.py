"""The facts files of all papers: valid, and naming only arms of the plans of this repository."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from lightning_modules.metrics.claims import check_plan, load_facts
from stages.plan import load_plan

ROOT = Path(__file__).parents[1]
FACTS = sorted(ROOT.glob("lightning_modules/*/facts.yaml"))


PLANNED = [(stem, plan) for stem in (path.parent.name for path in FACTS) for plan in ("tiny", "paper")]
PLANNED = [(stem, plan) for stem, plan in PLANNED if (ROOT / f"plans/{plan}/{stem}").is_dir()]


@pytest.mark.parametrize(("stem", "plan"), PLANNED)
def test_facts_are_valid_and_name_arms_of_the_plan(stem, plan):
    plan = load_plan(plan)
    check_plan(load_facts(ROOT / "lightning_modules" / stem / "facts.yaml"), plan.evaluate, plan.preset)


def test_what_was_decided_with_test_numbers_in_view_is_marked_post_hoc():
    """CHANGES.md names the claims that such a decision touches, as `stem/id`, stars allowed."""
    text = (ROOT / "CHANGES.md").read_text(encoding="utf-8")
    section = text.partition("### Decided with test numbers in view")[2].partition("\n### ")[0]
    patterns = re.findall(r"`(\w+/[^`\s]+)`", section)
    assert patterns
    claims = {f"{facts.stem}/{claim.id}": claim for facts in map(load_facts, FACTS) for claim in facts.claims}
    for pattern in patterns:
        named = {name: claim for name, claim in claims.items() if fnmatchcase(name, pattern)}
        assert named, f"{pattern} names no claim"
        assert not [name for name, claim in named.items() if not claim.post_hoc], f"{pattern}: post_hoc is not set"
