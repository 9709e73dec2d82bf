"""What MLflow says of papers and arms: verdicts, commands, means, within the lengths that it takes."""

import json
from dataclasses import replace

import pytest

from lightning_modules.files import ROOT
from lightning_modules.metrics import claims
from stages import arms
from stages.plan import Row, load_plan
from tests.conftest import STEMS as PAPERS

PLAN = load_plan("tiny")
STEMS = [stem for stem in PAPERS if (ROOT / f"results/tiny/{stem}/claims.json").is_file()]


def read(stem):
    facts = claims.load_facts(ROOT / f"lightning_modules/{stem}/facts.yaml")
    return facts, json.loads((ROOT / f"results/tiny/{stem}/claims.json").read_text())


@pytest.mark.parametrize("stem", STEMS)
def test_a_paper_is_described_with_every_judged_claim_and_the_command(stem):
    facts, ledger = read(stem)
    text = arms.experiment_text("tiny", facts, ledger)
    assert len(text) <= arms.LONGEST["experiment"] and f"`make repro PAPER={stem}`" in text
    for row in ledger:
        if row["verdict"] != "not testable":
            (line,) = [line for line in text.splitlines() if line.startswith(f"| {row['id']} |")]
            assert f"| {row['verdict']} | {row['difference']:.4g} |" in line
    assert text.startswith(f"{stem} (tiny): {sum(row['verdict'] == 'shown' for row in ledger)} shown, ")
    assert "make repro PAPER=" + stem + " PRESET=paper" in arms.experiment_text("paper", facts, [])


@pytest.mark.parametrize("stem", STEMS)
def test_each_arm_is_described_by_its_stages_and_fits(stem):
    _, ledger = read(stem)
    for stage in ("pretrain", "finetune", "evaluate", "sweep"):
        for row in (row for row in getattr(PLAN, stage).values() if row.paper == stem):
            text = arms.arm_text(PLAN, stem, f"sweep-{row.arm}" if stage == "sweep" else row.arm, ledger)
            named = "pretrain_from" if stage == "pretrain" and row.start else stage
            assert f"dvc repro plans/tiny/{stem}/dvc.yaml:{named}@{row.arm}\n" in text
            assert len(text) <= arms.LONGEST["arm"]


def test_a_trained_arm_has_the_claims_that_name_its_metrics():
    _, ledger = read("maskalign")
    told = arms.arm_text(PLAN, "maskalign", "maskalign-mae", ledger)
    assert "| M2-against_mae |" in told and "| M5-attentive |" not in told
    assert "| M2-against_mae |" in arms.arm_text(PLAN, "maskalign", "maskalign-world-mae", ledger)
    assert "| claim |" not in arms.arm_text(PLAN, "maskalign", "maskalign-teacher", ledger)


def test_a_table_that_is_too_long_loses_statements_then_what_cannot_be_tested():
    _, ledger = read("committees")
    whole = arms.table(ledger, 100_000, "committees")
    assert ledger[0]["statement"].replace("|", "/") in whole
    short = arms.table(ledger, len(whole) - 1, "committees")
    assert ledger[0]["statement"] not in short and all(f"| {row['id']} |" in short for row in ledger)
    judged = arms.table(ledger, len(short) - 1, "committees")
    assert "Claims that cannot be tested at this size are left out." in judged and len(judged) < len(short)
    assert "`results/tiny/committees/claims.json`" in arms.table(ledger, 100, "committees")


def test_an_arm_says_what_it_trains_and_what_it_changes():
    overrides = {"model": {"rank": 8}, "data.batch_size": 4}
    row = Row("vlora-few", "vlora", "vlora", overrides, dataset="told", start="language")
    assert arms.recipe(row) == {
        "system": "vlora", "dataset": "told", "from": "language", "overrides": "model.rank=8, data.batch_size=4",
    }  # fmt: skip
    assert arms.recipe(replace(row, overrides={}))["overrides"] == "none"


def test_an_arm_has_the_mean_and_the_interval_of_each_metric():
    by_seed = {0: {"a": 1.0, "b": 1.0}, 1: {"a": 3.0, "b": float("nan")}}
    found = arms.summarised(by_seed)
    low, high = claims.confidence_interval([1.0, 3.0])[1:3]
    assert found == {"a": 2.0, "a.low": low, "a.high": high, "seeds": 2.0}
    assert arms.summarised({0: {"a": 1.0}}) == {"a": 1.0, "seeds": 1.0}


def test_an_own_idea_is_described_as_one():
    claim = claims.OwnClaim(
        id="mine", statement="Mine is better.", direction="higher", compare="difference", margin=0.0, unit="points",
        value=claims.Operand(arm="mine", metric="a"), reference=claims.Operand(arm="theirs", metric="a"),
        presets=["tiny"], min_seeds=2,
    )  # fmt: skip
    idea = claims.Idea(stem="mine", against="maskalign", title="Mine", idea="It is.", claims=[claim])
    results = {"mine": {0: {"a": 2.0}, 1: {"a": 2.1}}, "theirs": {0: {"a": 1.0}, 1: {"a": 1.1}}}
    text = arms.experiment_text("tiny", idea, claims.ledger([idea], results, "tiny"))
    assert (
        text.startswith("mine (tiny): 1 shown, 0 refuted") and "Mine. Own idea, held against maskalign. It is." in text
    )
