"""Numbers reported for flows and for clips that move by them, and `DrawnFeatures` for a distance between clips."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

FEATURES = 16


def end_point_error(
    flow: Float[Tensor, "batch steps 2 h w"], truth: Float[Tensor, "batch steps 2 h w"]
) -> Float[Tensor, "batch steps h w"]:
    """How far from where it should each vector of a flow ends, in pixels; its mean is the EPE."""
    return (flow - truth).square().sum(2).sqrt()


def absolute_error(
    video: Float[Tensor, "batch 3 frames h w"],
    truth: Float[Tensor, "batch 3 frames h w"],
    where: Bool[Tensor, "batch frames h w"] | None = None,
) -> Float[Tensor, "batch frames"]:
    """Mean absolute difference of each frame's pixels.

    Args:
        video: pixels from 0 to 1.
        truth: likewise.
        where: the pixels that count, all by default; a frame in which none does has 0.
    """
    found = (video - truth).abs().mean(1)
    if where is None:
        return found.mean((-2, -1))
    counted = where.sum((-2, -1)).clamp_min(1)
    return (found * where).sum((-2, -1)) / counted


def sharpness(video: Float[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch frames"]:
    """Mean absolute difference of neighbouring pixels in each frame: less, the more blurred it is."""
    across, down = (video.diff(dim=axis).abs().mean((1, -2, -1)) for axis in (-1, -2))
    return (across + down) / 2


class DrawnFeatures(nn.Module):
    """Features of clips by two 3-D convolutions of drawn weights, always the same; nothing is trained.

    A Fréchet distance between them says whether clips differ in mean colours and textures. It is blind to motion: each
    feature is a mean over all places and frames, so that clips that rest, or run backward, are as near as real ones. It
    is no FVD, and no number of another network can be compared with it.
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in (("first", (8, 3, 3, 4, 4)), ("second", (FEATURES, 8, 3, 3, 3))):
            weights = torch.randn(shape, generator=generator) / float(torch.Size(shape[1:]).numel()) ** 0.5
            self.register_buffer(name, weights, persistent=False)

    @torch.no_grad()
    def forward(self, video: Float[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch features"]:
        """The features of clips with pixels from 0 to 1."""
        x = F.leaky_relu(F.conv3d(video, self.first, stride=2, padding=1), 0.2)
        return F.leaky_relu(F.conv3d(x, self.second, stride=2, padding=1), 0.2).mean((2, 3, 4))
