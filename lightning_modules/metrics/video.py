"""Numbers reported for videos: how near they are to the truth, and how far their distribution is from real ones.

`fvd_world` is a Fréchet distance between features of a small classifier of clips of our own. It is no FVD, which is the
same distance between features of one certain I3D, and needs its weights.
"""

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from lightning_modules.metrics.generation import fd_world

SMALLEST_MSE = 1e-10  # 100 dB


def psnr(
    video: Float[Tensor, "batch 3 frames h w"],
    truth: Float[Tensor, "batch 3 frames h w"],
    where: Bool[Tensor, "#batch 1 #frames #h #w"] | None = None,
) -> Float[Tensor, " batch"]:
    """Peak signal-to-noise ratio of each clip in dB, at most 100.

    Args:
        video: pixels from 0 to 1.
        truth: likewise.
        where: the pixels that count; all by default.
    """
    return -10 * masked_mse(video, truth, where).clamp_min(SMALLEST_MSE).log10()


def masked_mse(
    video: Float[Tensor, "batch 3 frames h w"],
    truth: Float[Tensor, "batch 3 frames h w"],
    where: Bool[Tensor, "#batch 1 #frames #h #w"] | None = None,
) -> Float[Tensor, " batch"]:
    """Mean squared difference of each clip over the pixels that count, see `psnr`.

    Raises:
        ValueError: in a clip no pixel counts.
    """
    squares = (video - truth).square()
    if where is None:
        return squares.flatten(1).mean(1)
    weights = where.expand_as(squares).flatten(1).to(squares)
    if not weights.any(1).all():
        raise ValueError("there is a clip in which no pixel counts: all are given, so nothing can be compared.")
    return (squares.flatten(1) * weights).sum(1) / weights.sum(1)


def ssim(
    video: Float[Tensor, "batch 3 frames h w"], truth: Float[Tensor, "batch 3 frames h w"]
) -> Float[Tensor, " batch"]:
    """Structural similarity of each clip, the mean over its frames (torchmetrics, window of 11 pixels)."""
    frames = [rearrange(x, "b c t h w -> (b t) c h w") for x in (video, truth)]
    each = structural_similarity_index_measure(*frames, data_range=1.0, reduction="none")
    return each.view(len(video), -1).mean(1)


def fvd_world(
    generated: Float[np.ndarray, "generated features"], real: Float[np.ndarray, "real features"], seed: int = 0
) -> dict[str, float]:
    """`fvd_world` and, beside it, that of other real clips, `fvd_world_real`; see `generation.fd_world`."""
    found = fd_world(generated, real, seed)
    return {name.replace("fd_world", "fvd_world"): value for name, value in found.items()}
