"""The metrics of GLUE's tasks (1804.07461, section 3), each in percent: `scores`."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from lightning_modules.metrics.classification import accuracy

Answers = Float[np.ndarray, "rows outputs"]
Labels = Int[np.ndarray, " rows"] | Float[np.ndarray, " rows"]


def scores(task: str, outputs: Answers, labels: Int[np.ndarray, " _"] | Float[np.ndarray, " _"]) -> dict[str, float]:
    """What GLUE reports of a task, in percent.

    Args:
        task: as in `datasets.glue.FORMS`.
        outputs: logits of the classes, or one score a row for `stsb`.
        labels: of the rows.

    Raises:
        ValueError: there is no such task, or another number of labels than of outputs, or of outputs than it takes.
    """
    if task not in REPORTED:
        raise ValueError(f"task ({task!r}) must be one of {', '.join(REPORTED)}.")
    if len(outputs) != len(labels) or not len(labels):
        raise ValueError(
            f"there are {len(outputs)} outputs and {len(labels)} labels, expected as many, and one or more."
        )
    if (outputs.shape[1] == 1) != (task == "stsb"):
        raise ValueError(f"{task} has {outputs.shape[1]} outputs a row, expected one for stsb and logits otherwise.")
    return {name: 100 * MEASURES[name](outputs, labels) for name in REPORTED[task]}


def f1(outputs: Answers, labels: Labels) -> float:
    """The harmonic mean of precision and recall of class 1; 0 where there is none of either."""
    said, right = outputs.argmax(1) == 1, labels == 1
    total = said.sum() + right.sum()
    return float(2 * (said & right).sum() / total) if total else 0.0


def matthews(outputs: Answers, labels: Labels) -> float:
    """The correlation of two classes with what is said of them; 0 where one of the two is constant (Matthews, 1975)."""
    return _correlation((outputs.argmax(1) == 1).astype(np.float64), (labels == 1).astype(np.float64))


def pearson(outputs: Answers, labels: Labels) -> float:
    """The correlation of scores; 0 where one of the two is constant."""
    return _correlation(outputs[:, 0].astype(np.float64), np.asarray(labels, np.float64))


def spearman(outputs: Answers, labels: Labels) -> float:
    """The correlation of the ranks of scores; equal ones share the mean of their ranks."""
    return _correlation(_ranks(outputs[:, 0]), _ranks(np.asarray(labels)))


def _correlation(one: Float[np.ndarray, " rows"], other: Float[np.ndarray, " rows"]) -> float:
    one, other = one - one.mean(), other - other.mean()
    size = np.sqrt((one @ one) * (other @ other))
    return float(one @ other / size) if size else 0.0


def _ranks(values: np.ndarray) -> Float[np.ndarray, " rows"]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


MEASURES: dict[str, Callable[[Answers, Labels], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
REPORTED = {
    "cola": ("matthews",),
    "sst2": ("accuracy",),
    "mrpc": ("accuracy", "f1"),
    "stsb": ("pearson", "spearman"),
    "qqp": ("accuracy", "f1"),
    "mnli": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
}
