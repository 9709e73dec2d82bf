"""The networks of FGLA: what embeds the motion between two frames, what makes a flow of it, and what finishes frames.

The paper's layers are not known. These are our design, after those of Animating Landscape (Endo et al. 2019) where the
latter is public: convolutions that halve, residual blocks, a U-Net back to the picture's size, a flow within +-reach.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SLOPE = 0.1  # of LeakyReLU, Animating Landscape's
GROUPS = 8
LEAST_LOGVAR, MOST_LOGVAR = -10.0, 10.0

Seen = Literal["flow", "frames", "own"]
Pooling = Literal["mean", "linear"]
Injection = Literal["concat", "spade"]
CHANNELS = {"flow": 2, "frames": 6, "own": 2}


class Code(NamedTuple):
    """What the encoder says: the mean, and the logarithm of the variance where it is variational."""

    mean: Float[Tensor, "pairs c g g"]
    logvar: Float[Tensor, "pairs c g g"] | None


class MotionEncoder(nn.Module):
    """Embeds the motion between two frames as c x g x g numbers: at each place of a grid, what moves there and how.

    With g = 1 it is one global vector, as in earlier work.

    Args:
        size: height and width of frames.
        widths: channels of the stages, each of which halves height and width.
        sees: what it is shown: the flow, both frames, or the generator's own last prediction.
        grid: places along each axis, g.
        code_dim: numbers at each place, c.
        variational: whether codes are drawn from a Gaussian.
        pooling: how a code is made of the features of its part of the picture: of their `mean`, or by a `linear` layer
            of all of them, which can say where something is within that part.

    Raises:
        ValueError: the grid does not divide what the stages leave, or nothing is shown.
    """

    def __init__(
        self, *, size: int, widths: Sequence[int], sees: Sequence[Seen], grid: int, code_dim: int, variational: bool,
        pooling: Pooling = "mean",
    ):  # fmt: skip
        super().__init__()
        left = size >> len(widths)
        if not sees or len(set(sees)) < len(sees):
            raise ValueError(f"encoder.sees is {list(sees)}, expected one or more of flow, frames and own, each once.")
        if size % (1 << len(widths)) or not left or left % grid:
            raise ValueError(
                f"encoder.grid is {grid}, but {len(widths)} stages that halve {size} pixels leave "
                f"{size / (1 << len(widths)):g}: the grid must divide that. Take fewer widths, or another grid."
            )
        self.sees, self.grid, self.code_dim = tuple(sees), grid, code_dim
        channels = [sum(CHANNELS[name] for name in sees), *widths]
        self.stages = nn.Sequential(*(stage(a, b) for a, b in pairwise(channels)))
        part, outputs = left // grid, code_dim * (2 if variational else 1)
        self.pool = nn.AvgPool2d(part) if pooling == "mean" else nn.Identity()
        kernel = 1 if pooling == "mean" else part
        self.head = nn.Conv2d(channels[-1], outputs, kernel, stride=kernel)
        self.variational = variational

    def forward(self, shown: Float[Tensor, "pairs channels h w"]) -> Code:
        """The codes of pairs of frames."""
        found = self.head(self.pool(self.stages(shown)))
        if not self.variational:
            return Code(found, None)
        mean, logvar = found.chunk(2, 1)
        return Code(mean, logvar.clamp(LEAST_LOGVAR, MOST_LOGVAR))


class MotionGenerator(nn.Module):
    """Makes a backward flow of a picture and a code: a U-Net, into whose way up the code is injected at each scale.

    Args:
        size: height and width of pictures.
        widths: channels of the stages down, each of which halves height and width.
        blocks: residual blocks at the bottom.
        code_dim: channels of codes.
        injection: whether a code is concatenated, or scales and shifts normalised features (SPADE, Park et al. 2019).
        reach: the longest flow along an axis, in shares of the picture's side.
        mask: whether flows are weighted by a map from 0 to 1, so that what rests can be left alone.

    Raises:
        ValueError: there are no stages, or they do not divide the size.
    """

    def __init__(
        self, *, size: int, widths: Sequence[int], blocks: int, code_dim: int, injection: Injection, reach: float,
        mask: bool,
    ):  # fmt: skip
        super().__init__()
        if not widths or size % (1 << len(widths)):
            raise ValueError(
                f"generator.widths has {len(widths)} stages, each of which halves height and width, but pictures have "
                f"{size} pixels: give at least one, and as many as divide that."
            )
        self.reach = reach * size  # in pixels
        channels = [3, *widths]
        self.down = nn.ModuleList(stage(a, b) for a, b in pairwise(channels))
        inject = Concatenated if injection == "concat" else Modulated
        self.inject = nn.ModuleList(inject(width, code_dim) for width in widths[::-1])
        self.blocks = nn.Sequential(*(ResidualBlock(widths[-1]) for _ in range(blocks)))
        ups = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # from the bottom: to the width of the next scale
        self.up = nn.ModuleList(convolution(a + b, b) for a, b in ups)
        self.last = convolution(widths[0] + 3, max(widths[0] // 2, 1))
        self.head = nn.Conv2d(max(widths[0] // 2, 1), 3 if mask else 2, 3, padding=1)
        self.mask = mask

    def forward(
        self, picture: Float[Tensor, "batch 3 h w"], code: Float[Tensor, "batch c g g"]
    ) -> Float[Tensor, "batch 2 h w"]:
        """The flow in pixels."""
        kept, x = [], picture
        for down in self.down:
            x = down(x)
            kept.append(x)
        x = self.blocks(self.inject[0](kept.pop(), code))
        for inject, up in zip(self.inject[1:], self.up, strict=True):
            x = inject(up(torch.cat([doubled(x), kept.pop()], 1)), code)
        x = self.head(self.last(torch.cat([doubled(x), picture], 1))).float()  # bfloat16 is too coarse for places
        flow = self.reach * x[:, :2].tanh()
        return flow * x[:, 2:].sigmoid() if self.mask else flow


class Concatenated(nn.Module):
    """Features beside the code, resized to their size, mixed by a convolution."""

    def __init__(self, width: int, code_dim: int):
        super().__init__()
        self.mix = convolution(width + code_dim, width)

    def forward(self, x: Float[Tensor, "b width h w"], code: Float[Tensor, "b c g g"]) -> Float[Tensor, "b width h w"]:
        """Features of the same shape."""
        return self.mix(torch.cat([x, resized(code, x.shape[-1])], 1))


class Modulated(nn.Module):
    """Normalised features, scaled and shifted at each place by what a convolution reads in the code (SPADE)."""

    def __init__(self, width: int, code_dim: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups(width), width, affine=False)
        self.read = nn.Conv2d(code_dim, 2 * width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b width h w"], code: Float[Tensor, "b c g g"]) -> Float[Tensor, "b width h w"]:
        """Features of the same shape."""
        scale, shift = self.read(resized(code, x.shape[-1])).chunk(2, 1)
        return F.leaky_relu(self.norm(x) * (1 + scale) + shift, SLOPE)


class ResidualBlock(nn.Module):
    """Two convolutions after norm and activation each, added to what they are given."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(groups(width), width), nn.LeakyReLU(SLOPE), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(groups(width), width), nn.LeakyReLU(SLOPE), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "batch width h w"]) -> Float[Tensor, "batch width h w"]:
        """Features of the same shape."""
        return x + self.layers(x)


