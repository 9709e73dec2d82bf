"""Ten tasks of video generation: what of a clip is given, how the rest is filled up, and which tokens that concerns.

Official: videogvt/train_lib/cond_utils.py and task_registry.py. A condition is a part of the clip, filled up to a whole
one, so that it can become tokens itself; a token is a condition where the part that it stands for was given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

MASK, SEPARATOR, FULL_GENERATION, FRAME_PREDICTION, FRAME_INTERPOLATION, OUTPAINTING, INPAINTING, PAD = (
    -1, -2, -3, -4, -5, -6, -7, -15,
)  # fmt: skip  # of the vocabulary, counted from its end
Grid = tuple[int, int, int]


class Condition(NamedTuple):
    """What is given.

    Attributes:
        video: the given part, filled up to a whole clip.
        pixels: where it is.
        tokens: where tokens are a condition.
    """

    video: Float[Tensor, "batch 3 frames height width"]
    pixels: Bool[Tensor, "1 1 #frames #height #width"]
    tokens: Bool[Tensor, "1 #t #h #w"]


Conditions = Callable[[Tensor, Grid, int], Condition]


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        title: in words.
        token: that tells it to the transformer; the code sends that of outpainting for inpainting as well (its comment
            calls this an old fault).
        condition: gives the condition of clips, for a grid of tokens and a number of given frames; none where nothing
            is given.
        with_class: whether the class of a clip is told.
    """

    title: str
    token: int
    condition: Conditions | None = None
    with_class: bool = False


def first_frames(video: Tensor, grid: Grid, given: int) -> Condition:
    """The first frames, the last of them repeated. One latent frame is the condition, however many are given."""
    frames = video.shape[2]
    _fewer(given, frames, "first")
    filled = torch.cat([video[:, :, :given], video[:, :, given - 1 : given].expand(-1, -1, frames - given, -1, -1)], 2)
    return Condition(filled, _along(frames, 2, 5) < given, _along(grid[0], 1, 4) < 1)


def both_ends(video: Tensor, grid: Grid, given: int) -> Condition:
    """The first and the last frames, and between them the two innermost of these faded into one another."""
    frames = video.shape[2]
    _fewer(2 * given, frames, "first and last")
    start, end, between = (
        video[:, :, given - 1 : given],
        video[:, :, frames - given : frames - given + 1],
        frames - 2 * given,
    )
    share = torch.arange(1, between + 1, device=video.device).view(1, 1, -1, 1, 1) / (between + 1)
    filled = torch.cat([video[:, :, :given], start + (end - start) * share, video[:, :, frames - given :]], 2)
    time, latent = _along(frames, 2, 5), _along(grid[0], 1, 4)
    return Condition(filled, (time < given) | (time >= frames - given), (latent < 1) | (latent >= grid[0] - 1))


def inner_half(*, rows: bool, columns: bool) -> Conditions:
    """The middle half along height, along width, or along both; the outermost given pixels are repeated around it."""

    def condition(video: Tensor, grid: Grid, given: int) -> Condition:
        height, width = video.shape[3:]
        pixels = _middle(height, 3, 5, rows) & _middle(width, 4, 5, columns)
        top, left = (height // 4 if rows else 0), (width // 4 if columns else 0)
        inner = video[..., top : height - top, left : width - left] if rows or columns else video
        filled = F.pad(inner.flatten(0, 1), (left, left, top, top, 0, 0), mode="replicate").view_as(video)
        return Condition(filled, pixels, _middle(grid[1], 2, 4, rows) & _middle(grid[2], 3, 4, columns))

    return condition


def moving_strip(video: Tensor, grid: Grid, given: int) -> Condition:
    """A vertical strip, half as wide as the frame, that moves from left to right; black beside it."""
    pixels = _moving(video.shape[2], video.shape[4], 2, 5)
    return Condition(video * pixels, pixels, _moving(grid[0], grid[2], 1, 4))


def around_centre(video: Tensor, grid: Grid, given: int) -> Condition:
    """All but the central half by half, which is black."""
    pixels = ~(_middle(video.shape[3], 3, 5) & _middle(video.shape[4], 4, 5))
    return Condition(video * pixels, pixels, ~(_middle(grid[1], 2, 4) & _middle(grid[2], 3, 4)))


def around_moving_box(video: Tensor, grid: Grid, given: int) -> Condition:
    """All but a box, half by half, that moves from left to right at half height and is black."""
    pixels = ~(_moving(video.shape[2], video.shape[4], 2, 5) & _middle(video.shape[3], 3, 5))
    return Condition(video * pixels, pixels, ~(_moving(grid[0], grid[2], 1, 4) & _middle(grid[1], 2, 4)))


TASKS = {
    "fp": Task("frame prediction", FRAME_PREDICTION, first_frames),
    "fi": Task("frame interpolation", FRAME_INTERPOLATION, both_ends),
    "opc": Task("outpainting from the centre", OUTPAINTING, inner_half(rows=True, columns=True)),
    "opv": Task("outpainting from a vertical strip", OUTPAINTING, inner_half(rows=False, columns=True)),
    "oph": Task("outpainting from a horizontal strip", OUTPAINTING, inner_half(rows=True, columns=False)),
    "opd": Task("outpainting from a moving strip", OUTPAINTING, moving_strip),
    "ipc": Task("inpainting of the centre", INPAINTING, around_centre),
    "ipd": Task("inpainting of a moving box", INPAINTING, around_moving_box),
    "cg": Task("class-conditional generation", FULL_GENERATION, with_class=True),
    "cfp": Task("class-conditional frame prediction", FRAME_PREDICTION, first_frames, with_class=True),
    "unc": Task("unconditional generation", FULL_GENERATION),  # a baseline, none of the ten
}


def _along(length: int, axis: int, axes: int) -> Tensor:
    """0 to `length` - 1 along one of so many axes."""
    return torch.arange(length).view([-1 if a == axis else 1 for a in range(axes)])


def _middle(length: int, axis: int, axes: int, really: bool = True) -> Tensor:
    at = _along(length, axis, axes)
    return (at >= length // 4) & (at < length * 3 // 4) if really else torch.ones_like(at, dtype=torch.bool)


def _moving(frames: int, width: int, time: int, axes: int) -> Tensor:
    """Half of the width, from its left end in the first frame to its right end in the last."""
    start = torch.linspace(0, width // 2, frames).round().view([-1 if a == time else 1 for a in range(axes)])
    at = _along(width, axes - 1, axes)
    return (at >= start) & (at < start + width // 2)


def _fewer(given: int, frames: int, which: str) -> None:
    if not 0 < given < frames:
        raise ValueError(
            f"given_frames: the {which} frames ({given} in all) must be fewer than those of the clip ({frames})."
        )
