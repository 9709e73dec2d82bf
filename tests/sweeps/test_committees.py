"""Committees of any trained classifiers: as a row of `evaluate`, and by `make sweep`."""

import json

import numpy as np
import pytest

from lightning_modules.ensembling import stored
from lightning_modules.sweeps import committees
from stages import study
from stages.composing import compose
from stages.plan import PlanError, load_plan
from tests.ensembling.test_stored import CLASSES, make_run

SETTINGS = {"largest": 3, "longest": 2, "edges": {"3": 4}, "margin": 1.0, "trials": 18, "batch": 6, "seed": 0}


def answered(seed, arm, rows=60):
    rng, own = np.random.default_rng(seed), np.random.default_rng([seed, arm])
    labels = rng.integers(0, CLASSES, rows)
    logits = np.eye(CLASSES)[labels] * 2 + own.normal(0, 1.5, (rows, CLASSES))
    return {"labels/test": labels, "logits/test": logits.astype(np.float32)}


def test_equal_members_are_compared_at_multiples_of_their_cost_and_the_same_twice(tmp_path):
    runs = [make_run(tmp_path, f"arm{arm}", seed, arrays=answered(seed, arm)) for arm in range(3) for seed in (0, 1)]
    found = committees.evaluate(runs, "d", macs=10, **SETTINGS)
    for rung, budget in (("2_members", 20), ("3_members", 30)):
        for own in found.metrics.values():
            assert own[f"d/sweep_single/macs_per_sample@{rung}"] == 10
            assert own[f"d/sweep_ensemble/macs_per_sample@{rung}"] <= budget
    study = json.loads(found.files["study.json"])
    assert study["statement"].endswith(stored.HALVES) and found.figures[0].caption.endswith(stored.HALVES)
    assert "training_macs" not in json.loads(found.files["pareto.json"])["single"][0]
    assert committees.evaluate(runs, "d", macs=10, **SETTINGS) == found


def test_make_sweep_takes_rows_of_evaluate_and_says_what_it_cannot_take():
    plan = load_plan("tiny")
    rows = study.rows_of(plan, "movinet-half  movinet-causal", "cached")
    assert [row.runs for row in rows] == ["movinet-half", "movinet-causal"]
    assert study.rows_of(plan, "committees-digits", "cached") == [plan.sweep["committees-digits"]]
    with pytest.raises(PlanError, match="no arm 'movinet-hlaf' in `sweep` or `evaluate`; did you mean 'movinet-half"):
        study.rows_of(plan, "movinet-hlaf", "cached")
    with pytest.raises(ValueError, match="a committee has one data set"):
        study.rows_of(plan, "movinet-half maskalign-mnist", "cached")
    with pytest.raises(ValueError, match="expected one, which the trials train"):
        study.rows_of(plan, "movinet movinet-half", "training")


@pytest.mark.parametrize("name", ["largest", "longest", "edges", "margin", "trials", "batch", "seed"])
def test_a_committee_of_the_pipeline_is_searched_as_make_sweep_searches(name):
    cached = compose("tiny", sweep="cached")["sweep"]
    mine = compose("tiny", system="classifier_committees")["system"]["evaluate"]
    assert mine[name] == {**cached["search"], **cached}[name]
