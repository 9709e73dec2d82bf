"""Numbers reported for questions about videos (numpy in, Python floats out; no torch).

An answer is right if it is the label. A label below 0 stands for an answer that cannot be given: it is never right, and
counts. HD-VILA and LF-VILA report the accuracy over all questions, HD-VILA also that of each kind of question
(`evaluate_tgif_qa` of `hd-vila/src/datasets/dataset_video_qa.py`).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

COUNTS = (1, 10)  # least and greatest answer to a question of TGIF-QA's task `count`


def accuracy(
    answers: Int[np.ndarray, " _"],
    labels: Int[np.ndarray, " _"],
    kinds: Int[np.ndarray, " _"] | None = None,
    names: Sequence[str] = (),
) -> dict[str, float]:
    """`accuracy_percent` of all questions, and `accuracy_percent/<kind>` of each kind that was asked.

    Args:
        answers: number of the answer, option or class that was given.
        labels: number of the right one; below 0 if it cannot be given.
        kinds: of the questions, indices into `names`; below 0 for none.
        names: of the kinds, such as what, who, how, where and when of MSRVTT-QA.

    Raises:
        ValueError: there are no questions, not as many labels or kinds, or a kind has no name.
    """
    _check_lengths(answers, labels, "labels")
    right = (answers == labels) & (labels >= 0)
    found = {"accuracy_percent": 100 * float(right.mean())}
    if kinds is not None:
        _check_lengths(answers, kinds, "kinds")
        if kinds.max() >= len(names):
            raise ValueError(f"a question has the kind {kinds.max()}, but there are names of {len(names)} kinds only.")
        found |= {f"accuracy_percent/{names[kind]}": 100 * float(right[kinds == kind].mean())
                  for kind in np.unique(kinds[kinds >= 0]).tolist()}  # fmt: skip
    return found


def accuracy_of_choice(
    scores: Float[np.ndarray, "questions options"], labels: Int[np.ndarray, " _"]
) -> dict[str, float]:
    """`accuracy_percent` of the option with the highest score, in which a tie with the right one counts as wrong.

    MSR-VTT multiple choice is this with `similarity_to_options`. (The official code takes the first of equal options.)

    Raises:
        ValueError: there are no questions, not as many labels, a label is no option, or a score is not a number.
    """
    _check_lengths(scores, labels, "labels")
    if np.isnan(scores).any():
        raise ValueError(f"the scores of question {np.isnan(scores).any(1).argmax()} have NaN: it chooses nothing.")
    wrong = labels[(labels < 0) | (labels >= scores.shape[1])]
    if len(wrong):
        raise ValueError(
            f"a label is {wrong[0]}, expected one of the {scores.shape[1]} options (0 to {scores.shape[1] - 1})."
        )
    own = np.arange(scores.shape[1]) == labels[:, None]
    best_other = np.where(own, -np.inf, scores).max(axis=1)
    return {"accuracy_percent": 100 * float((scores[own] > best_other).mean())}


def similarity_to_options(
    videos: Float[np.ndarray, "videos dim"], options: Float[np.ndarray, "videos options dim"]
) -> Float[np.ndarray, "videos options"]:
    """Cosine of a video's feature with those of its own options: how a retrieval model chooses (`run_msrvtt_mc.py`).

    Raises:
        ValueError: a feature has the length 0.
    """
    lengths = np.linalg.norm(videos, axis=-1)[:, None], np.linalg.norm(options, axis=-1)
    if not all(length.all() for length in lengths):
        raise ValueError("a feature has the length 0, so it has no direction: check that the model is trained.")
    return np.einsum("vd,vod->vo", videos / lengths[0], options / lengths[1][..., None])


def count_error(predicted: Float[np.ndarray, " _"], counts: Int[np.ndarray, " _"]) -> dict[str, float]:
    """`mean_squared_error` of counts, and `accuracy_percent` of them.

    Predictions are rounded and brought into `COUNTS`, as answers of TGIF-QA are (recalled, not re-read).

    Raises:
        ValueError: there are no questions, not as many counts, or a prediction is not a number.
    """
    _check_lengths(predicted, counts, "counts")
    if np.isnan(predicted).any():
        raise ValueError(f"the prediction for question {np.isnan(predicted).argmax()} is NaN: it counts nothing.")
    rounded = np.clip(np.rint(predicted), *COUNTS).astype(np.int64)
    error = {"mean_squared_error": float(((rounded - counts) ** 2).mean())}
    return error | accuracy(rounded, counts)


def _check_lengths(answers: np.ndarray, others: np.ndarray, what: str) -> None:
    if not len(answers) or len(answers) != len(others):
        raise ValueError(
            f"there are {len(answers)} answers and {len(others)} {what}, expected one of each per question."
        )
