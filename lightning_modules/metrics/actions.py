"""Numbers reported for actions in videos, from stored scores: one label, any number of them, or a verb and a noun."""

import numpy as np
from jaxtyping import Float, Int

from lightning_modules.metrics.classification import check_scores


def top_accuracy(scores: Float[np.ndarray, "samples classes"], labels: Int[np.ndarray, " samples"], k: int) -> float:
    """Share of samples, in [0, 1], whose label is among the `k` classes of largest score.

    A label that has a score equal to others counts as if it came behind those of a lower class index, as in `argsort`.

    Raises:
        ValueError: there are no samples, scores that are NaN, or labels without a score.
    """
    check_scores(scores, labels)
    best = np.argsort(-scores, axis=-1, kind="stable")[:, :k]
    return float((best == labels[:, None]).any(axis=-1).mean())


def joint_accuracy(
    scores: list[Float[np.ndarray, "samples _"]], labels: Int[np.ndarray, "samples kinds"]
) -> tuple[float, list[float]]:
    """Share of samples, in [0, 1], of which every label is right, and the share of each kind of label by itself.

    Args:
        scores: of the classes of each kind, such as verbs and nouns.
        labels: one of each kind.

    Raises:
        ValueError: there are no samples, scores that are NaN, or labels without a score.
    """
    for part, each in zip(scores, labels.T, strict=True):
        check_scores(part, each)
    right = np.stack([part.argmax(-1) == each for part, each in zip(scores, labels.T, strict=True)])
    return float(right.all(0).mean()), [float(share) for share in right.mean(1)]


def mean_average_precision(
    scores: Float[np.ndarray, "samples classes"], labels: Int[np.ndarray, "samples classes"]
) -> float:
    """Mean over classes of the average precision, in [0, 1], as Charades_v1_classify.m computes it.

    The average precision of a class is the mean of the precision at each of its samples, in the order of the scores.
    Samples without any label are left out: the official script ranks them last, since it forgets their names. Classes
    without any sample are left out, too; in Charades' own test split there is none. (Equal scores have no order there;
    here they count as one step, as in scikit-learn.)

    Args:
        scores: larger where a class is more probable.
        labels: 1 where a sample has the class.

    Raises:
        ValueError: there are no labels at all, or a score is NaN.
    """
    from sklearn.metrics import average_precision_score

    some, classes = labels.any(axis=1), labels.any(axis=0)
    if not some.any():
        raise ValueError(f"none of {len(labels)} samples has a label: there is nothing to rank.")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).any(axis=1).sum())} of {len(scores)} rows hold NaN.")
    return float(average_precision_score(labels[some][:, classes], scores[some][:, classes], average="macro"))