class Refinement(nn.Module):
    """A light network that repairs a warped frame, where nothing in the first picture can be seen again: a residual.

    Args:
        width: channels.
    """

    def __init__(self, *, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            convolution(5, width), convolution(width, width), zero(nn.Conv2d(width, 3, 3, padding=1))
        )

    def forward(
        self, frame: Float[Tensor, "batch 3 h w"], total: Float[Tensor, "batch 2 h w"]
    ) -> Float[Tensor, "batch 3 h w"]:
        """The frame, repaired.

        Args:
            frame: the first picture, warped.
            total: how far, in units of the reach of one step.
        """
        return frame + self.layers(torch.cat([frame, total], 1))


class Appearance(nn.Module):
    """Changes colours as the day passes: each pixel's by an affine map of its own, as in Animating Landscape.

    Args:
        width: channels.
        code_dim: numbers that say how the light of a frame differs from the first one's.
    """

    def __init__(self, *, width: int, code_dim: int):
        super().__init__()
        self.stages = nn.Sequential(stage(6, width), stage(width, width))
        self.code = nn.Linear(width, code_dim)
        self.maps = nn.Sequential(convolution(3 + code_dim, width), zero(nn.Conv2d(width, 6, 3, padding=1)))

    def encode(
        self, first: Float[Tensor, "batch 3 h w"], later: Float[Tensor, "batch 3 h w"]
    ) -> Float[Tensor, "b code"]:
        """How the light of later frames differs from that of first ones."""
        return self.code(self.stages(torch.cat([first, later], 1)).mean((2, 3)))

    def forward(self, frame: Float[Tensor, "b 3 h w"], code: Float[Tensor, "b code"]) -> Float[Tensor, "b 3 h w"]:
        """The frame in another light."""
        beside = code[:, :, None, None].expand(-1, -1, *frame.shape[-2:])
        scale, shift = self.maps(torch.cat([frame, beside], 1)).chunk(2, 1)
        return frame * (1 + scale) + shift


class PatchDiscriminator(nn.Module):
    """How real each patch of a frame looks (PatchGAN, Isola et al. 2017).

    Args:
        widths: channels of the stages, each of which halves height and width.
    """

    def __init__(self, *, widths: Sequence[int]):
        super().__init__()
        channels = [3, *widths]
        layers = [nn.Sequential(nn.Conv2d(a, b, 4, stride=2, padding=1), nn.LeakyReLU(0.2))
                  for a, b in pairwise(channels)]  # fmt: skip
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, 3, padding=1))

    def forward(self, frames: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, " logits"]:
        """A logit of each patch of each frame."""
        return self.layers(frames).flatten()


def stage(inputs: int, outputs: int) -> nn.Sequential:
    """Half the height and width."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.GroupNorm(groups(outputs), outputs), nn.LeakyReLU(SLOPE)
    )


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    """The same height and width."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.LeakyReLU(SLOPE))


def groups(width: int) -> int:
    """Of a group norm: `GROUPS`, or as many as divide the width."""
    return math.gcd(GROUPS, width)


def zero(layer: nn.Conv2d) -> nn.Conv2d:
    """A layer that says nothing at first."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def doubled(x: Float[Tensor, "batch width h w"]) -> Float[Tensor, "batch width h2 w2"]:
    """Twice the height and width, each value four times."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def resized(code: Float[Tensor, "batch c g g"], size: int) -> Float[Tensor, "batch c size size"]:
    """A square grid of codes at another size: bilinear (pixel centres), the outermost values go on beyond theirs.

    Two products with a matrix of weights: they are the same on every processor, and so are their gradients.
    """
    grid, code = code.shape[-1], code.float()
    if grid == 1:
        return code.expand(*code.shape[:2], size, size)
    at = ((torch.arange(size, device=code.device, dtype=code.dtype) + 0.5) * (grid / size) - 0.5).clamp(0, grid - 1)
    weights = (1 - (at[:, None] - torch.arange(grid, device=code.device, dtype=code.dtype)).abs()).clamp_min(0)
    return weights @ code @ weights.T
