import itertools
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml

from lightning_modules.ensembling import pools
from lightning_modules.metrics import classification
from lightning_modules.small_ensembles import evaluation as small_ensembles
from tests.reference.pools import rewrite_predictions, write_run

FACTS = yaml.safe_load(Path(small_ensembles.__file__).with_name("facts.yaml").read_text())


def study_of(run, **changes):
    choices = {"largest": 4, "average": "logits", "reach": 2, "subsets": 32}
    return small_ensembles.Study(pools.read_pool(run), **{**choices, **changes})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    return [write_run(folder / str(s), seed=s, widths=(4, 6, 8, 11, 16), copies=4) for s in (0, 1)]


@pytest.fixture(scope="module")
def evaluation(runs):
    return small_ensembles.evaluate(runs, "made_up")


def test_every_claim_of_the_tiny_arms_finds_its_metrics(evaluation):
    names = {name.removeprefix("made_up/") for name in evaluation.metrics[0]}
    for claim in FACTS["claims"]:
        if "tiny" in claim["presets"]:
            assert claim["value"]["metric"].split("/", 1)[1] in names, claim["id"]
            assert claim["reference"]["metric"].split("/", 1)[1] in names, claim["id"]


def test_finite_json_and_the_same_again(runs, evaluation):
    again = small_ensembles.evaluate(runs, "made_up")
    assert again.metrics == evaluation.metrics and again.files == evaluation.files
    for metrics in evaluation.metrics.values():
        assert all(math.isfinite(value) for value in metrics.values())
    json.dumps([asdict(f) for f in evaluation.figures], allow_nan=False)
    rows = json.loads(evaluation.files["table.json"])
    assert len(rows) == 5 * 4 and rows[1]["total_macs"] == 800
    for figure in evaluation.figures:
        for series in figure.series:
            assert len(series.x) == len(series.y) > 0


def test_points_are_means_over_all_subsets_of_copies(runs, evaluation):
    pool = pools.read_pool(runs[0])
    labels = pool.labels["test"]
    logits = [pool.scores(f"mlp-h8#{copy}", "test").astype(np.float64) for copy in range(4)]
    pairs = [classification.accuracy(sum(pair), labels) for pair in itertools.combinations(logits, 2)]
    assert evaluation.metrics[0]["made_up/ensemble/top1_percent@mlp-h8x2"] == pytest.approx(100 * np.mean(pairs))
    assert evaluation.metrics[0]["made_up/ensemble/total_macs@mlp-h8x2"] == 1600


def test_only_totals_that_a_single_network_reaches_are_compared(runs):
    study = study_of(runs[0])
    assert study.comparable("mlp-h4") == [2, 3, 4]  # 400 MACs each, the largest single network has 1,600
    assert study.comparable("mlp-h6") == [2]
    assert study.comparable("mlp-h8") == [2]
    assert study.comparable("mlp-h11") == []
    found = study.equal_macs()
    six = study.curves["mlp-h6"][1] - study.single_at(1200.0)
    assert found["gain/points@mlp-h6"] == pytest.approx(six)
    assert found["gain/points@small"] == pytest.approx(found["gain/points@mlp-h4"])
    assert found["gain/points@large"] == pytest.approx(found["gain/points@mlp-h8"])  # the middle one is in neither
    assert found["ensemble/top1_percent@large"] - found["single_curve/top1_percent@large"] == pytest.approx(
        found["gain/points@large"]
    )


def test_identical_copies_win_nothing(tmp_path):
    def same(predictions):
        for key in list(predictions):
            if key.startswith("logits/"):
                predictions[key] = predictions[key.split("#")[0] + "#0/" + key.split("/")[-1]].copy()

    study = study_of(rewrite_predictions(write_run(tmp_path, copies=4), same))
    found = study.metrics()
    for k in (2, 3, 4):
        assert found[f"increment/points@k{k}"] == pytest.approx(0, abs=1e-9)
    for name in study.pool.macs:
        assert found[f"diversity/disagreement_percent@{name}"] == pytest.approx(0, abs=1e-9)
        assert found[f"diversity/mean_divergence_nats@{name}"] == pytest.approx(0, abs=1e-12)


def test_the_geometric_mean_s_likelihood_identity_is_exact(evaluation):
    for metrics in evaluation.metrics.values():
        assert metrics["made_up/geometric_mean/identity_error_nats"] < 1e-12
        for name in ("mlp-h4", "mlp-h16"):
            assert metrics[f"made_up/diversity/nll_gain_nats@{name}"] > 0


def test_ways_of_averaging_are_compared_on_all_subsets_of_copies(tmp_path):
    study = study_of(write_run(tmp_path, copies=4), largest=3)
    for what, rule in (("geometric_mean", "logits"), ("arithmetic_mean", "probabilities")):
        each = [
            classification.accuracy(pools.combine(logits[list(copies)], rule), study.labels)
            for logits in study.logits.values()
            for copies in itertools.combinations(range(4), 3)
        ]
        assert study.metrics()[f"{what}/top1_percent"] == pytest.approx(100 * np.mean(each))


def test_mixed_pairs_are_compared_at_their_own_cost(tmp_path):
    run = write_run(tmp_path, widths=(4, 16), copies=2)
    study = study_of(run)
    found = study.mixed()
    low, high = study.curves["mlp-h4"][1], study.curves["mlp-h16"][1]
    share = math.log(2000 / 800) / math.log(3200 / 800)
    assert found["same_pair/top1_percent"] == pytest.approx(low + share * (high - low))
    labels = study.labels
    each = [
        classification.accuracy(a.astype(np.float64) + b, labels)
        for a in study.logits["mlp-h4"]
        for b in study.logits["mlp-h16"]
    ]
    assert found["mixed_pair/top1_percent"] == pytest.approx(100 * np.mean(each))


@pytest.mark.parametrize("average", pools.RULES)
def test_every_average_works_throughout(tmp_path, average):
    run = write_run(tmp_path, samples=60)
    assert small_ensembles.evaluate([run], "made_up", average=average).metrics[0]


def test_impossible_comparisons_are_refused(tmp_path):
    run = write_run(tmp_path / "a", copies=1, samples=40)
    with pytest.raises(ValueError, match="at least 2 copies"):
        small_ensembles.evaluate([run], "made_up")
    with pytest.raises(ValueError, match=r"average .'median'."):
        small_ensembles.evaluate([run], "made_up", average="median")


def wide_residual_network(depth, widen):
    """Parameters and MACs of a pre-activation WRN on 32x32 images of 10 classes, in closed form."""
    blocks, size, channels = (depth - 4) // 6, 32, 16
    params, macs = 3 * 16 * 9, 3 * 16 * 9 * 32 * 32
    for width, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
        size //= stride
        for block in range(blocks):
            weights = channels * width * 9 + width * width * 9
            weights += channels * width if block == 0 and (channels != width or stride > 1) else 0
            params += 2 * channels + 2 * width + weights
            macs += weights * size * size
            channels = width
    return params + 2 * channels + 10 * channels + 10, macs + 10 * channels


def test_oracles_of_the_wide_residual_networks_have_their_closed_form():
    found = 0
    for oracle in FACTS["oracles"]:
        if oracle["name"].startswith("wrn-"):
            depth, widen = map(int, oracle["name"].split("-")[1:])
            assert wide_residual_network(depth, widen) == (oracle["params"], oracle["macs"]), oracle["name"]
            found += 1
        else:
            width = int(oracle["name"].removeprefix("mlp-h").removesuffix("-depth5"))
            assert oracle["macs"] == 4 * width**2 + 74 * width
    assert found == 9
