"""The generator whose pictures a text changes: the synthesis network of StyleGAN2 (Karras et al., 1912.04958).

HD-VILA edits pictures in the codes of a trained StyleGAN (supplement, section D.3). Parameters carry the names of the
port to PyTorch in which such generators are passed on (rosinality/stylegan2-pytorch, entry `g_ema` of a checkpoint).
Read `StyleGenerator.forward` first.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_modules.layers.published import load_strictly, read_checkpoint
from lightning_modules.settings import Count

BLUR = (1.0, 3.0, 3.0, 1.0)
SLOPE, GAIN = 0.2, math.sqrt(2)  # of the leaky ReLU, and what it is multiplied with


class EqualLinear(nn.Module):
    """A linear layer whose weight is divided by the root of its inputs when it is used (1710.10196)."""

    def __init__(self, inputs: int, outputs: int, bias: float):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs)), nn.Parameter(torch.full((outputs,), bias))

    def forward(self, x: Float[Tensor, "batch i"]) -> Float[Tensor, "batch o"]:
        """The affine map."""
        return F.linear(x, self.weight / math.sqrt(self.weight.shape[1]), self.bias)


class ModulatedConv(nn.Module):
    """A convolution whose input channels a code scales; the scale of the output is then divided out (`demodulate`)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, style_dim: int, *, demodulate: bool = True, double: bool = False
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, kernel, kernel))
        self.modulation = EqualLinear(style_dim, inputs, bias=1.0)
        self.demodulate, self.double = demodulate, double
        if double:
            self.blur = Blur()

    def forward(self, x: Float[Tensor, "batch i h w"], code: Float[Tensor, "batch s"]) -> Float[Tensor, "batch o H W"]:
        """A map of the same sides, or of twice the sides (`double`)."""
        weight, scale = self.weight[0] / math.sqrt(self.weight[0, 0].numel()), self.modulation(code)
        x = x * scale[:, :, None, None]
        if self.double:
            x = self.blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), (1, 1))
        else:
            x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        if self.demodulate:
            x = x * (scale.square() @ weight.square().sum((2, 3)).T + 1e-8).rsqrt()[:, :, None, None]
        return x


class Blur(nn.Module):
    """The filter after which a map of twice the sides has no gaps."""

    def __init__(self):
        super().__init__()
        taps = torch.tensor(BLUR)
        self.register_buffer("kernel", 4 * taps[:, None] * taps / taps.sum() ** 2)

    def forward(self, x: Float[Tensor, "batch c h w"], pad: tuple[int, int]) -> Float[Tensor, "batch c H W"]:
        """The filtered map, after zeros were put before and behind it."""
        taps = self.kernel.expand(x.shape[1], 1, -1, -1)
        return F.conv2d(F.pad(x, (*pad, *pad)), taps, groups=x.shape[1])


class StyledConv(nn.Module):
    """A modulated convolution, fixed noise, and an activated bias."""

    def __init__(self, inputs: int, outputs: int, style_dim: int, *, double: bool = False):
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, style_dim, double=double)
        self.noise, self.activate = nn.Module(), nn.Module()
        self.noise.weight = nn.Parameter(torch.zeros(1))
        self.activate.bias = nn.Parameter(torch.zeros(outputs))

    def forward(
        self, x: Float[Tensor, "batch i h w"], code: Float[Tensor, "batch s"], noise: Float[Tensor, "1 1 H W"]
    ) -> Float[Tensor, "batch o H W"]:
        """The activated map."""
        x = self.conv(x, code) + self.noise.weight * noise
        return GAIN * F.leaky_relu(x + self.activate.bias[:, None, None], SLOPE)


