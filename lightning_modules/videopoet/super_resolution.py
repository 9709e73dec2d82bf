"""VideoPoet's super-resolution: a masked transformer that fills in the tokens of a clip of twice the height and width.

A block has three layers, and the windows of each reach along one axis: over the whole height, over the whole width, and
over all frames. Within its window a token attends to the tokens that are known or hidden there, then to those of the
low-resolution clip at the same place, in a window of half the height and width, and to the whole text. Windows of n of
N tokens need N n scores in place of N^2 (`scores`).

Tokens are divided: a vocabulary of 2^18 has two heads of 512 numbers. The widths are not published. Our choice: norms
come before each part, an MLP after the three attentions, positions are learned for each axis and summed, and the
low-resolution tokens reach every layer as they were embedded.
"""

from collections.abc import Sequence
from math import prod
from typing import Annotated

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from lightning_modules.settings import Count

DEVIATION = 0.02
Grid = tuple[int, int, int]


def windows(x: Float[Tensor, "batch t h w dim"], size: Grid) -> Float[Tensor, "parts tokens dim"]:
    """The tokens of each window of a grid, the windows of a clip one after another."""
    t, h, w = size
    return rearrange(x, "b (a t) (e h) (f w) d -> (b a e f) (t h w) d", t=t, h=h, w=w)


def together(parts: Float[Tensor, "parts tokens dim"], size: Grid, grid: Grid) -> Float[Tensor, "batch t h w dim"]:
    """The grid that was divided by `windows`."""
    (t, h, w), (a, e, f) = size, (whole // part for whole, part in zip(grid, size, strict=True))
    return rearrange(parts, "(b a e f) (t h w) d -> b (a t) (e h) (f w) d", a=a, e=e, f=f, t=t, h=h, w=w)


def halved(size: Sequence[int]) -> Grid:
    """The same place of the low-resolution clip: half the height and width."""
    t, h, w = size
    return t, h // 2, w // 2


def scores(grid: Sequence[int], sizes: Sequence[Sequence[int]]) -> int:
    """How many products of a query and a key the self-attentions of a block have, for one head."""
    return prod(grid) * sum(prod(size) for size in sizes)


class Attention(nn.Module):
    """Multi-head attention of some tokens to others."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.pairs, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        source: Float[Tensor, "batch others dim"],
        seen: Bool[Tensor, "batch others"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """What each token takes from the others that are `seen`; from all of them without it."""
        q = rearrange(self.query(x), "b n (h d) -> b h n d", h=self.heads)
        k, v = rearrange(self.pairs(source), "b n (two h d) -> two b h n d", two=2, h=self.heads)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=None if seen is None else seen[:, None, None])
        return self.out(rearrange(mixed, "b h n d -> b n (h d)"))


class Layer(nn.Module):
    """Attention within windows of the clip, to those of the low-resolution clip, and to the text; then an MLP."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, window: Grid):
        super().__init__()
        self.window = window
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(4))
        self.own, self.low, self.text = (Attention(dim, heads) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.GELU("tanh"), nn.Linear(mlp_dim, dim))

    def forward(
        self,
        x: Float[Tensor, "batch t h w dim"],
        low: Float[Tensor, "batch t half_h half_w dim"],
        text: Float[Tensor, "batch words dim"],
        seen: Bool[Tensor, "batch words"],
    ) -> Float[Tensor, "batch t h w dim"]:
        """The tokens after the layer."""
        own, above, before_text, before_mlp = self.norms
        grid = x.shape[1:4]
        part = windows(own(x), self.window)
        x = x + together(self.own(part, part), self.window, grid)
        part = windows(above(x), self.window)
        x = x + together(self.low(part, windows(low, halved(self.window))), self.window, grid)
        flat = x.flatten(1, 3)
        x = (flat + self.text(before_text(flat), text, seen)).view_as(x)
        return x + self.mlp(before_mlp(x))


class TokenEmbedding(nn.Module):
    """The vector of a token is the sum of those of its sub-tokens; a hidden one has its own. With positions."""

    def __init__(self, factors: Sequence[int], grid: Grid, dim: int):
        super().__init__()
        self.codes = prod(factors)
        self.parts = nn.ModuleList(nn.Embedding(factor, dim) for factor in factors)
        self.hidden = nn.Parameter(torch.empty(dim))
        self.positions = nn.ParameterList(nn.Parameter(torch.empty(length, dim)) for length in grid)
        for parameter in self.parameters():
            nn.init.trunc_normal_(parameter, std=DEVIATION, a=-2 * DEVIATION, b=2 * DEVIATION)

    def forward(self, tokens: Int[Tensor, "batch t h w"]) -> Float[Tensor, "batch t h w dim"]:
        """Vectors of tokens; `codes` is the number of a hidden one."""
        rest, found = tokens.clamp_max(self.codes - 1), 0
        for part in self.parts:
            found, rest = found + part(rest % part.num_embeddings), rest // part.num_embeddings
        found = torch.where(tokens[..., None] < self.codes, found, self.hidden)
        time, height, width = self.positions
        return found + time[:, None, None] + height[:, None] + width


