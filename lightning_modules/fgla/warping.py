"""Frames that follow a backward flow: one bilinear warp, and many of them as a single one.

A backward flow says for each pixel of the new frame where in the old one it comes from, right and down, in pixels:
new(p) = old(p + flow(p)). Many steps are added up to one flow (Euler), F_0->t+1(p) = F_t(p) + F_0->t(p + F_t(p)), so
that each frame is read from the first picture itself and blurred once, not once more with every step.

Pixels are gathered and weighted here, not sampled by `grid_sample`, which no emulator of a processor could confirm
(CONTRIBUTING.md). Beyond its borders a picture is mirrored, about the centres of its outermost pixels.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

Flow = Float[Tensor, "batch 2 h w"]


def warp(images: Float[Tensor, "batch channels h w"], flow: Flow) -> Float[Tensor, "batch channels h w"]:
    """Images as a backward flow moves them, with gradients for both."""
    height, width = images.shape[-2:]
    down, across = (torch.arange(n, device=flow.device, dtype=flow.dtype) for n in (height, width))
    x, y = mirrored(flow[:, 0] + across, width), mirrored(flow[:, 1] + down[:, None], height)
    left, top = (at.detach().floor().clamp(0, max(n - 2, 0)) for at, n in ((x, width), (y, height)))
    right, low = x - left, y - top  # shares of the second pixel
    flat, start = images.flatten(2), (top * width + left).long().flatten(1)
    step, line = min(1, width - 1), width * min(1, height - 1)
    corners = (
        (0, (1 - right) * (1 - low)),
        (step, right * (1 - low)),
        (line, (1 - right) * low),
        (line + step, right * low),
    )
    found = 0
    for offset, weight in corners:
        place = (start + offset)[:, None].expand(-1, flat.shape[1], -1)
        found = found + flat.gather(2, place).view_as(images) * weight[:, None]
    return found


def mirrored(at: Float[Tensor, "batch h w"], length: int) -> Float[Tensor, "batch h w"]:
    """Places from 0 to `length` - 1, those beyond mirrored about the ends."""
    last = length - 1
    if last == 0:
        return torch.zeros_like(at)
    at = at.abs() % (2 * last)
    return torch.where(at > last, 2 * last - at, at)


def further(flow: Flow, total: Flow) -> Flow:
    """One Euler step: the flow from the first frame to the next one.

    Args:
        flow: from the last frame to the next one.
        total: from the first frame to the last one.
    """
    return flow + warp(total, flow)


def accumulate(flows: Float[Tensor, "batch steps 2 h w"]) -> Float[Tensor, "batch steps 2 h w"]:
    """From the first frame to each later one, from the flows between neighbours."""
    totals = [flows[:, 0]]
    for flow in flows[:, 1:].unbind(1):
        totals.append(further(flow, totals[-1]))
    return torch.stack(totals, 1)


def animated(
    picture: Float[Tensor, "batch channels h w"], flows: Float[Tensor, "batch steps 2 h w"], *, by_frame: bool = False
) -> Float[Tensor, "batch channels steps h w"]:
    """The frames after a picture.

    Args:
        picture: the first frame.
        flows: between neighbours.
        by_frame: whether each frame is warped from the one before, which blurs it again and again, and not from the
            picture itself.
    """
    return torch.stack(list(_by_frame(picture, flows) if by_frame else _at_once(picture, flows)), 2)


def _by_frame(picture: Tensor, flows: Tensor) -> Iterator[Tensor]:
    for flow in flows.unbind(1):
        picture = warp(picture, flow)
        yield picture


def _at_once(picture: Tensor, flows: Tensor) -> Iterator[Tensor]:
    for total in accumulate(flows).unbind(1):
        yield warp(picture, total)