class ToRgb(nn.Module):
    """What a level adds to the picture of the level before, which is brought to twice its sides."""

    def __init__(self, inputs: int, style_dim: int, *, first: bool):
        super().__init__()
        if not first:
            self.upsample = Blur()
        self.conv = ModulatedConv(inputs, 3, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(
        self, x: Float[Tensor, "batch i h w"], code: Float[Tensor, "batch s"], before: Tensor | None
    ) -> Float[Tensor, "batch 3 h w"]:
        """The picture up to this level."""
        picture = self.conv(x, code) + self.bias
        if before is None:
            return picture
        spread = before.new_zeros(*before.shape[:2], 2 * before.shape[2], 2 * before.shape[3])
        spread[:, :, ::2, ::2] = before
        return picture + self.upsample(spread, (2, 1))


class StyleGenerator(nn.Module):
    """Codes to pictures.

    The network from z to codes, which editing does not use, is not built.

    Args:
        size: side of the pictures.
        style_dim: length of a code.
        widths: channels of each level, each of twice the sides of the one before. Nine make StyleGAN2's pictures of
            1024 pixels of a first map of 4 x 4.

    Raises:
        ValueError: the size is not the side of a first map times a power of two.
    """

    def __init__(self, *, size: Count, style_dim: Count, widths: Sequence[Count]):
        super().__init__()
        levels = len(widths)
        self.start, self.size, self.style_dim, self.codes = size >> (levels - 1), size, style_dim, 2 * levels
        if self.start << (levels - 1) != size or not self.start:
            raise ValueError(f"size ({size}) must be a multiple of {1 << (levels - 1)}: widths has {levels} levels.")
        self.input = nn.Module()
        self.input.input = nn.Parameter(torch.randn(1, widths[0], self.start, self.start))
        self.conv1 = StyledConv(widths[0], widths[0], style_dim)
        self.to_rgb1 = ToRgb(widths[0], style_dim, first=True)
        self.convs, self.to_rgbs, self.noises = nn.ModuleList(), nn.ModuleList(), nn.Module()
        for before, width in pairwise(widths):
            self.convs += [StyledConv(before, width, style_dim, double=True), StyledConv(width, width, style_dim)]
            self.to_rgbs.append(ToRgb(width, style_dim, first=False))
        for number in range(2 * levels - 1):
            side = self.start << ((number + 1) // 2)
            self.noises.register_buffer(f"noise_{number}", torch.randn(1, 1, side, side))

    def forward(
        self, codes: Float[Tensor, "batch codes s"], first: Float[Tensor, "batch c h w"] | None = None
    ) -> Float[Tensor, "batch 3 size size"]:
        """Pictures of codes, one for each convolution and one for the last picture (the space W+).

        Args:
            codes: see above; each level's picture shares a code with the next level's first convolution.
            first: what is added to the constant that is the first map; none in StyleGAN2.
        """
        noises = dict(self.noises.named_buffers())
        x = self.input.input.expand(len(codes), -1, -1, -1)
        x = x if first is None else x + first
        x = self.conv1(x, codes[:, 0], noises["noise_0"])
        picture = self.to_rgb1(x, codes[:, 1], None)
        for level, to_rgb in enumerate(self.to_rgbs):
            for number in (2 * level, 2 * level + 1):
                x = self.convs[number](x, codes[:, number + 1], noises[f"noise_{number + 1}"])
            picture = to_rgb(x, codes[:, 2 * level + 3], picture)
        return picture


def read_stylegan(path: Path) -> dict[str, Tensor]:
    """The entry `g_ema` of a checkpoint, read without running any code of it.

    Raises:
        ValueError: the file is damaged, holds more than tensors, or has no such entry.
    """
    state = read_checkpoint(path)
    if not isinstance(state, Mapping) or not isinstance(state.get("g_ema"), Mapping):
        raise ValueError(f"{path} is no checkpoint of StyleGAN2: expected a mapping with an entry g_ema.")
    return dict(state["g_ema"])


def load_stylegan(generator: StyleGenerator, state: Mapping[str, Tensor]) -> None:
    """Load the entry `g_ema` of a checkpoint; of it, `style.*`, which draws codes, is not used.

    Raises:
        ValueError: it is a generator of another size or width.
    """
    load_strictly(generator, state, "the StyleGAN2 generator", unused=("style.*",))
