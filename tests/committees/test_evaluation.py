import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load

from lightning_modules.committees import evaluation as committees
from lightning_modules.committees.network import Committee
from lightning_modules.ensembling import pools
from lightning_modules.ensembling.cascades import Cascade, run_cascade
from lightning_modules.files import sha256
from tests.reference.pools import rewrite_predictions, write_run

CHOICES = {"pair": ["mlp-h8", "mlp-h32"], "export": "mlp-h16", "edges": {3: 12, 4: 6}}


def study_of(run, **changes):
    choices = {
        "longest": 3,
        "order": "cheap_first",
        "edges": {3: 12, 4: 6},
        "confidence": "max_probability",
        "average": "logits",
        "output": "running",
        "temperature": False,
        "margin": 1.0,
        "cap": 1.0,
    }
    return committees.Study(pools.read_pool(run), **{**choices, **changes})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    return [write_run(folder / str(seed), seed=seed, extra_resolution=True) for seed in (0, 1)]


@pytest.fixture(scope="module")
def evaluation(runs):
    return committees.evaluate(runs, "made_up", **CHOICES)


def test_every_claim_of_the_tiny_arms_finds_its_metrics(evaluation):
    facts = yaml.safe_load(Path(committees.__file__).with_name("facts.yaml").read_text())
    names = {name.removeprefix("made_up/") for name in evaluation.metrics[0]}
    for claim in facts["claims"]:
        if "tiny" in claim["presets"]:
            for side in (claim["value"], claim["reference"]):
                if isinstance(side, dict):
                    assert side["metric"].split("/", 1)[1] in names, claim["id"]


def test_everything_is_finite_and_the_same_again(runs, evaluation):
    again = committees.evaluate(runs, "made_up", **CHOICES)
    assert again.metrics == evaluation.metrics and again.files == evaluation.files
    assert [asdict(f) for f in again.figures] == [asdict(f) for f in evaluation.figures]
    assert set(evaluation.metrics) == {0, 1}
    for metrics in evaluation.metrics.values():
        assert all(math.isfinite(value) for value in metrics.values())
    json.dumps([asdict(f) for f in evaluation.figures], allow_nan=False)


def test_what_is_chosen_does_not_depend_on_the_test_labels(tmp_path):
    def shuffle(predictions):
        np.random.default_rng(1).shuffle(predictions["labels/test"])

    run = write_run(tmp_path / "a")
    other = rewrite_predictions(write_run(tmp_path / "b"), shuffle)
    first, second = study_of(run), study_of(other)
    for name in first.rungs:
        for rotation in range(2):
            assert first.within(name, rotation) == second.within(name, rotation)
    one, two = (committees.evaluate([r], "made_up", **CHOICES) for r in (run, other))
    for key in ("members", "thresholds", "temperatures", "val"):
        assert json.loads(one.files["committee.json"])[key] == json.loads(two.files["committee.json"])[key]
    for key, value in one.metrics[0].items():
        if "macs" in key.split("/")[-1] or "models" in key:  # costs follow from the choice and the inputs alone
            assert two.metrics[0][key] == value, key


def test_a_chosen_cascade_keeps_its_budget_and_cap_on_validation_data(runs):
    study = study_of(runs[0])
    for name in study.rungs:
        budget = study.pool.macs[name]
        for rotation in range(study.rotations):
            assert study.val_macs(study.within(name, rotation)).mean() <= budget
            capped = study.within(name, rotation, float(budget))
            assert sum(study.macs[view] for view in capped.views) <= budget


def test_copies_are_taken_in_turn(runs):
    study = study_of(runs[0])
    assert study.single("mlp-h8", 1) == ("mlp-h8#1", "8")
    for rotation, fronts in enumerate(study.fronts):
        for front in fronts:
            names = [name for name, _ in front.views]
            assert len(set(names)) == len(names)
            assert names[0].endswith(f"#{rotation}")


def test_the_reference_is_read_at_the_larger_cost_and_never_falls(runs):
    study = study_of(runs[0])
    accuracy = study.pool.accuracies("test")
    view = study.single("mlp-h8", 0)
    row = study.result(Cascade((view,), ()), "mlp-h16")
    assert row["single_curve_percent"] == pytest.approx(100 * max(list(accuracy.values())[:3]))
    assert study.single_curve(1e9) == pytest.approx(100 * max(accuracy.values()))
    assert study.single_curve(1.0) == pytest.approx(100 * accuracy["mlp-h4"])


def test_random_deferral_lies_between_nobody_and_everybody_and_the_oracle_above(evaluation):
    for metrics in evaluation.metrics.values():
        at = {name: metrics[f"made_up/deferral/top1_percent@{name}"] for name in ("nobody", "random", "everybody")}
        assert at["nobody"] < at["random"] < at["everybody"]
        assert at["random"] == pytest.approx(0.9 * at["nobody"] + 0.1 * at["everybody"])
        for kind in ("max_probability", "logit_gap", "probability_gap", "negative_entropy"):
            found = metrics[f"made_up/deferral/top1_percent@{kind}"]
            assert at["random"] < found < metrics["made_up/deferral/top1_percent@oracle"]