class SuperResolution(nn.Module):
    """Tokens of a clip, some of them hidden, low-resolution tokens and text to logits of all sub-tokens.

    Args:
        grid: (t, h, w) of the tokens of a clip.
        bits: of each sub-token, the least significant first.
        text_dim: of the features of a word.
        windows: size of each layer's windows along (t, h, w): in the paper vertical, horizontal and temporal ones.
        blocks: how often these layers are repeated.
        hidden_size: of a vector.
        mlp_dim: inner size of each layer's MLP.
        heads: of attention.

    Raises:
        ValueError: a window does not divide the grid, or is odd in height or width; or `hidden_size` cannot be divided
            among the heads.
    """

    def __init__(
        self,
        *,
        grid: Sequence[int],
        bits: Annotated[Sequence[Annotated[int, Field(ge=1, le=24)]], Field(min_length=1)],
        text_dim: Count,
        windows: Annotated[Sequence[Sequence[Count]], Field(min_length=1)],
        blocks: Count,
        hidden_size: Count,
        mlp_dim: Count,
        heads: Count,
    ):
        super().__init__()
        if hidden_size % heads:
            raise ValueError(f"network.hidden_size ({hidden_size}) must be a multiple of network.heads ({heads}).")
        self.grid = tuple(grid)
        self.windows = [checked_window(window, self.grid) for window in windows]
        self.factors = tuple(2**n for n in bits)
        self.codes = prod(self.factors)
        self.high = TokenEmbedding(self.factors, self.grid, hidden_size)
        self.low = TokenEmbedding(self.factors, halved(self.grid), hidden_size)
        self.low_norm, self.norm = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.text = nn.Linear(text_dim, hidden_size)
        self.no_text = nn.Parameter(torch.zeros(hidden_size))
        self.layers = nn.ModuleList(
            Layer(hidden_size, heads, mlp_dim, window) for _ in range(blocks) for window in self.windows
        )
        self.heads = nn.ModuleList(nn.Linear(hidden_size, factor) for factor in self.factors)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=DEVIATION, a=-2 * DEVIATION, b=2 * DEVIATION)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        tokens: Int[Tensor, "batch tokens"],
        low: Int[Tensor, "batch low_tokens"],
        text: Float[Tensor, "batch words text_dim"],
        seen: Bool[Tensor, "batch words"],
    ) -> tuple[Float[Tensor, "batch tokens _"], ...]:
        """Logits of each sub-token at each place, the least significant sub-token first.

        Args:
            tokens: of the clip, in one row; `codes` where one is hidden.
            low: of the low-resolution clip, the same; hidden where the clip is unknown.
            text: features of words.
            seen: which of them are words of the text; none where the text is unknown.
        """
        x = self.high(tokens.view(-1, *self.grid))
        below = self.low_norm(self.low(low.view(-1, *halved(self.grid))))
        words = torch.cat([self.no_text.expand(len(x), 1, -1), self.text(text)], 1)
        seen = F.pad(seen, (1, 0), value=True)
        for layer in self.layers:
            x = layer(x, below, words, seen)
        x = self.norm(x).flatten(1, 3)
        return tuple(head(x) for head in self.heads)

    def split(self, tokens: Int[Tensor, "*shape"]) -> list[Int[Tensor, "*shape"]]:
        """Tokens as sub-tokens, the least significant first."""
        found = []
        for factor in self.factors:
            found.append(tokens % factor)
            tokens = tokens // factor
        return found

    def joined(self, parts: Sequence[Int[Tensor, "*shape"]]) -> Int[Tensor, "*shape"]:
        """The tokens of sub-tokens."""
        token, unit = 0, 1
        for part, factor in zip(parts, self.factors, strict=True):
            token, unit = token + unit * part, unit * factor
        return token

    def scores(self) -> int:
        """Products of queries and keys in the self-attentions of a block, see `scores`."""
        return scores(self.grid, self.windows)


def checked_window(window: Sequence[int], grid: Grid) -> Grid:
    """A window that divides the grid, and whose half divides that of the low-resolution clip.

    Raises:
        ValueError: it does not.
    """
    fits = len(window) == 3 and not any(whole % part for whole, part in zip(grid, window, strict=True))
    if not fits or window[1] % 2 or window[2] % 2:
        raise ValueError(
            f"network.windows has {list(window)}, expected numbers of tokens along time, height and width that divide "
            f"the grid {grid}, even in height and width."
        )
    return tuple(window)
