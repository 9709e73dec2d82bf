"""An encoder and a decoder of pictures and clips: residual convolutions over space, or over space and time.

One code for both: in the 2D networks every kernel is one frame deep, and each frame is read as a clip of its own.
Official: videogvt/models/enc_dec_2dcnn.py and enc_dec_3dcnn.py.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_modules.video_tokens.convolution import Padding, conv

NORM_EPS = 1e-6  # Flax's


class ResBlock(nn.Module):
    """Norm, swish and convolution, twice, added to what came in."""

    def __init__(self, depth: int, inputs: int, outputs: int, *, groups: int, padding: Padding):
        super().__init__()
        self.norm1, self.norm2 = norm(groups, inputs), norm(groups, outputs)
        self.conv1 = conv(depth, inputs, outputs, padding=padding)
        self.conv2 = conv(depth, outputs, outputs, padding=padding)
        self.shortcut = nn.Identity() if inputs == outputs else conv(depth, inputs, outputs, kernel=1)

    def forward(self, x: Float[Tensor, "batch inputs t h w"]) -> Float[Tensor, "batch outputs t h w"]:
        """The sum of both branches."""
        y = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(y)))


def norm(groups: int, channels: int) -> nn.GroupNorm:
    """Group norm over all frames of a clip, see `groups_of`.

    Raises:
        ValueError: the channels cannot be divided.
    """
    return nn.GroupNorm(groups_of(channels, groups), channels, eps=NORM_EPS)


def groups_of(channels: int, groups: int) -> int:
    """How many groups of channels are normalised; where there are fewer channels than groups, each is one.

    Raises:
        ValueError: the channels cannot be divided.
    """
    groups = min(groups, channels)
    if channels % groups:
        raise ValueError(
            f"{channels} channels cannot be divided into {groups} groups: make width times each of multipliers a "
            "multiple of norm_groups."
        )
    return groups


class Encoder(nn.Module):
    """Pixels to latents; averaged over 2 x 2 pixels after each level but the last, and over 2 frames where said.

    Args:
        depth: of every kernel, in frames; 1 where each frame is read alone.
        width: channels of the first level.
        multipliers: channels of each level in units of `width`.
        blocks: residual blocks of a level.
        halve_time: for each level but the last, whether the number of frames is halved after it.
        embedding_dim: of a latent.
        groups: of every group norm.
        padding: at the borders of a frame.
    """

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        halve_time: Sequence[bool],
        embedding_dim: int,
        groups: int,
        padding: Padding,
    ):
        super().__init__()
        self.halve_time = list(halve_time)
        channels = [width * m for m in multipliers]
        self.stem = conv(depth, 3, width, padding=padding)
        self.levels = nn.ModuleList(
            _blocks(depth, before, after, blocks, groups, padding)
            for before, after in zip([width, *channels[:-1]], channels, strict=True)
        )
        self.tail = _blocks(depth, channels[-1], channels[-1], blocks, groups, padding)
        self.norm = norm(groups, channels[-1])
        self.head = conv(depth, channels[-1], embedding_dim, kernel=1, bias=True)

    def forward(self, video: Float[Tensor, "batch 3 frames height width"]) -> Float[Tensor, "batch dim t h w"]:
        """Latents of a clip."""
        x = self.stem(video)
        for level, blocks in enumerate(self.levels):
            x = blocks(x)
            if level < len(self.halve_time):
                x = F.avg_pool3d(x, (2 if self.halve_time[level] else 1, 2, 2))
        return self.head(F.silu(self.norm(self.tail(x))))


class Decoder(nn.Module):
    """Latents to pixels: the encoder in reverse, with nearest neighbours and a convolution to grow.

    Args: see `Encoder`.
    """

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        halve_time: Sequence[bool],
        embedding_dim: int,
        groups: int,
        padding: Padding,
    ):
        super().__init__()
        self.double_time = list(halve_time)[::-1]
        channels = [width * m for m in multipliers][::-1]
        self.stem = conv(depth, embedding_dim, channels[0], bias=True, padding=padding)
        self.tail = _blocks(depth, channels[0], channels[0], blocks, groups, padding)
        self.levels = nn.ModuleList(
            _blocks(depth, before, after, blocks, groups, padding)
            for before, after in zip([channels[0], *channels[:-1]], channels, strict=True)
        )
        self.grow = nn.ModuleList(conv(depth, c, c, bias=True, padding=padding) for c in channels[:-1])
        self.norm = norm(groups, channels[-1])
        self.head = conv(depth, channels[-1], 3, bias=True, padding=padding)

    def forward(self, latents: Float[Tensor, "batch dim t h w"]) -> Float[Tensor, "batch 3 frames height width"]:
        """A clip, whose values may leave 0 to 1."""
        x = self.tail(self.stem(latents))
        for level, blocks in enumerate(self.levels):
            x = blocks(x)
            if level < len(self.grow):
                x = F.interpolate(x, scale_factor=(2.0 if self.double_time[level] else 1.0, 2.0, 2.0))
                x = self.grow[level](x)
        return self.head(F.silu(self.norm(x)))


def _blocks(depth: int, inputs: int, outputs: int, count: int, groups: int, padding: Padding) -> nn.Sequential:
    return nn.Sequential(
        *(ResBlock(depth, inputs if n == 0 else outputs, outputs, groups=groups, padding=padding) for n in range(count))
    )
