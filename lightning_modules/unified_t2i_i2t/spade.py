"""Image decoder of X-LXMERT (Cho et al., 2009.11278): grid features to pixels, and the discriminator that trains it.

A style map, made from the features, scales and shifts every normalised map (SPADE; Park et al., 1903.07291); each block
doubles the resolution and adds an RGB picture of its own to the sum. Names of the generator's parameters are those of
the published checkpoint, which needs torch's older spectral norm (`weight_orig`, `weight_u`).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

SLOPE = 0.2


class Spade(nn.Module):
    """Instance norm, then a scale and a shift at every place, predicted from the style map."""

    def __init__(self, dim: int, style_dim: int, hidden: int):
        super().__init__()
        self.norm = nn.InstanceNorm2d(dim, affine=False)
        self.shared = nn.Sequential(nn.Conv2d(style_dim, hidden, 3, padding=1), nn.ReLU())
        self.gamma = nn.Conv2d(hidden, dim, 3, padding=1)
        self.beta = nn.Conv2d(hidden, dim, 3, padding=1)

    def forward(
        self, x: Float[Tensor, "batch dim height width"], style: Float[Tensor, "batch style h w"]
    ) -> Float[Tensor, "batch dim height width"]:
        """The style map is resized to the map that it modulates."""
        shared = self.shared(F.interpolate(style, size=x.shape[-2:], mode="bilinear", align_corners=False))
        return self.norm(x) * (1 + self.gamma(shared)) + self.beta(shared)


class Noise(nn.Module):
    """Adds noise, the same to all channels, with a learned strength that starts at 0."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Float[Tensor, "batch dim height width"]) -> Float[Tensor, "batch dim height width"]:
        """New noise in each call."""
        return x + self.weight * torch.randn_like(x[:, :1])


