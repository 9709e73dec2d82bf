"""Layers of the causal network (MAGVIT-v2, section 3.2): nothing in a frame depends on a later one.

A convolution sees the frames before, and zeros before the first. Of a clip that comes in parts, each layer remembers
the frames that its next part needs (`Memory`): the parts then give what the whole clip gives.

Norms are those of single frames. SEED-Voken's group norms and adaptive norms pool over all frames, so that there each
frame depends on all: `pooled` is for its checkpoints.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from lightning_modules.video_tokens.network import groups_of

EPS = 1e-6
Memory = dict[nn.Module, Tensor]  # the last frames that a layer has seen, of a clip that comes in parts


class CausalConv(nn.Conv3d):
    """A convolution that is causal along time and keeps the size of a frame, divided by the stride.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        kernel: along time, height and width.
        stride: likewise; a time stride of s makes 1 + t of 1 + s t frames.
        bias: whether there is one.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        *,
        stride: Sequence[int] = (1, 1, 1),
        bias: bool = True,
    ):
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        super().__init__(inputs, outputs, tuple(kernel), stride=tuple(stride), padding=padding, bias=bias)

    def forward(
        self, x: Float[Tensor, "batch inputs t h w"], memory: Memory | None = None
    ) -> Float[Tensor, "batch outputs t2 h2 w2"]:
        """The convolution; with a memory, of the next part of a clip."""
        before = self.kernel_size[0] - 1
        if before == 0:
            return super().forward(x)
        past = None if memory is None else memory.get(self)
        x = F.pad(x, (0, 0, 0, 0, before, 0)) if past is None else torch.cat([past, x], 2)
        if memory is not None:
            memory[self] = x[:, :, x.shape[2] - self.kernel_size[0] + self.stride[0] :]
        return super().forward(x)


class FrameNorm(nn.GroupNorm):
    """Group norm of each frame, or pooled over all frames, see `groups_of`.

    Raises:
        ValueError: the channels cannot be divided.
    """

    def __init__(self, groups: int, channels: int, *, pooled: bool = False, affine: bool = True):
        super().__init__(groups_of(channels, groups), channels, eps=EPS, affine=affine)
        self.pooled = pooled

    def forward(self, x: Float[Tensor, "batch channels t h w"]) -> Float[Tensor, "batch channels t h w"]:
        """Normalised."""
        if self.pooled or x.shape[2] == 1:
            return super().forward(x)
        return rearrange(
            super().forward(rearrange(x, "b c t h w -> (b t) c h w")), "(b t) c h w -> b c t h w", b=len(x)
        )


class AdaptiveNorm(nn.Module):
    """Group norm whose scale and shift follow from the deviation and the mean of the quantised latent.

    Args:
        latent_dim: channels of the latent.
        channels: that are normalised.
        groups: of the norm.
        pooled: whether norm, deviation and mean are over all frames.
    """

    def __init__(self, latent_dim: int, channels: int, *, groups: int, pooled: bool = False):
        super().__init__()
        self.norm = FrameNorm(groups, channels, pooled=pooled, affine=False)
        self.gamma = nn.Linear(latent_dim, channels)
        self.beta = nn.Linear(latent_dim, channels)

    def forward(
        self, x: Float[Tensor, "batch channels t2 h2 w2"], latent: Float[Tensor, "batch dim t h w"], first: bool = True
    ) -> Float[Tensor, "batch channels t2 h2 w2"]:
        """Normalised.

        Args:
            x: 1 + s (t - 1) frames, of which the first belongs to the first latent frame and each s to the next one.
            latent: what scale and shift follow from.
            first: whether the clip begins here; a later part has s t frames.
        """
        over = (2, 3, 4) if self.norm.pooled else (3, 4)
        single = latent[0, 0].numel() == 1 if self.norm.pooled else latent.shape[3] * latent.shape[4] == 1
        deviation = (latent.var(over, correction=0 if single else 1, keepdim=True) + EPS).sqrt()
        scale, shift = self._each(self.gamma, deviation), self._each(self.beta, latent.mean(over, keepdim=True))
        if scale.shape[2] > 1:
            frame = torch.arange(x.shape[2], device=x.device)
            each = (x.shape[2] - first) // (latent.shape[2] - first)
            at = -(-frame // each) if first else frame // each
            scale, shift = scale[:, :, at], shift[:, :, at]
        return scale * self.norm(x) + shift

    def _each(self, layer: nn.Linear, x: Tensor) -> Tensor:
        return layer(x.movedim(1, -1)).movedim(-1, 1)


class Grow(nn.Module):
    """Depth to space: a convolution to as many more channels as a block has pixels, which become the block's pixels.

    Along time, s frames are made of one, and the first s - 1 of a clip are dropped: 1 + t become 1 + s t.

    Args:
        depth: of the kernel, in frames.
        channels: that come in and go out.
        block: frames, height and width of a block.
        drop_second: whether the frames after the first are dropped instead, as SEED-Voken does.
    """

    def __init__(self, depth: int, channels: int, block: Sequence[int], *, drop_second: bool = False):
        super().__init__()
        self.block, self.drop_second = tuple(block), drop_second
        self.conv = CausalConv(channels, channels * block[0] * block[1] * block[2], (depth, 3, 3))

    def forward(
        self, x: Float[Tensor, "batch channels t h w"], memory: Memory | None = None, first: bool = True
    ) -> Float[Tensor, "batch channels t2 h2 w2"]:
        """Larger; `first` says whether the clip begins here."""
        time, height, width = self.block
        x = self.conv(x, memory)
        x = rearrange(x, "b (p q r c) t h w -> b c (t p) (h q) (w r)", p=time, q=height, r=width)
        if time == 1 or not first:
            return x
        return torch.cat([x[:, :, :1], x[:, :, time:]], 2) if self.drop_second else x[:, :, time - 1 :]


class CausalBlock(nn.Module):
    """Norm, swish and convolution, twice, added to what came in.

    Args:
        depth: of the kernels, in frames.
        inputs: channels that come in.
        outputs: channels that go out.
        groups: of the norms.
        pooled: see `FrameNorm`.
    """

    def __init__(self, depth: int, inputs: int, outputs: int, *, groups: int, pooled: bool = False):
        super().__init__()
        self.norm1, self.norm2 = (FrameNorm(groups, c, pooled=pooled) for c in (inputs, outputs))
        self.conv1 = CausalConv(inputs, outputs, (depth, 3, 3), bias=False)
        self.conv2 = CausalConv(outputs, outputs, (depth, 3, 3), bias=False)
        self.shortcut = None if inputs == outputs else CausalConv(inputs, outputs, (1, 1, 1), bias=False)

    def forward(
        self, x: Float[Tensor, "batch inputs t h w"], memory: Memory | None = None
    ) -> Float[Tensor, "batch outputs t h w"]:
        """The sum of both branches."""
        y = self.conv1(F.silu(self.norm1(x)), memory)
        y = self.conv2(F.silu(self.norm2(y)), memory)
        return y + (x if self.shortcut is None else self.shortcut(x))
