"""The metrics of GLUE against closed forms and SciPy."""

import numpy as np
import pytest
from scipy import stats

from lightning_modules.datasets.glue import FORMS
from lightning_modules.metrics import glue


@pytest.fixture
def answers():
    """Logits of two classes and labels: 3 true and 1 false positive, 4 true and 2 false negatives."""
    said = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    labels = np.array([1, 1, 1, 0, 0, 0, 0, 0, 1, 1])
    return np.eye(2)[said], labels


def test_two_classes_have_their_closed_forms(answers):
    assert glue.scores("sst2", *answers) == {"accuracy": pytest.approx(70)}
    assert glue.scores("mrpc", *answers) == {"accuracy": pytest.approx(70), "f1": pytest.approx(100 * 6 / 9)}
    matthews = (3 * 4 - 1 * 2) / np.sqrt(4 * 5 * 5 * 6)
    assert glue.scores("cola", *answers) == {"matthews": pytest.approx(100 * matthews)}


def test_what_is_constant_scores_nothing():
    logits, labels = np.eye(2)[np.zeros(4, int)], np.array([1, 1, 0, 0])
    assert glue.scores("cola", logits, labels) == {"matthews": 0}
    assert glue.scores("qqp", logits, np.zeros(4, int))["f1"] == 0


def test_scores_correlate_as_scipy_says():
    random = np.random.default_rng(0)
    outputs, scores = random.normal(size=(40, 1)), random.integers(0, 6, 40) / 1.0
    found = glue.scores("stsb", outputs, scores)
    assert found["pearson"] == pytest.approx(100 * stats.pearsonr(outputs[:, 0], scores).statistic)
    assert found["spearman"] == pytest.approx(100 * stats.spearmanr(outputs[:, 0], scores).statistic)
    assert glue.scores("stsb", np.exp(scores)[:, None], scores)["spearman"] == pytest.approx(100)


def test_every_task_has_metrics():
    assert glue.REPORTED.keys() == FORMS.keys()


@pytest.mark.parametrize(
    ("task", "outputs", "labels", "message"),
    [
        ("snli", (2, 2), 2, r"task \('snli'\) must be one of cola, sst2"),
        ("rte", (3, 2), 2, "there are 3 outputs and 2 labels, expected as many"),
        ("stsb", (2, 2), 2, "stsb has 2 outputs a row, expected one for stsb and logits otherwise"),
    ],
)
def test_what_does_not_fit_is_one_line(task, outputs, labels, message):
    with pytest.raises(ValueError, match=message):
        glue.scores(task, np.zeros(outputs), np.zeros(labels, int))
