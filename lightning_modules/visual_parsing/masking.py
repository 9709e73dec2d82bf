"""Which visual tokens are hidden from the multimodal Transformer: a random one and those that it attends to most.

A picture repeats itself: what one token of a thing shows, its neighbours show as well. A token that is hidden
alone can be copied from them; if all that belong together are hidden, only the text can tell (the paper's figure, b).
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.settings import STRICT, Count, Natural

How = Literal["guided", "random", "none"]
NEVER = -1.0  # below every weight and every random number


class VisualMasking(TypedDict):
    """`pivots` tokens are drawn, and with each are hidden the `neighbours` that it attends to most.

    `how`: `guided` by the visual weights; `random`, as many tokens, none of them chosen by another; `none`.
    """

    __pydantic_config__ = STRICT
    how: How
    pivots: Count
    neighbours: Natural


def choose(
    masking: VisualMasking,
    weights: Float[Tensor, "batch tokens tokens"] | None,
    there: Bool[Tensor, "batch tokens"],
) -> Bool[Tensor, "batch tokens"]:
    """The tokens that are hidden: `pivots` x (1 + `neighbours`) of each picture that has so many.

    A pivot is no neighbour of its own, and no token is chosen twice: a later pivot takes what is left.

    Args:
        masking: see `VisualMasking`.
        weights: visual weights, a row for each token that attends; null for an encoder that has none.
        there: tokens that show a part of the picture.

    Raises:
        ValueError: masking is guided, and there are no weights; or all tokens would be hidden.
    """
    hidden = torch.zeros_like(there)
    if masking["how"] == "none":
        return hidden
    count = masking["pivots"] * (1 + masking["neighbours"])
    if count >= there.shape[1]:
        raise ValueError(
            f"model.visual_masking hides {masking['pivots']} x (1 + {masking['neighbours']}) = {count} visual tokens, "
            f"but a picture has {there.shape[1]}: lower pivots or neighbours."
        )
    if masking["how"] == "random":
        return _first(torch.rand(there.shape, device=there.device), there, count)
    if weights is None:
        raise ValueError(
            "model.visual_masking.how is guided, but the visual encoder has no attention: set it to random or none, or "
            "model.visual.kind to swin."
        )
    for _ in range(masking["pivots"]):
        left = there & ~hidden
        pivot = _first(torch.rand(there.shape, device=there.device), left, 1)
        hidden = hidden | pivot | neighbours(weights, pivot.int().argmax(1), left, masking["neighbours"])
    return hidden


def neighbours(
    weights: Float[Tensor, "batch tokens tokens"],
    pivot: Int[Tensor, " batch"],
    allowed: Bool[Tensor, "batch tokens"],
    count: int,
) -> Bool[Tensor, "batch tokens"]:
    """The allowed tokens that a pivot attends to most, without itself and those that it does not attend to."""
    rows = torch.arange(len(weights), device=weights.device)
    attended = weights[rows, pivot]
    others = allowed & (attended > 0)
    others[rows, pivot] = False
    return _first(attended, others, count)


def _first(
    scores: Float[Tensor, "batch tokens"], allowed: Bool[Tensor, "batch tokens"], count: int
) -> Bool[Tensor, "batch tokens"]:
    """The `count` allowed tokens with the highest scores, or all that are allowed."""
    found = torch.zeros_like(allowed)
    best = scores.masked_fill(~allowed, NEVER).topk(min(count, scores.shape[1]), dim=1).indices
    return found.scatter(1, best, True) & allowed
