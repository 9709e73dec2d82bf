"""Numbers reported for questions about videos (numpy in, Python floats out; no torch).

An answer is right if it is the label; a label below 0 stands for an answer that cannot be given, so it is never right,
and counts. HD-VILA and LF-VILA report the accuracy over all questions (`evaluate_tgif_qa`, `trainer_qa_*`).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

COUNTS = (1, 10)  # least and greatest answer to a question of TGIF-QA's task `count`


def accuracy(
    answers: Int[np.ndarray, " questions"],
    labels: Int[np.ndarray, " questions"],
    kinds: Int[np.ndarray, " questions"] | None = None,
    names: Sequence[str] = (),
) -> dict[str, float]:
    """`accuracy_percent` of all questions, and `accuracy_percent/<kind>` of each kind that was asked.

    Args:
        answers: number of the answer, option or class that was given.
        labels: number of the right one; below 0 if it cannot be given.
        kinds: of the questions, indices into `names`.
        names: of the kinds, such as what, who, how, where and when of MSRVTT-QA.

    Raises:
        ValueError: there are no questions, not as many labels or kinds, or a kind without a name.
    """
    ...


def chosen(scores: Float[np.ndarray, "questions options"], labels: Int[np.ndarray, " questions"]) -> dict[str, float]:
    """`accuracy` of the option with the highest score; a tie with the right one counts as wrong.

    MSR-VTT multiple choice is this with `similarity_to_options`.

    Raises:
        ValueError: a score is not a number, or a label is no option.
    """
    ...


def similarity_to_options(
    videos: Float[np.ndarray, "videos dim"], options: Float[np.ndarray, "videos options dim"]
) -> Float[np.ndarray, "videos options"]:
    """Cosine of a video's feature and those of its own options: how a retrieval model answers (`run_msrvtt_mc.py`).

    Raises:
        ValueError: the features do not fit, or one has the length 0.
    """
    ...


def count_error(predicted: Float[np.ndarray, " questions"], counts: Int[np.ndarray, " questions"]) -> dict[str, float]:
    """`mean_squared_error` of counts, predictions rounded and brought into `COUNTS`, as TGIF-QA is scored.

    Raises:
        ValueError: there are no questions, not as many counts, or a prediction is not a number.
    """
    ...
