"""Numbers reported for retrieval, from a matrix of similarities (numpy in, Python floats out; no torch).

A query is answered by the best-ranked item that belongs to it. Ties count against the model: the rank is 1 plus the
number of items that do not belong and are equally similar or more similar. So a model that gives the same similarity to
all items gets the worst rank, whereas sorting would rank items by the order of the files.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float, Int

RECALLS = (1, 5, 10)
BLOCK = 1024  # queries compared at once: keeps the comparisons of 60,000 captions out of memory
DUAL_SOFTMAX_SCALE = 100.0  # inverse temperature of CLIP-ViP's official code


def retrieval(
    similarity: Float[np.ndarray, "texts videos"],
    text_ids: Int[np.ndarray, " texts"] | None = None,
    video_ids: Int[np.ndarray, " videos"] | None = None,
) -> dict[str, float]:
    """`summary` of both directions, `text_to_video/...` and `video_to_text/...`.

    Args:
        similarity: the larger the more alike, float32 or float64.
        text_ids: what each text belongs to. A text and a video belong together where their ids are equal, so a video
            may have several captions, and a caption several videos. By default text i belongs to video i.
        video_ids: likewise.

    Raises:
        ValueError: see `ranks`.
    """
    texts, videos = (
        np.arange(size) if ids is None else ids
        for ids, size in zip((text_ids, video_ids), similarity.shape, strict=True)
    )
    directions = {
        "text_to_video": ranks(similarity, texts, videos),
        "video_to_text": ranks(similarity.T, videos, texts),
    }
    return {
        f"{direction}/{name}": value
        for direction, found in directions.items()
        for name, value in summary(found).items()
    }


def ranks(
    similarity: Float[np.ndarray, "queries items"],
    query_ids: Int[np.ndarray, " _"],
    item_ids: Int[np.ndarray, " _"],
) -> Int[np.ndarray, " queries"]:
    """For each query the rank, from 1, of the most similar item of its own among all others' items.

    Raises:
        ValueError: a similarity is not a number, the ids do not fit, or a query has no item of its own.
    """
    if (len(query_ids), len(item_ids)) != similarity.shape:
        raise ValueError(
            f"similarity has shape {similarity.shape}, but there are ids of {len(query_ids)} queries and of "
            f"{len(item_ids)} items."
        )
    if unanswered := np.flatnonzero(~np.isin(query_ids, item_ids)).tolist():
        raise ValueError(
            f"{len(unanswered)} queries have no item of their own, the first is query {unanswered[0]} with id "
            f"{query_ids[unanswered[0]]}: leave them out, or add their items."
        )
    found = []
    for start in range(0, len(similarity), BLOCK):
        block, ids = similarity[start : start + BLOCK], query_ids[start : start + BLOCK]
        if np.isnan(block).any():
            raise ValueError(f"similarity has NaN among queries {start} to {start + len(block) - 1}: it ranks nothing.")
        own = ids[:, None] == item_ids
        best = np.where(own, block, -np.inf).max(axis=1, keepdims=True)
        found.append(1 + ((block >= best) & ~own).sum(axis=1))
    return np.concatenate(found)


def summary(ranks: Int[np.ndarray, " queries"]) -> dict[str, float]:
    """Recall at 1, 5 and 10 in percent, median rank (of an even number the mean of the middle two) and mean rank.

    The mean of 1 / rank, in percent too, tells second places from later ones, and so varies less than recall at 1.
    """
    recalls = {f"recall_at_{k}_percent": 100 * float((ranks <= k).mean()) for k in RECALLS}
    reciprocal = {"mean_reciprocal_rank_percent": 100 * float((1 / ranks).mean())}
    return recalls | reciprocal | {"median_rank": float(np.median(ranks)), "mean_rank": float(ranks.mean())}


def dual_softmax(
    similarity: Float[np.ndarray, "texts videos"], over: Literal["texts", "videos"] = "texts"
) -> Float[np.ndarray, "texts videos"]:
    """Similarities times their softmax over all texts of the test set (or all videos), in float64: an extra.

    It looks at all queries together to answer one, which a search engine cannot, so it is never reported as retrieval.
    CLIP-ViP's official code takes `over="texts"` and reports both directions from that one matrix. For text to video
    this is the dual softmax (queries compete for a video). Transposed for video to text it is none: the softmax is then
    over the candidates of each query, and x exp(100 x) grows with x, so that positive similarities keep their ranks;
    `over="videos"` is the dual softmax of that direction. A negative similarity is *raised* by a small factor; the
    official code does not mind.
    """
    axis = ("texts", "videos").index(over)
    logits = DUAL_SOFTMAX_SCALE * similarity.astype(np.float64)
    weights = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return similarity * weights / weights.sum(axis=axis, keepdims=True)


def blind_ceiling(groups: Int[np.ndarray, " _"], answers: Int[np.ndarray, " _"]) -> float:
    """The largest share of queries that can be answered rightly by whoever sees a query's group alone, in (0, 1].

    The one best answer to a group is its most frequent one: for clips of two captions that differ in direction only,
    as often one as the other, a pooling that is blind to the order of frames reaches 0.5.

    Args:
        groups: of each query, what can be told of it.
        answers: of each query, the right one.

    Raises:
        ValueError: there are no queries, or not as many answers.
    """
    if not len(groups) or len(groups) != len(answers):
        raise ValueError(f"there are {len(groups)} groups and {len(answers)} answers, expected one of each per query.")
    _, group = np.unique(groups, return_inverse=True)
    kinds, answer = np.unique(answers, return_inverse=True)
    counts = np.zeros((group.max() + 1, len(kinds)), np.int64)
    np.add.at(counts, (group, answer), 1)
    return float(counts.max(axis=1).sum() / len(group))