def test_the_exported_committee_runs_and_does_what_the_record_says(tmp_path, runs, evaluation):
    for name in ("committee.json", "committee.safetensors"):
        (tmp_path / name).write_bytes(evaluation.files[name])
    record = json.loads(evaluation.files["committee.json"], parse_constant=pytest.fail)
    assert record["weights_sha256"] == hashlib.sha256(evaluation.files["committee.safetensors"]).hexdigest()
    assert {"name", "family", "width", "depth", "resolution"} <= record["members"][0].keys()
    weights = load(evaluation.files["committee.safetensors"])
    assert list(weights) and all(key.startswith("members.") for key in weights)
    for stage, member in enumerate(record["members"]):
        expected = runs[0].weights()[f"members.{member['name']}.weight"]
        np.testing.assert_array_equal(weights[f"members.{stage}.weight"], expected)

    built = [torch.nn.Linear(m["width"], 5, bias=False) for m in record["members"]]
    assert len(Committee.load(tmp_path, built).members) == len(record["members"])

    study = study_of(runs[0])
    views = tuple((m["name"], m["resolution"]) for m in record["members"])
    trace = run_cascade(study.test, Cascade(views, tuple(map(float, record["thresholds"]))), study.macs)
    test = record["test"]
    assert test["top1_percent"] == pytest.approx(100 * trace.correct.mean())
    assert test["macs_per_sample"] == pytest.approx(trace.macs.mean())
    assert test["top1_percent_interval"][0] < test["top1_percent"] < test["top1_percent_interval"][1]
    assert sum(test["exit_shares"]) == pytest.approx(1)


def test_a_run_without_a_member_s_weights_is_refused(tmp_path):
    run = write_run(tmp_path)
    from safetensors.numpy import save_file

    save_file({"other": np.zeros(1, dtype=np.float32)}, tmp_path / "weights.safetensors")
    run.facts["weights_sha256"] = sha256(tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"no weights of 'mlp-h\d+#0'"):
        committees.evaluate([run], "made_up", **CHOICES)


@pytest.mark.parametrize("change", [{"output": "weighted"}, {"output": "last"}, {"average": "probabilities"}])
def test_other_rules_and_temperatures_work_throughout(tmp_path, change):
    run = write_run(tmp_path, samples=120, widths=(4, 8, 16), extra_resolution=True)
    choices = {"pair": ["mlp-h4", "mlp-h16"], "export": "mlp-h16", "edges": {3: 6}, "temperature": True, **change}
    evaluation = committees.evaluate([run], "made_up", **choices)
    record = json.loads(evaluation.files["committee.json"])
    assert all(t != 1.0 for t in record["temperatures"])
    assert (record["weights"] is not None) == (record["output"] == "weighted")


def test_one_copy_of_each_is_enough_and_has_no_ensembles(tmp_path):
    evaluation = committees.evaluate([write_run(tmp_path, copies=1)], "made_up", **CHOICES)
    assert not any("/ensemble" in name or "/self_cascade" in name for name in evaluation.metrics[0])


def test_unknown_architectures_and_single_ones_are_refused(tmp_path):
    run = write_run(tmp_path / "a", samples=40)
    with pytest.raises(ValueError, match="'mlp-h5' is not in the pool"):
        committees.evaluate([run], "made_up", **{**CHOICES, "export": "mlp-h5"})
    with pytest.raises(ValueError, match="at least 2 architectures"):
        committees.evaluate([write_run(tmp_path / "b", widths=(4,))], "made_up", **CHOICES)


def test_figures_hold_the_curves_a_reader_looks_for(evaluation):
    figures = {figure.id: figure for figure in evaluation.figures}
    assert set(figures) == {
        "made_up-accuracy-macs",
        "made_up-deferral",
        "made_up-exits",
        "made_up-risk-coverage",
    }
    names = [series.name for series in figures["made_up-deferral"].series]
    assert {"random", "oracle", "max probability"} <= set(names)
    bars = figures["made_up-exits"].series
    np.testing.assert_allclose(np.sum([s.y for s in bars], axis=0), 100, atol=1e-4)
    for figure in evaluation.figures:
        for series in figure.series:
            assert len(series.x) == len(series.y) > 0
            if series.low:
                assert all(a <= b <= c for a, b, c in zip(series.low, series.y, series.high, strict=True))
    table = json.loads(evaluation.files["table.json"])
    assert [row["architecture"] for row in table] == ["mlp-h4", "mlp-h8", "mlp-h16", "mlp-h32"]
    assert table[1]["cascade/top1_percent"]["mean"] == pytest.approx(
        np.mean([m["made_up/cascade/top1_percent@mlp-h8"] for m in evaluation.metrics.values()])
    )
