"""Video-Swin whose windows over time grow with depth (hierarchical temporal window attention), with a local branch.

Parameters carry the names of LF-VILA's official code. Read `VideoSwin.forward` first.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, NotRequired

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.layers.transformer import DropPath, Mlp
from lightning_modules.settings import STRICT, Count, Positive, Share

Window = Annotated[list[Count], Field(min_length=3, max_length=3)]  # frames, rows, columns
MASKED = -100.0  # added to the scores of tokens that the shift brought together, as in Swin


class Level(TypedDict):
    """One of the official code's layers: blocks of one width and one window."""

    __pydantic_config__ = STRICT
    depth: Count
    heads: Count
    window: Window
    merge: bool  # whether 2 x 2 patches become one afterwards, of twice the width


class VideoSettings(TypedDict):
    """Settings of `VideoSwin`, and `hub`: a published Swin to begin with, whose width it has, or null."""

    __pydantic_config__ = STRICT
    hub: str | None
    patch: Window
    width: Count | None
    levels: Annotated[list[Level], Field(min_length=1)]
    local_window: Count
    drop_path: NotRequired[Share]
    init_std: NotRequired[Positive]


def relative_positions(window: Sequence[int], table: Sequence[int]) -> Int[Tensor, "tokens tokens"]:
    """Rows of the bias table of windows `table` for each pair of tokens of a window that is no larger."""
    places = torch.cartesian_prod(*(torch.arange(side) for side in window)).reshape(-1, 3)
    _, height, width = table
    offset = places[:, None] - places[None] + torch.tensor(table) - 1
    return (offset[..., 0] * (2 * height - 1) + offset[..., 1]) * (2 * width - 1) + offset[..., 2]


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias for each head and relative position in frames and patches."""

    def __init__(self, dim: int, heads: int, window: Sequence[int]):
        super().__init__()
        if dim % heads:
            raise ValueError(f"a width of {dim} cannot be split among {heads} heads: choose a divisor.")
        self.heads, self.window = heads, tuple(window)
        size = math.prod(2 * side - 1 for side in window)
        self.relative_position_bias_table = nn.Parameter(torch.empty(size, heads))
        self.register_buffer("relative_position_index", relative_positions(window, window), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "batch windows tokens dim"],
        window: tuple[int, int, int],
        mask: Float[Tensor, "windows tokens tokens"] | None = None,
    ) -> Float[Tensor, "batch windows tokens dim"]:
        """What each token takes from its window.

        Args:
            x: tokens, window by window.
            window: frames, rows and columns of these windows, no larger than those that it was built for.
            mask: added to the scores.
        """
        together = "(b w) h n d" if mask is None else "b (w h) n d"  # windows share a bias, or each has a mask
        q, k, v = rearrange(self.qkv(x), f"b w n (qkv h d) -> qkv {together}", qkv=3, h=self.heads)
        index = self.relative_position_index
        if window != self.window:
            index = relative_positions(window, self.window).to(x.device)
        bias = rearrange(self.relative_position_bias_table[index], "q k h -> 1 h q k")
        if mask is not None:
            bias = rearrange(bias + mask[:, None], "w h q k -> 1 (w h) q k")
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(rearrange(mixed, f"{together} -> b w n (h d)", h=self.heads, w=x.shape[1]))


class SwinBlock(nn.Module):
    """Window attention and MLP, each on the normalised map and added to it. Windows are shifted in space, not in time.

    A map that is no larger than the window is one window, without shift; others are padded to whole windows.
    """

    def __init__(self, dim: int, heads: int, window: Sequence[int], *, shifted: bool, drop_path: float):
        super().__init__()
        self.window = tuple(window)
        self.shift = (0, window[1] // 2, window[2] // 2) if shifted else (0, 0, 0)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "batch frames height width dim"]
    ) -> Float[Tensor, "batch frames height width dim"]:
        """The map after attention and MLP."""
        x = x + self.drop_path(self._attend(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        size = x.shape[1:4]
        window = tuple(min(pair) for pair in zip(size, self.window, strict=True))
        shift = tuple(0 if side <= most else by for side, most, by in zip(size, self.window, self.shift, strict=True))
        x = F.pad(
            x, [0, 0, *(pad for side, most in zip(size[::-1], window[::-1], strict=True) for pad in (0, -side % most))]
        )
        padded = x.shape[1:4]
        mask = None
        if any(shift):
            x = x.roll([-by for by in shift], (1, 2, 3))
            mask = shift_mask(padded, window, shift).to(x)
        x = self.attn(split(x, window), window, mask)
        counts = [side // most for side, most in zip(padded, window, strict=True)]
        x = rearrange(
            x, "b (nt nh nw) (t h w) d -> b (nt t) (nh h) (nw w) d",
            **dict(zip(("nt", "nh", "nw"), counts, strict=True)), **dict(zip("thw", window, strict=True)),
        )  # fmt: skip
        if any(shift):
            x = x.roll(shift, (1, 2, 3))
        return x[:, : size[0], : size[1], : size[2]]


def split(
    x: Float[Tensor, "batch frames height width dim"], window: Sequence[int]
) -> Float[Tensor, "batch windows tokens dim"]:
    """A map in windows."""
    sides = dict(zip("thw", window, strict=True))
    return rearrange(x, "b (nt t) (nh h) (nw w) d -> b (nt nh nw) (t h w) d", **sides)


def shift_mask(
    size: Sequence[int], window: Sequence[int], shift: Sequence[int]
) -> Float[Tensor, "windows tokens tokens"]:
    """`MASKED` for pairs of tokens that are neighbours only because a shifted map comes in again at its other side."""
    regions = torch.zeros(1, *size, 1)
    for axis, (side, most, by) in enumerate(zip(size, window, shift, strict=True), start=1):
        if by:
            place = torch.arange(side)
            part = (place >= side - most).float() + (place >= side - by)
            regions = 3 * regions + part.view([-1 if dim == axis else 1 for dim in range(5)])
    tokens = split(regions, window)[0, :, :, 0]
    return MASKED * (tokens[:, None] != tokens[:, :, None])


class PatchMerging(nn.Module):
    """2 x 2 patches of a frame become one of twice the width; odd sides are padded with zeros."""

    def __init__(self, dim: int):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Float[Tensor, "batch frames h w dim"]) -> Float[Tensor, "batch frames half_h half_w wide"]:
        """The merged map."""
        x = F.pad(x, [0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2])
        return self.reduction(self.norm(rearrange(x, "b t (h i) (w j) d -> b t h w (j i d)", i=2, j=2)))


class SwinLevel(nn.Module):
    """The blocks of a level, every second one shifted, and the merging after them."""

    def __init__(self, dim: int, level: Level, drop_path: Sequence[float]):
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(dim, level["heads"], level["window"], shifted=number % 2 == 1, drop_path=drop_path[number])
            for number in range(level["depth"])
        )
        self.downsample = PatchMerging(dim) if level["merge"] else None

    def forward(self, x: Float[Tensor, "batch frames height width dim"]) -> Float[Tensor, "batch frames h w wide"]:
        """The map after the blocks, and merged where that is so."""
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class PatchEmbedding(nn.Module):
    """Patches of pixels as normalised tokens; frames whose sides are no multiple of the patch are padded with zeros."""

    def __init__(self, patch: Sequence[int], dim: int):
        super().__init__()
        self.proj = nn.Conv3d(3, dim, tuple(patch), tuple(patch))
        self.norm = nn.LayerNorm(dim)

    def forward(self, video: Float[Tensor, "batch 3 frames height width"]) -> Float[Tensor, "batch t h w dim"]:
        """The map of tokens."""
        sides = zip(video.shape[:1:-1], self.proj.kernel_size[::-1], strict=True)
        video = F.pad(video, [pad for side, patch in sides for pad in (0, -side % patch)])
        return self.norm(rearrange(self.proj(video), "b d t h w -> b t h w d"))


class VideoSwin(nn.Module):
    """Video-Swin (Liu et al., 2106.13230) with windows over time that grow from level to level.

    Args:
        patch: frames, rows and columns of pixels that a token begins with.
        width: of the first level; each merging doubles it.
        levels: see `Level`.
        local_window: the local features leave before the first level whose windows have more frames: if clips have as
            many, these features come from one clip each. Where no level has more, they are those of the last level.
        drop_path: stochastic depth of the last block; it grows linearly from 0 in the first.
        init_std: of the matrices and bias tables at the start; 0.02 is made for wide networks.

    Raises:
        ValueError: the local features would leave where one merging does not bring them to the last width.
    """

    def __init__(
        self,
        *,
        patch: Window,
        width: Count,
        levels: Annotated[list[Level], Field(min_length=1)],
        local_window: Count,
        drop_path: Share = 0.2,
        init_std: Positive = 0.02,
    ):
        super().__init__()
        widths = [width * 2 ** sum(level["merge"] for level in levels[:number]) for number in range(len(levels) + 1)]
        depths = [level["depth"] for level in levels]
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        self.patch_embed = PatchEmbedding(patch, width)
        self.layers = nn.ModuleList(
            SwinLevel(dim, level, [next(rates) for _ in range(level["depth"])])
            for dim, level in zip(widths, levels, strict=False)
        )
        self.dim, self.levels = widths[-1], levels
        beyond = [number for number, level in enumerate(levels) if level["window"][0] > local_window]
        self.leaves = beyond[0] if beyond else None  # the level before which the local features leave
        if self.leaves is not None and 2 * widths[self.leaves] != self.dim:
            raise ValueError(
                f"local_window ({local_window}) lets the local features leave before level {self.leaves}, of width "
                f"{widths[self.leaves]}; expected half the last width, {self.dim // 2}: change it, or the windows."
            )
        self.norm = nn.LayerNorm(self.dim)
        self.norm_local = nn.LayerNorm(self.dim)
        self.local_feat_proj = PatchMerging(self.dim // 2)
        self.apply(partial(_initialise, std=init_std))

    def forward(
        self, video: Float[Tensor, "batch 3 frames height width"]
    ) -> tuple[Float[Tensor, "batch t h w dim"], Float[Tensor, "batch t h w dim"]]:
        """The map of the whole video, and that of its local features."""
        x, local = self.patch_embed(video), None
        for number, layer in enumerate(self.layers):
            if number == self.leaves:
                local = self.norm_local(self.local_feat_proj(x))
            x = layer(x)
        x = self.norm(x)
        return x, x if local is None else local

    def maps(self, frames: int, height: int, width: int) -> Iterator[tuple[int, int, int]]:
        """Frames, rows and columns of tokens that each level reads, for videos of that size."""
        size = [-(-side // patch) for side, patch in zip((frames, height, width), self.patch, strict=True)]
        for level in self.levels:
            yield tuple(size)
            if level["merge"]:
                size = [size[0], -(-size[1] // 2), -(-size[2] // 2)]

    @property
    def patch(self) -> tuple[int, int, int]:
        """Frames, rows and columns of pixels of a token of the first level."""
        return self.patch_embed.proj.kernel_size


def attention_elements(encoder: VideoSwin, frames: int, height: int, width: int) -> list[int]:
    """Attention scores of one block of each level, over all heads and windows: what memory grows with."""
    found = []
    for size, level in zip(encoder.maps(frames, height, width), encoder.levels, strict=True):
        window = [min(pair) for pair in zip(size, level["window"], strict=True)]
        windows = math.prod(-(-side // most) for side, most in zip(size, window, strict=True))
        found.append(level["heads"] * windows * math.prod(window) ** 2)
    return found


def _initialise(module: nn.Module, std: float) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, WindowAttention):
        nn.init.trunc_normal_(module.relative_position_bias_table, std=std)