class UpBlock(nn.Module):
    """Residual block that doubles height and width."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.cbn1, self.cbn2 = Spade(dim, dim, hidden), Spade(dim, dim, hidden)
        self.noise1, self.noise2 = Noise(), Noise()
        self.conv1 = spectral_norm(nn.Conv2d(dim, dim, 3, padding=1))
        self.conv2 = spectral_norm(nn.Conv2d(dim, dim, 3, padding=1))
        self.res_branch = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False), spectral_norm(nn.Conv2d(dim, dim, 1))
        )

    def forward(
        self, x: Float[Tensor, "batch dim height width"], style: Float[Tensor, "batch dim h w"], noise: bool
    ) -> Float[Tensor, "batch dim 2*height 2*width"]:
        """The second norm sees the doubled map."""
        y = self.cbn1(x, style)
        y = F.leaky_relu(self.noise1(y) if noise else y, SLOPE)
        y = self.conv1(F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False))
        y = self.cbn2(y, style)
        y = F.leaky_relu(self.noise2(y) if noise else y, SLOPE)
        return self.conv2(y) + self.res_branch(x)


class ToRGB(nn.Module):
    """A picture from the map of a block."""

    def __init__(self, dim: int, image_size: int):
        super().__init__()
        self.conv, self.image_size = nn.Conv2d(dim, 3, 3, padding=1), image_size

    def forward(self, x: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch 3 height width"]:
        """At the size of the whole image."""
        picture, size = self.conv(x), (self.image_size, self.image_size)
        return picture if picture.shape[-2:] == size else F.interpolate(picture, size=size, mode="bilinear")


class SpadeGenerator(nn.Module):
    """Grid features to images.

    Args:
        feature_dim: channels of a grid feature.
        grid: places along a side.
        image_size: side of the images, `grid` times a power of two.
        dim: channels of every block, a multiple of 4.
        bottleneck: channels that features are first brought to.
        hidden: channels between the style map and the scales.

    Raises:
        ValueError: the image size cannot be reached by doubling the grid, or `dim` or `bottleneck` is odd.
    """

    def __init__(
        self, *, feature_dim: int, grid: int, image_size: int, dim: int = 32, bottleneck: int = 256, hidden: int = 128
    ):
        super().__init__()
        doublings = _doublings(grid, image_size)
        if dim % 4 or bottleneck % 4:
            raise ValueError(f"dim ({dim}) and bottleneck ({bottleneck}) must be multiples of 4, the groups.")
        self.image_size = image_size
        self.bottleneck_emb = nn.Sequential(nn.Conv2d(feature_dim, bottleneck, 1), nn.Tanh())
        self.learned_init_conv = nn.Sequential(spectral_norm(nn.Conv2d(bottleneck, dim, 3, padding=1, groups=4)))
        self.style_init_conv = nn.Sequential(spectral_norm(nn.Conv2d(bottleneck, dim, 3, padding=1, groups=4)))
        self.resblocks = nn.ModuleList(UpBlock(dim, hidden) for _ in range(doublings))
        self.to_RGB_blocks = nn.ModuleList(ToRGB(dim, image_size) for _ in range(doublings))
        initialise(self)

    def forward(
        self, features: Float[Tensor, "batch features grid grid"], noise: bool = True
    ) -> Float[Tensor, "batch 3 height width"]:
        """Images within -1 and 1. Noise is on by default, at test time too, as in the official code."""
        x = self.bottleneck_emb(features)
        hidden, style = self.learned_init_conv(x), self.style_init_conv(x)
        picture = 0
        for block, to_rgb in zip(self.resblocks, self.to_RGB_blocks, strict=True):
            hidden = block(hidden, style, noise)
            picture = picture + to_rgb(hidden)
        return picture.tanh()


class DownBlock(nn.Module):
    """Residual block of the discriminator; the first of all has no activation before it."""

    def __init__(self, in_dim: int, dim: int, *, halve: bool, first: bool = False):
        super().__init__()
        self.conv1 = spectral_norm(nn.Conv2d(in_dim, dim, 3, padding=1))
        self.norm = nn.InstanceNorm2d(dim, affine=False)
        self.conv2 = spectral_norm(nn.Conv2d(dim, dim, 3, padding=1))
        self.skip = spectral_norm(nn.Conv2d(in_dim, dim, 1))
        self.pool: Callable[[Tensor], Tensor] = nn.AvgPool2d(2) if halve else nn.Identity()
        self.first = first

    def forward(self, x: Float[Tensor, "batch in_dim height width"]) -> Float[Tensor, "batch dim h w"]:
        """Half as high and wide, or the same."""
        x = x if self.first else F.leaky_relu(x, SLOPE)
        y = F.leaky_relu(self.norm(self.conv1(x)), SLOPE)
        return self.pool(self.conv2(y)) + self.skip(self.pool(x))


class SpadeDiscriminator(nn.Module):
    """Tells drawn from real images, and which code each place shows (auxiliary classifier).

    The classifier's matrix is the codebook that the generator draws from, which is not trained; its bias is.

    Args:
        grid: places along a side; `image_size` is a power of two times as much.
        dim: channels of every block.
        feature_dim: channels of the codebook.
        codebook_size: number of codes.
    """

    def __init__(self, *, grid: int, image_size: int, dim: int, feature_dim: int, codebook_size: int):
        super().__init__()
        halvings = _doublings(grid, image_size)
        self.resblocks = nn.ModuleList(
            DownBlock(3 if i == 0 else dim, dim, halve=i < halvings, first=i == 0) for i in range(halvings + 1)
        )
        self.adv_out = spectral_norm(nn.Conv2d(dim, 1, 3, padding=1))
        self.emb_proj = nn.Conv2d(dim, feature_dim, 1)
        self.emb_bias = nn.Parameter(torch.zeros(codebook_size))
        initialise(self)

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], codebook: Float[Tensor, "codes features"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch codes grid grid"], list[Tensor]]:
        """How real the images look, logits of the codes, and the maps of all blocks for feature matching."""
        maps, x = [], images
        for block in self.resblocks:
            x = block(x)
            maps.append(x)
        x = x.relu()
        return (
            self.adv_out(x).mean((1, 2, 3)),
            F.conv2d(self.emb_proj(x), codebook[..., None, None], self.emb_bias),
            maps,
        )


def initialise(module: nn.Module) -> None:
    """Orthogonal matrices, biases zero."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            nn.init.orthogonal_(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def _doublings(grid: int, image_size: int) -> int:
    doublings = round(math.log2(image_size / grid))
    if doublings < 1 or grid * 2**doublings != image_size:
        raise ValueError(f"image_size ({image_size}) must be 2, 4, 8 ... times the grid ({grid}).")
    return doublings
