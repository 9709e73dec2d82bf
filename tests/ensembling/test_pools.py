import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.ensembling import pools
from lightning_modules.metrics import classification
from lightning_modules.runs import Run
from tests.reference.pools import rewrite_predictions, write_run


def logits_of(members=3, samples=50, classes=5, seed=0):
    return (2 * np.random.default_rng(seed).normal(size=(members, samples, classes))).astype(np.float32)


def test_a_pool_is_read_with_names_costs_and_logits(tmp_path):
    run = write_run(tmp_path, widths=(8, 4), copies=2, extra_resolution=True)
    pool = pools.read_pool(run)
    assert list(pool.architectures) == ["mlp-h4", "mlp-h8"]  # cheap first
    assert pool.macs == {"mlp-h4": 400, "mlp-h8": 800}
    assert [m.name for m in pool.architectures["mlp-h8"]] == ["mlp-h8#0", "mlp-h8#1"]
    np.testing.assert_array_equal(pool.scores("mlp-h4#1", "test", "6"), run.predictions()["logits/mlp-h4#1/test@6"])
    assert pool.scores("mlp-h4#1", "val").shape == (400, 5)


def refused(tmp_path, change, match, **shape):
    run = rewrite_predictions(write_run(tmp_path, **shape), change)
    with pytest.raises(ValueError, match=match):
        pools.read_pool(run)


def test_predictions_without_meaning_are_refused(tmp_path):
    def nan(predictions):
        predictions["logits/mlp-h4#0/val"][3, 1] = np.nan

    def classes(predictions):
        predictions["logits/mlp-h8#1/test"] = predictions["logits/mlp-h8#1/test"][:, :4].copy()

    def rows(predictions):
        predictions["logits/mlp-h8#1/test"] = predictions["logits/mlp-h8#1/test"][:-1].copy()

    def empty(predictions):
        for key in list(predictions):
            if key.endswith("val"):
                predictions[key] = predictions[key][:0].copy()

    def missing(predictions):
        del predictions["logits/mlp-h8#1/test"]

    def unknown(predictions):
        predictions["logits/cnn-w4#0/test"] = predictions["logits/mlp-h8#1/test"].copy()

    def gone(predictions):
        del predictions["logits/mlp-h8#1/test"], predictions["logits/mlp-h8#1/val"]

    refused(tmp_path / "a", nan, "mlp-h4#0 at 8, val: 1 rows of logits are NaN.*diverged")
    refused(tmp_path / "b", classes, r"shape \(400, 4\), expected \(400, 5\)")
    refused(tmp_path / "c", rows, "399 rows of logits for 400 labels")
    refused(tmp_path / "d", empty, "the val split is empty")
    refused(tmp_path / "e", missing, "mlp-h8#1 has no logits on the test split")
    refused(tmp_path / "f", unknown, "logits of 'cnn-w4#0', which facts.json does not list")
    refused(tmp_path / "g", gone, "no logits at its native resolution 8")


