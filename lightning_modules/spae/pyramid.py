"""A grid of latents as layers of words: few words at the top, many at the bottom (sections 3.2 and 3.3).

Layer l quantises the places P(l) alone, a coarse grid within the grid of latents. Streaming average quantisation (SAQ)
asks for the word nearest to z plus all that earlier layers missed at the same place, and draws from the mean of a
place's words: so one table of words serves all layers, and any number of layers from the top can be decoded.

Read `Pyramid.quantise` first. Two controls: residual quantisation (`rq`) asks for what is left of z and draws from the
sum of the words; `flat` has as many words in each layer, but takes places row by row, round after round.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_modules.settings import Count
from lightning_modules.spae.words import WordTable

Quantisation = Literal["saq", "rq", "flat"]
Positions = Literal["dilated", "block"]
Empty = Literal["nearest", "zeros"]
Grid = tuple[int, int, int]


@dataclass
class Spelt:
    """Latents as words.

    Attributes:
        z: what is said in words.
        words: of each layer, as indices of the table.
        asked: of each layer, the latents whose nearest words these are, with the gradient of the latents.
        prefixes: what is decoded of the first layers, for each number of layers from 1, without gradient to the
            latents; those of a learned table have its gradient.
        latents: what is decoded of all layers, or of some first ones, with the gradient of the latents passed straight
            through.
    """

    z: Float[Tensor, "batch dim t h w"]
    words: list[Int[Tensor, "batch _"]]
    asked: list[Float[Tensor, "batch _ dim"]]
    prefixes: list[Float[Tensor, "batch dim t h w"]]
    latents: Float[Tensor, "batch dim t h w"]


class Pyramid(nn.Module):
    """The layers of a grid, and what words they have for latents.

    Args:
        table: the words; it is no part of this module.
        grid: of the latents: time, height and width.
        layers: the grid of each layer: time, height and width, or one number for a square of one picture.
        quantisation: `saq`, `rq` or `flat`, see above.
        positions: of a layer's places: `dilated` over the grid, or a `block` in its middle.
        empty: what is decoded at places that no layer has reached: the `nearest` place that one has, or `zeros`.

    Attributes:
        places: of each layer, as positions in the grid, row by row.
        tokens: number of words of each layer.

    Raises:
        ValueError: there is no layer, or a layer does not fit the grid.
    """

    def __init__(
        self,
        table: WordTable,
        grid: Grid,
        layers: Sequence[Count | Sequence[Count]],
        *,
        quantisation: Quantisation = "saq",
        positions: Positions = "dilated",
        empty: Empty = "nearest",
    ):
        super().__init__()
        if not layers:
            raise ValueError("layers is empty: name the grid of at least one layer, such as [1, 2, 4].")
        object.__setattr__(self, "table", table)  # whoever owns both registers it: weights have one name
        self.grid, self.quantisation, self.empty = tuple(grid), quantisation, empty
        self.sizes = [layer_size(layer) for layer in layers]
        self.places = layer_places(self.grid, self.sizes, "raster" if quantisation == "flat" else positions)
        self.tokens = [len(places) for places in self.places]
        visits, sources = visited(self.grid, self.places)
        for name, rows in (("visits", visits), ("sources", sources)):
            self.register_buffer(name, torch.tensor(rows, dtype=torch.long, device="cpu"), persistent=False)
        for layer, places in enumerate(self.places):
            self.register_buffer(f"places_{layer}", torch.tensor(places), persistent=False)

    @property
    def vocabulary(self) -> int:
        """Number of words that a token may be."""
        return len(self.table)

    def cumulative(self) -> list[int]:
        """Number of tokens of each prefix."""
        return [sum(self.tokens[: layer + 1]) for layer in range(len(self.tokens))]

    def quantise(self, z: Float[Tensor, "batch dim t h w"], upto: int | Int[Tensor, " batch"] | None = None) -> Spelt:
        """The words of all layers, and the latents of the first `upto` of them, all by default, or so many of each row.

        With e the words at a place so far and n their number, a layer asks for (n + 1) z - sum e (SAQ, which is z plus
        the sum of z - e), or for z - sum e (RQ).

        Raises:
            ValueError: the latents are of another grid, or there are fewer layers.
        """
        if tuple(z.shape[2:]) != self.grid or z.shape[1] != self.table.dim:
            raise ValueError(
                f"latents have {z.shape[1]} channels and the grid {tuple(z.shape[2:])}, expected {self.table.dim} and "
                f"{self.grid}: pictures must have the size that the tokenizer is for."
            )
        flat = rearrange(z, "b d t h w -> b (t h w) d")
        total, before = torch.zeros_like(flat), None
        words, asked, prefixes = [], [], []
        for layer in range(len(self.tokens)):
            places = self._places(layer)
            n = 0 if before is None else before[places, None]
            factor = 1 if self.quantisation == "rq" else n + 1
            asked.append(factor * flat[:, places] - total.detach()[:, places])
            words.append(self.table.nearest(asked[-1]))
            total = total.index_add(1, places, self.table.embed(words[-1]).to(total))
            before = self.visits[layer]
            prefixes.append(self._folded(self._decoded(total, layer)))
        return Spelt(z, words, asked, prefixes, self._chosen(flat, prefixes, upto))

    def latents(self, words: Sequence[Int[Tensor, "batch _"]], upto: int | None = None) -> Float[Tensor, "b dim t h w"]:
        """What is decoded of the first `upto` layers of words, all that are given by default.

        Raises:
            ValueError: there are more layers than the pyramid has, fewer than `upto`, or a layer has another number of
                words, or a word is not in the table.
        """
        upto = self._upto(len(words) if upto is None else upto)
        found = [tuple(layer.shape[1:]) for layer in words[:upto]]
        if found != [(tokens,) for tokens in self.tokens[:upto]]:
            raise ValueError(
                f"layers of {[shape[0] for shape in found]} words for a prefix of {upto}, expected "
                f"{self.tokens[:upto]}."
            )
        total = self.table.embeddings.new_zeros(len(words[0]), math.prod(self.grid), self.table.dim)
        for layer in range(upto):
            total = total.index_add(1, self._places(layer), self.table.embed(words[layer]))
        return self._folded(self._decoded(total, upto - 1))

    def commitment(self, found: Spelt) -> Float[Tensor, ""]:
        """How far latents are from what each prefix decodes, summed over prefixes (section 3.5, with beta 1).

        Each is a mean over the places that the prefix has reached.
        """
        return self._misses(found.z, [prefix.detach() for prefix in found.prefixes])

    def codebook_loss(self, found: Spelt) -> Float[Tensor, ""]:
        """The same with the gradient of the words: for a learned table alone."""
        return self._misses(found.z.detach(), found.prefixes)

    def _misses(self, z: Tensor, prefixes: Sequence[Tensor]) -> Float[Tensor, ""]:
        squares = [(z - prefix).square().mean(1).flatten(1) for prefix in prefixes]
        return sum(square[:, self.visits[layer] > 0].mean() for layer, square in enumerate(squares))

    def _chosen(
        self,
        flat: Float[Tensor, "batch n dim"],
        prefixes: Sequence[Float[Tensor, "batch dim t h w"]],
        upto: int | Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch dim t h w"]:
        """One prefix of all rows, or one of each, with the gradient of the latents."""
        if not isinstance(upto, Tensor):
            layer = self._upto(upto) - 1
            return self._straight(flat, prefixes[layer], layer)
        found = torch.zeros_like(prefixes[0])
        for number in upto.unique().tolist():
            layer = self._upto(number) - 1
            rows = (upto == number).nonzero()[:, 0]
            found = found.index_copy(0, rows, self._straight(flat[rows], prefixes[layer][rows], layer))
        return found

    def _straight(
        self, flat: Float[Tensor, "batch n dim"], prefix: Float[Tensor, "batch dim t h w"], layer: int
    ) -> Float[Tensor, "batch dim t h w"]:
        """A prefix, with the gradient of the latents at the places that it has reached."""
        drawn = rearrange(prefix, "b d t h w -> b (t h w) d")
        return self._folded(self._spread(flat + (drawn - flat).detach(), layer))

    def _upto(self, upto: int | None) -> int:
        if upto is None:
            return len(self.tokens)
        if not 1 <= upto <= len(self.tokens):
            raise ValueError(f"upto is {upto}, expected 1 to {len(self.tokens)}, the number of layers.")
        return upto

    def _places(self, layer: int) -> Int[Tensor, " _"]:
        return getattr(self, f"places_{layer}")

    def _decoded(self, total: Float[Tensor, "batch n dim"], layer: int) -> Float[Tensor, "batch n dim"]:
        """Means (or sums) at the places that were reached, and what stands at the others."""
        if self.quantisation != "rq":
            total = total / self.visits[layer].clamp_min(1)[:, None]
        return self._spread(total, layer)

    def _spread(self, values: Float[Tensor, "batch n dim"], layer: int) -> Float[Tensor, "batch n dim"]:
        if self.empty == "nearest":
            return values[:, self.sources[layer]]
        return values * (self.visits[layer] > 0)[:, None]

    def _folded(self, flat: Float[Tensor, "batch n dim"]) -> Float[Tensor, "batch dim t h w"]:
        t, h, _ = self.grid
        return rearrange(flat, "b (t h w) d -> b d t h w", t=t, h=h)


def layer_size(layer: int | Sequence[int]) -> Grid:
    """A layer's grid: one number n is (1, n, n).

    Raises:
        ValueError: it is neither a number nor three.
    """
    size = (1, layer, layer) if isinstance(layer, int) else tuple(layer)
    if len(size) != 3:
        raise ValueError(f"the layer {list(size)} must be one number, or three: time, height and width.")
    return size


def sub_grid(length: int, count: int) -> list[int]:
    """Which of `length` rows a layer of `count` rows has, from 0.

    The row numbered r from 1 is r ceil(length / count) - ceil(length / (2 count)) + 1, counted from 1 (section 3.2).

    Raises:
        ValueError: these are not rows of the grid.
    """
    step, back = -(-length // count), -(-length // (2 * count))
    rows = [number * step - back for number in range(1, count + 1)]
    if not 0 <= rows[0] <= rows[-1] < length:
        raise ValueError(
            f"a layer of {count} rows does not fit a grid of {length}: choose at most that many, best a divisor of it."
        )
    return rows


def middle(length: int, count: int) -> list[int]:
    """`count` neighbouring rows in the middle of `length`.

    Raises:
        ValueError: there are not so many.
    """
    if count > length:
        raise ValueError(f"a layer of {count} rows does not fit a grid of {length}: choose at most that many.")
    first = (length - count) // 2
    return list(range(first, first + count))


def layer_places(
    grid: Grid, layers: Sequence[Grid], positions: Literal["dilated", "block", "raster"]
) -> list[list[int]]:
    """The places of each layer, numbered row by row.

    Raises:
        ValueError: a layer does not fit the grid.
    """
    rows = middle if positions == "block" else sub_grid
    _, height, width = grid
    found = [[(t * height + y) * width + x for t, y, x in product(*map(rows, grid, layer))] for layer in layers]
    if positions == "raster":
        starts = [sum(map(len, found[:layer])) for layer in range(len(found))]
        return [
            [(start + n) % math.prod(grid) for n in range(len(own))] for start, own in zip(starts, found, strict=True)
        ]
    return found


def visited(grid: Grid, places: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """For each prefix how many words each place has, and which place with words is nearest to each.

    Of places at the same distance the first is taken; time counts as space does.
    """
    points = list(product(*map(range, grid)))
    counts, visits, sources = [0] * len(points), [], []
    for own in places:
        for place in own:
            counts[place] += 1
        there = torch.tensor([place for place, count in enumerate(counts) if count], device="cpu")
        at = torch.tensor(points, device="cpu")
        squares = (at[:, None] - at[there]).square().sum(-1)
        ranked = squares * len(points) + there  # integers, so that ties are the same everywhere
        visits.append(list(counts))
        sources.append(there[ranked.argmin(1)].tolist())
    return visits, sources
