"""What LF-VILA minimises beside InfoNCE: pairs of clips and sentences of one video that are near each other in time."""

import math
from itertools import permutations, product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

IGNORED = -100


class Draw(NamedTuple):
    """The times that a step looks at: of queries, of candidates in the same row, and one that other rows take."""

    keys: Int[Tensor, "rows keys"]
    values: Int[Tensor, "rows values"]
    other: Int[Tensor, "rows 1"]


def draw_times(rows: int, times: int, *, keys: int, values: int, device: torch.device | str = "cpu") -> Draw:
    """Random times for each row, keys different from one another, and so values.

    Raises:
        ValueError: there are fewer times than are drawn.
    """
    if max(keys, values) > times:
        raise ValueError(f"keys ({keys}) and values ({values}) are drawn from {times} clips: lower them to that.")
    return Draw(*(torch.rand(rows, times, device=device).argsort(1)[:, :count] for count in (keys, values, 1)))


def temporal_contrast(
    video: Float[Tensor, "rows times dim"],
    text: Float[Tensor, "rows times dim"],
    scale: float,
    draw: Draw,
    *,
    others: int,
    roll_from: int = 1,
) -> Float[Tensor, ""]:
    """Multimodal temporal contrast (MTC): a sentence is to be nearer to the clip next to it in time than to others.

    Both directions, added, each a mean over the keys. A key's sentence is compared with the clips at the values of its
    row, of which the nearest in time is the positive, and with clips of `others` other rows. A key whose first and last
    value are equally far is left out: of two values, a tie.

    Args:
        video: unit features of the clips of each video, in order.
        text: unit features of the sentences of each, likewise.
        scale: inverse temperature.
        draw: the times.
        others: candidates of other rows; row i takes them from the rows i - roll_from, i - roll_from - 1, and so on.
        roll_from: 1; the released code has 0, so that one of the "others" is of the same video, and in one case of
            `times` the positive itself.

    Raises:
        ValueError: there are too few rows.
    """
    if others + roll_from > len(video):
        raise ValueError(f"a batch of {len(video)} has no clips of {others} other videos: take a larger one.")
    distance = (draw.values[:, None] - draw.keys[:, :, None]).abs()
    nearest = distance.argmin(2).masked_fill(distance[..., 0] == distance[..., -1], IGNORED)

    def one_way(queries: Tensor, candidates: Tensor) -> Tensor:
        elsewhere = _at(candidates, draw.other)
        rolled = [elsewhere.roll(by, 0) for by in range(roll_from, roll_from + others)]
        logits = scale * _at(queries, draw.keys) @ torch.cat([_at(candidates, draw.values), *rolled], dim=1).mT
        total = F.cross_entropy(logits.flatten(0, 1), nearest.flatten(), ignore_index=IGNORED, reduction="sum")
        return total / (nearest != IGNORED).sum().clamp(min=1)  # torch's mean over no key is NaN

    return one_way(text, video) + one_way(video, text)


def _at(features: Float[Tensor, "rows times dim"], times: Int[Tensor, "rows drawn"]) -> Float[Tensor, "rows drawn dim"]:
    return features.gather(1, times[:, :, None].expand(-1, -1, features.shape[2]))


def perfect_loss(times: int, scale: float, *, values: int, others: int, roll_from: int) -> float:
    """What `temporal_contrast` is on average where each clip is like its sentence (cosine 1) and like no other (0).

    The mean over all draws of a key, its values and the time of the others. It is not 0 where a key is not
    among its values.
    """
    total, weight = 0.0, 0
    for key, drawn, other in product(range(times), permutations(range(times), values), range(times)):
        distance = [abs(value - key) for value in drawn]
        if distance[0] == distance[-1]:
            continue
        same_row = [other] if roll_from == 0 and others else []
        alike = [scale * (time == key) for time in (*drawn, *same_row)] + [0.0] * (others - len(same_row))
        positive = alike[distance.index(min(distance))]
        total += math.log(sum(math.exp(x - positive) for x in alike))
        weight += 1
    return 2 * total / weight  # both directions


def mismatched(
    tokens: Float[Tensor, "batch tokens dim"],
) -> tuple[Float[Tensor, "batch tokens dim"], Int[Tensor, " batch"]]:
    """Videos of which the first half has gone to the next row of that half, and whether each is at its own row (1).

    Raises:
        ValueError: the half is a single row, whose video has nowhere to go.
    """
    half = len(tokens) // 2
    if half < 2:
        raise ValueError(f"a batch of {len(tokens)} has no two videos to exchange: take at least 4.")
    own = torch.arange(len(tokens), device=tokens.device) >= half
    return torch.cat([tokens[:half].roll(1, 0), tokens[half:]]), own.long()


def span_loss(logits: Float[Tensor, "batch frames 2"], labels: Int[Tensor, "batch frames"]) -> Float[Tensor, ""]:
    """Cross-entropy of frames that matter (1) or not (0), both kinds with the same total weight in each video.

    A video of n frames weighs a frame by n / 2 over the number of its kind, as the official code does (32 * 0.5 / N).
    """
    frames = labels.shape[1]
    mattering = labels.sum(1, keepdim=True)
    alike = torch.where(labels == 1, mattering, frames - mattering)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return (loss * (frames / 2 / alike).flatten()).mean()
