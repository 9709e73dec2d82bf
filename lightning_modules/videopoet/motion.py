"""Where the thing in a clip is, and which way it goes: measured on pixels, for data and for what a network makes.

What differs from the background is the thing. The background of the captioned world's sounding things is always the
same; it is taken from the judged clips themselves, as the median of each pixel over all of them.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

DIFFERENT = 0.1  # of the range of a colour: smaller differences from the background are none


def background(video: Float[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "3 h w"]:
    """The median of each pixel over clips and frames."""
    return video.transpose(1, 2).flatten(0, 1).median(0).values


def centres(
    video: Float[Tensor, "batch 3 frames h w"], behind: Float[Tensor, "3 h w"]
) -> Float[Tensor, "batch frames 2"]:
    """Centre of what is not background in each frame, from the left and from the top, as shares; else the middle.

    Args:
        video: clips, pixels from 0 to 1.
        behind: the background.
    """
    weight = (video - behind[None, :, None]).abs().amax(1)
    weight = weight.where(weight > DIFFERENT, 0)
    total = weight.sum((2, 3))
    found = []
    for profile in (weight.sum(2), weight.sum(3)):  # along width, along height
        at = (torch.arange(profile.shape[2], device=video.device) + 0.5) / profile.shape[2]
        found.append((profile * at).sum(2) / total.clamp_min(1e-8))
    return torch.stack(found, -1).where(total[..., None] > 0, 0.5)


def velocity(centre: Float[Tensor, "batch frames 2"]) -> Float[Tensor, "batch 2"]:
    """Shares of the frame per frame, by least squares: to the right and downwards."""
    time = torch.arange(centre.shape[1], device=centre.device) - (centre.shape[1] - 1) / 2
    return (centre * time[:, None]).sum(1) / time.square().sum()


def direction(centre: Float[Tensor, "batch frames 2"]) -> Int[Tensor, " batch"]:
    """Right, left, down or up (0 to 3): where the thing goes most."""
    x, y = velocity(centre).unbind(1)
    return torch.stack([x, -x, y, -y], 1).argmax(1)