def test_altered_predictions_are_refused(tmp_path):
    run = write_run(tmp_path)
    content = bytearray((tmp_path / "predictions.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "predictions.safetensors").write_bytes(bytes(content))
    with pytest.raises(ValueError, match="altered or cut"):
        pools.read_pool(run)


def test_pools_of_one_seed_are_joined_only_where_rows_are_the_same_samples(tmp_path):
    first = pools.read_pool(write_run(tmp_path / "a", family="mlp"))
    second = pools.read_pool(write_run(tmp_path / "b", family="wide"))
    assert len(pools.join_pools([first, second]).members) == 16
    for index, (match, other) in enumerate(
        {
            "labels of two runs differ": rewrite_predictions(
                write_run(tmp_path / "c", family="c"), lambda a: a["labels/test"].sort()
            ),
            "5 and with 4 classes": write_run(tmp_path / "d", family="d", classes=4),
            "seed 0 and 3": write_run(tmp_path / "e", family="e", seed=3),
            "names are not unique": write_run(tmp_path / "f"),
        }.items()
    ):
        with pytest.raises(ValueError, match=match):
            pools.join_pools([first, pools.read_pool(other)])
        assert index < 4
    with pytest.raises(ValueError, match="no runs to evaluate"):
        pools.read_pools([])
    with pytest.raises(ValueError, match="paired comparison over seeds"):
        pools.read_pools([write_run(tmp_path / "g"), write_run(tmp_path / "h", seed=1, widths=(4, 8))])
    with pytest.raises(ValueError, match="no member 'x'"):
        first.member("x")
    with pytest.raises(ValueError, match="no val logits at resolution 24"):
        first.scores("mlp-h4#0", "val", "24")
    with pytest.raises(ValueError, match="no members"):
        pools.Pool(0, 5, (), first.labels, {})


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(pools.RULES), st.integers(0, 10**6))
def test_identities_of_the_combination_rules(rule, seed):
    logits = logits_of(seed=seed)
    combined = pools.combine(logits, rule)
    np.testing.assert_allclose(np.exp(combined).sum(axis=-1), 1, atol=1e-12)
    np.testing.assert_allclose(pools.combine(logits[[2, 0, 1]], rule), combined, atol=1e-12)
    if rule != "vote":
        same = pools.combine(np.stack([logits[0]] * 4), rule)
        np.testing.assert_allclose(same, classification.log_softmax(logits[0]), atol=1e-12)
        once_more = pools.combine(logits[[0, 1, 1, 2]], rule)
        np.testing.assert_allclose(pools.combine(logits, rule, [1, 2, 1]), once_more, atol=1e-12)
    shifted = logits.astype(np.float64)
    shifted[1] += np.random.default_rng(0).normal(size=(50, 1))  # a constant per sample means nothing
    np.testing.assert_allclose(pools.combine(shifted, rule), combined, atol=1e-9)


def test_geometric_mean_gains_exactly_the_mean_divergence():
    logits, labels = logits_of(samples=300), np.random.default_rng(1).integers(0, 5, 300)
    mean = pools.combine(logits, "logits")
    log_p = classification.log_softmax(logits)
    own = np.mean([classification.negative_log_likelihood(member, labels) for member in logits])
    divergence = (np.exp(mean) * (mean - log_p)).sum(axis=-1).mean()
    assert classification.negative_log_likelihood(mean, labels) == pytest.approx(own - divergence, abs=1e-12)
    assert divergence > 0


def test_vote_breaks_ties_by_mean_probability_and_never_overrules_a_majority():
    tie = np.array([[[3.0, 0, 0]], [[0, 1.0, 0]]])
    assert pools.combine(tie, "vote").argmax() == 0
    assert pools.combine(tie[::-1], "vote").argmax() == 0
    majority = np.array([[[30.0, 0, 0]], [[0, 0.1, 0]], [[0, 0.1, 0]]])
    assert pools.combine(majority, "vote").argmax() == 1
    assert pools.combine(majority, "probabilities").argmax() == 0


def test_impossible_combinations_are_refused():
    logits = logits_of()
    with pytest.raises(ValueError, match=r"rule .'median'."):
        pools.combine(logits, "median")
    with pytest.raises(ValueError, match="no effect with rule 'vote'"):
        pools.combine(logits, "vote", [1, 1, 1])
    for weights in ([1, 1], [0, 0, 0], [1, -1, 1]):
        with pytest.raises(ValueError, match="3 numbers >= 0"):
            pools.combine(logits, "logits", weights)
    labels = np.zeros(50, dtype=np.int64)
    with pytest.raises(ValueError, match=r"size \(0\)"):
        pools.greedy_selection(logits, labels, 0)
    with pytest.raises(ValueError, match="must be 'logits' or 'probabilities'"):
        pools.greedy_selection(logits, labels, 2, "vote")


@pytest.mark.parametrize("rule", ["logits", "probabilities"])
def test_greedy_selection_equals_trying_every_member_at_each_step(rule):
    logits, labels = logits_of(members=4, samples=80), np.random.default_rng(1).integers(0, 5, 80)
    logits[1:3, np.arange(80), labels] += 2
    chosen, best = [], math.inf
    while len(chosen) < 6:
        losses = [
            classification.negative_log_likelihood(pools.combine(logits[[*chosen, m]], rule), labels) for m in range(4)
        ]
        if min(losses) >= best:
            break
        chosen, best = [*chosen, int(np.argmin(losses))], min(losses)
    found = pools.greedy_selection(logits, labels, 6, rule)
    assert found[: len(chosen)] == tuple(chosen)
    assert classification.negative_log_likelihood(pools.combine(logits[list(found)], rule), labels) <= best + 1e-12


def test_temperature_finds_the_one_that_made_the_labels():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20000, 5)) * 2
    p = np.exp(classification.log_softmax(logits / 1.7))
    labels = (p.cumsum(axis=1) < rng.random((20000, 1))).sum(axis=1)
    assert pools.fit_temperature(logits, labels) == pytest.approx(1.7, rel=0.03)


def test_curves_are_interpolated_in_log_macs_and_not_continued():
    assert pools.interpolate_log_macs([100, 400], [90.0, 92.0], 200.0) == pytest.approx(91.0)
    assert pools.single_envelope([400, 100, 200], [95.0, 90.0, 89.0], 200.0) == pytest.approx(90.0)
    np.testing.assert_allclose(pools.single_envelope([1, 4], [0.0, 1.0], np.array([1.0, 2.0, 4.0])), [0, 0.5, 1])
    for beyond in (99.0, 401.0):
        with pytest.raises(ValueError, match="outside the measured models, 100 to 400"):
            pools.single_envelope([100, 400], [90.0, 92.0], beyond)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20))
def test_pareto_front_equals_the_definition(points):
    macs, values = np.array(points, dtype=np.float64).T
    front = pools.pareto_front(macs, values)
    undominated = {(m, v) for m, v in points if not any((a <= m and b >= v) and (a < m or b > v) for a, b in points)}
    assert [(m, v) for m, v in zip(macs[front], values[front], strict=True)] == sorted(undominated)


def test_subsets_are_all_or_a_fixed_random_choice():
    assert pools.subsets(4, 2) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    drawn = pools.subsets(20, 10, limit=15)
    assert len(set(drawn)) == 15 and drawn == pools.subsets(20, 10, limit=15)
    with pytest.raises(ValueError, match="subset of 3 cannot be drawn from 2"):
        pools.subsets(2, 3)
    logits, labels = logits_of(), np.random.default_rng(1).integers(0, 5, 50)
    each = [classification.accuracy(member, labels) for member in logits]
    assert pools.subset_accuracy(logits, labels, 1) == pytest.approx(np.mean(each))


def test_a_series_over_seeds_has_an_interval_only_where_there_are_two():
    two = pools.seed_series("a", "line", [1, 2], np.array([[1.0, 2.0], [3.0, 2.0]]))
    assert two.y == [2.0, 2.0] and two.low[0] < 2.0 < two.high[0] and two.low[1] == 2.0
    one = pools.seed_series("a", "line", [1], np.ones((1, 1)))
    assert one.low is None and one.high is None


def test_reading_a_pool_needs_no_torch(tmp_path):
    import subprocess

    names = ", ".join(f"lightning_modules.{stem}.evaluation" for stem in ("committees", "small_ensembles"))
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert isinstance(write_run(tmp_path), Run)
