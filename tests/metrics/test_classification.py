import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from lightning_modules.metrics import classification as metrics


def predictions(samples=200, classes=7, seed=0, scale=2.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    logits = rng.normal(size=(samples, classes)) * scale
    logits[np.arange(samples), labels] += 1.5
    return logits.astype(np.float32), labels


def test_against_scikit_learn_and_torchmetrics():
    logits, labels = predictions()
    p = np.exp(metrics.log_softmax(logits))
    assert metrics.accuracy(logits, labels) == accuracy_score(labels, logits.argmax(-1))
    assert metrics.negative_log_likelihood(logits, labels) == pytest.approx(log_loss(labels, p), abs=1e-12)
    brier = brier_score_loss(labels, p, scale_by_half=False, labels=range(7))
    assert metrics.brier_score(logits, labels) == pytest.approx(brier, abs=1e-12)
    for bins in (1, 10, 15):
        ece = multiclass_calibration_error(torch.tensor(p), torch.tensor(labels), num_classes=7, n_bins=bins)
        assert metrics.expected_calibration_error(logits, labels, bins) == pytest.approx(ece.item(), abs=1e-6)


def test_saturated_logits_stay_finite():
    logits, labels = np.array([[1e4, 0.0], [1e4, 0.0]]), np.array([0, 1])
    assert metrics.negative_log_likelihood(logits, labels) == 5000.0
    assert metrics.brier_score(logits, labels) == 1.0
    assert metrics.expected_calibration_error(logits, labels) == 0.5


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(1, 20), st.integers(2, 4), st.integers(0, 10**6))
def test_disagreement_equals_the_loop_over_pairs(members, samples, classes, seed):
    predictions = np.random.default_rng(seed).integers(0, classes, (members, samples))
    pairs = [np.mean(a != b) for a, b in itertools.combinations(predictions, 2)]
    assert metrics.disagreement(predictions) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_risk_coverage_is_the_expectation_over_the_order_of_ties():
    confidence, correct = np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False])
    coverage, risk = metrics.risk_coverage(confidence, correct)
    orders = [[0, *middle, 3] for middle in itertools.permutations([1, 2])]
    expected = np.mean([np.cumsum(~correct[order]) / np.arange(1, 5) for order in orders], axis=0)
    np.testing.assert_allclose(coverage, [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(risk, expected, atol=1e-12)
    assert metrics.area_under_risk_coverage(confidence, correct) == pytest.approx(expected.mean())
    shuffled = [2, 0, 3, 1]
    np.testing.assert_allclose(metrics.risk_coverage(confidence[shuffled], correct[shuffled])[1], risk)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(0, 10**6))
def test_deferral_equals_a_plain_loop_and_lies_below_the_oracle(samples, seed):
    rng = np.random.default_rng(seed)
    confidence, correct = rng.random(samples), rng.random((2, samples)) < 0.6
    for count in range(samples + 1):
        shares = np.array([count / samples])
        deferred = sorted(range(samples), key=lambda i: confidence[i])[:count]
        expected = np.mean([correct[1 if i in deferred else 0][i] for i in range(samples)])
        found = metrics.deferral_curve(confidence, correct, shares)[0]
        assert found == pytest.approx(expected, abs=1e-12)
        assert metrics.oracle_deferral(correct, shares)[0] >= found - 1e-12
    ends = metrics.random_deferral(correct, np.array([0.0, 1.0]))
    np.testing.assert_allclose(ends, correct.mean(axis=1))


def test_exits_per_class_sum_to_one_where_there_are_samples():
    table = metrics.exits_per_class(np.array([0, 1, 1, 0]), np.array([0, 0, 2, 2]), 2, 3)
    np.testing.assert_allclose(table, [[0.5, 0.5], [0, 0], [0.5, 0.5]])


def test_bootstrap_interval_covers_the_normal_one():
    values = (np.random.default_rng(0).random(2000) < 0.3).astype(np.float64)
    low, high = metrics.bootstrap_interval(values, resamples=4000)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert low == pytest.approx(values.mean() - half, abs=2e-3)
    assert high == pytest.approx(values.mean() + half, abs=2e-3)
    assert metrics.bootstrap_interval(values) == metrics.bootstrap_interval(values)


def test_seed_interval_is_students():
    low, high = metrics.seed_interval(np.array([1.0, 2.0, 3.0]))
    assert (low, high) == (pytest.approx(2 - 4.302653 / math.sqrt(3)), pytest.approx(2 + 4.302653 / math.sqrt(3)))
    assert metrics.seed_interval(np.array([1.0])) == (-math.inf, math.inf)


def test_what_has_no_value_is_refused():
    logits, labels = predictions(samples=4)
    with pytest.raises(ValueError, match="no samples"):
        metrics.accuracy(logits[:0], labels[:0])
    with pytest.raises(ValueError, match="1 of 4 rows hold NaN"):
        metrics.brier_score(np.where(np.arange(4)[:, None] == 2, np.nan, logits), labels)
    with pytest.raises(ValueError, match="there are 7 classes"):
        metrics.negative_log_likelihood(logits, labels + 7)
    with pytest.raises(ValueError, match=r"bins \(0\)"):
        metrics.expected_calibration_error(logits, labels, bins=0)
    with pytest.raises(ValueError, match="at least 2 members"):
        metrics.disagreement(np.zeros((1, 3), dtype=np.int64))
    with pytest.raises(ValueError, match="1 confidences are NaN"):
        metrics.risk_coverage(np.array([0.1, np.nan]), np.array([True, True]))
    with pytest.raises(ValueError, match="got no samples"):
        metrics.risk_coverage(np.zeros(0), np.zeros(0, dtype=bool))
    with pytest.raises(ValueError, match=r"level \(1.0\)"):
        metrics.bootstrap_interval(np.ones(3), level=1.0)
    with pytest.raises(ValueError, match="got no samples"):
        metrics.bootstrap_interval(np.zeros(0))
