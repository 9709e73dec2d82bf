"""Discriminators in the form of StyleGAN's, over pictures or over clips: one logit each.

Official: videogvt/models/stylegan_discriminator_2d.py and stylegan_discriminator_3d.py. No norms.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from lightning_modules.settings import Count
from lightning_modules.video_tokens.convolution import conv

SLOPE = 0.2


class DownBlock(nn.Module):
    """A residual block that halves the size of a clip; its two branches are averaged so that their variance stays."""

    def __init__(self, depth: int, inputs: int, outputs: int, *, blur: bool = False):
        super().__init__()
        self.halve = blurred if blur else halved
        self.conv1 = conv(depth, inputs, inputs, bias=True)
        self.shortcut = conv(depth, inputs, outputs, kernel=1)
        self.conv2 = conv(depth, inputs, outputs, bias=True)

    def forward(self, x: Float[Tensor, "batch inputs t h w"]) -> Float[Tensor, "batch outputs t2 h2 w2"]:
        """Half as large, also in time where it sees more than one frame; a last odd frame counts alone."""
        depth = self.conv1.kernel_size[0]
        y = F.leaky_relu(self.conv2(self.halve(F.leaky_relu(self.conv1(x), SLOPE), depth)), SLOPE)
        return (self.shortcut(self.halve(x, depth)) + y) / math.sqrt(2)


class Discriminator(nn.Module):
    """How real clips look.

    Args:
        depth: of kernels, in frames; 1 for a discriminator of single frames.
        width: channels of the first layer.
        multipliers: channels of each block, in units of `width`.
        frames: of a clip.
        size: height and width of a frame.
        blur: whether blocks halve with `blurred` in place of `halved`.
    """

    def __init__(
        self,
        *,
        depth: Count,
        width: Count,
        multipliers: Annotated[Sequence[Count], Field(min_length=1)],
        frames: Count,
        size: Count,
        blur: bool = False,
    ):
        super().__init__()
        channels = [width * m for m in multipliers]
        self.depth = depth
        self.stem = conv(depth, 3, width, bias=True)
        self.blocks = nn.ModuleList(
            DownBlock(depth, before, after, blur=blur)
            for before, after in zip([width, *channels[:-1]], channels, strict=True)
        )
        self.last = conv(depth, channels[-1], channels[-1], bias=True)
        for _ in channels:
            size, frames = -(-size // 2), -(-frames // 2)
        places = size**2 * (frames if depth > 1 else 1)
        self.hidden = nn.Linear(channels[-1] * places, channels[-1])
        self.logit = nn.Linear(channels[-1], 1)
        for name, parameter in self.named_parameters():
            (nn.init.zeros_ if name.endswith("bias") else nn.init.xavier_uniform_)(parameter)

    def forward(self, video: Float[Tensor, "batch 3 frames height width"]) -> Float[Tensor, " logits"]:
        """A logit of each clip, or of each frame of each clip."""
        if self.depth == 1:
            video = video.transpose(1, 2).flatten(0, 1).unsqueeze(2)
        x = F.leaky_relu(self.stem(video), SLOPE)
        for block in self.blocks:
            x = block(x)
        x = F.leaky_relu(self.last(x), SLOPE).permute(0, 2, 3, 4, 1).flatten(1)  # channels last, as Flax flattens
        return self.logit(F.leaky_relu(self.hidden(x), SLOPE))[:, 0]


def halved(x: Float[Tensor, "batch channels t h w"], depth: int) -> Float[Tensor, "batch channels t2 h2 w2"]:
    """Means over 2 x 2 (x 2) values; at odd ends over those that are there (TensorFlow's SAME)."""
    frames, height, width = (min(2, length) for length in x.shape[2:])
    return F.avg_pool3d(x, (frames if depth > 1 else 1, height, width), ceil_mode=True, count_include_pad=False)


def blurred(x: Float[Tensor, "batch channels t h w"], depth: int) -> Float[Tensor, "batch channels t2 h2 w2"]:
    """Every second value along each axis, blurred with (1, 3, 3, 1) / 8 before (1904.11486); zeros beyond borders."""
    blur = x.new_tensor([1.0, 3.0, 3.0, 1.0]) / 8
    for axis, length in enumerate(x.shape[2:], 2):
        if length == 1 or (axis == 2 and depth == 1):
            continue
        x = x.movedim(axis, -1)
        lines = F.conv1d(F.pad(x.reshape(-1, 1, length), (1, 1 + length % 2)), blur.view(1, 1, -1), stride=2)
        x = lines.view(*x.shape[:-1], -1).movedim(-1, axis)
    return x
