"""The perceptual weights generator: features of a picture become low-rank additions to weights of a language model.

Read `PerceptualWeights.forward` first. Of each addition one factor is generated for every picture, the other is learned
and zero at first, so that at the start a language model computes exactly what it computed without a picture.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, NotRequired

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.settings import STRICT, Count, Positive

Kind = Literal["q", "k", "v", "o", "m"]
KINDS = ("q", "k", "v", "o", "m")  # queries, keys, values, output of attention, around the MLP


class Delta(NamedTuple):
    """An addition x A B^T to what a layer gives for x; the scale alpha / rank is in the second factor."""

    generated: Float[Tensor, "batch inputs rank"]
    learned: Float[Tensor, "outputs rank"]


Deltas = Mapping[int, Mapping[str, Delta]]  # of each adapted layer, by its number


class GeneratorSettings(TypedDict):
    """Arguments of `PerceptualWeights` that do not follow from the language model and the tower."""

    __pydantic_config__ = STRICT
    dim: NotRequired[Count]
    depth: NotRequired[Count]
    rank: NotRequired[Count]
    alpha: NotRequired[Positive | None]
    kinds: NotRequired[str]
    separate: NotRequired[bool]
    skip: NotRequired[Count]
    heads: NotRequired[Count]
    mlp_ratio: NotRequired[Count]
    spread: NotRequired[Positive]


class Block(nn.Module):
    """Queries look at one another, then at the picture, whose keys are not normalised; then an MLP."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int):
        super().__init__()
        self.own = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.cross = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.widen, self.narrow = nn.Linear(dim, dim * mlp_ratio), nn.Linear(dim * mlp_ratio, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))

    def forward(
        self, queries: Float[Tensor, "batch queries dim"], seen: Float[Tensor, "batch patches dim"]
    ) -> Float[Tensor, "batch queries dim"]:
        """The queries after this block."""
        x = self.norms[0](queries)
        queries = queries + self.own(x, x, x, need_weights=False)[0]
        queries = queries + self.cross(self.norms[1](queries), seen, seen, need_weights=False)[0]
        return queries + self.narrow(F.gelu(self.widen(self.norms[2](queries))))


class QueryDecoder(nn.Module):
    """Learned queries that read a picture, and a linear layer that all of them share.

    Args:
        dim: of a query.
        depth: blocks.
        heads: of attention.
        mlp_ratio: inner size of the MLP over `dim`.
        queries: how many.
        outputs: numbers that each query gives.
    """

    def __init__(self, *, dim: int, depth: int, heads: int, mlp_ratio: int, queries: int, outputs: int):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, queries, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, outputs)

    def forward(self, seen: Float[Tensor, "batch patches dim"]) -> Float[Tensor, "batch queries outputs"]:
        """What each query gives."""
        x = self.queries.expand(len(seen), -1, -1)
        for block in self.blocks:
            x = block(x, seen)
        return self.head(self.norm(x))


class PerceptualWeights(nn.Module):
    """Additions to the weights of every `skip`-th layer of a language model, for each picture.

    Args:
        sizes: inputs and outputs of what is added to, by its kind; see `injection.sizes_of`.
        layers: of the language model.
        visual_dim: of a feature.
        patches: features of a picture.
        dim: of the generator.
        depth: its blocks.
        rank: of an addition.
        alpha: an addition is scaled by alpha over the rank; null for the rank itself.
        kinds: what is added to, in the order of the weights.
        separate: a generator for each kind, or one with queries for all kinds.
        skip: layers skip - 1, 2 skip - 1, ... are adapted, counted from 0.
        heads: of attention.
        mlp_ratio: of the generator.
        spread: standard deviation of fresh linear layers; narrow ones need a larger one.

    Raises:
        ValueError: a kind is unknown or named twice, the layers are no multiple of `skip`, the heads do not divide
            `dim`, or one generator is to give factors of different widths.
    """

    def __init__(
        self,
        *,
        sizes: Mapping[str, tuple[int, int]],
        layers: Count,
        visual_dim: Count,
        patches: Count,
        dim: Count = 512,
        depth: Count = 8,
        rank: Count = 64,
        alpha: Positive | None = None,
        kinds: str = "qkvom",
        separate: bool = True,
        skip: Count = 4,
        heads: Count = 16,
        mlp_ratio: Count = 4,
        spread: Positive = 0.02,
    ):
        super().__init__()
        check_sizes(kinds, layers, skip, dim, heads)
        inputs = {sizes[kind][0] for kind in kinds}
        if not separate and len(inputs) > 1:
            raise ValueError(
                f"generator.separate is false, but inputs are {sorted(inputs)} wide: a shared generator has one width; "
                "set it to true."
            )
        self.sizes, self.rank, self.kinds, self.separate = dict(sizes), rank, kinds, separate
        self.scale = 1.0 if alpha is None else alpha / rank
        self.adapted = range(skip - 1, layers, skip)
        common = {"dim": dim, "depth": depth, "heads": heads, "mlp_ratio": mlp_ratio}
        self.projection = nn.Linear(visual_dim, dim)
        self.positions = nn.Parameter(torch.randn(1, patches, dim))
        count = len(self.adapted)
        if separate:
            parts = [QueryDecoder(queries=count, outputs=sizes[kind][0] * rank, **common) for kind in kinds]
        else:
            parts = [QueryDecoder(queries=count * len(kinds), outputs=inputs.pop() * rank, **common)]
        self.decoders = nn.ModuleList(parts)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=spread)
                nn.init.zeros_(part.bias)
        self.learned = nn.ParameterDict({kind: torch.zeros(count, sizes[kind][1], rank) for kind in kinds})

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all additions x A B^T to one token."""
        return len(self.adapted) * self.rank * sum(sum(self.sizes[kind]) for kind in self.kinds)

    def forward(
        self, features: Float[Tensor, "batch patches visual_dim"], has_image: Tensor | None = None
    ) -> dict[int, dict[str, Delta]]:
        """The additions to each adapted layer.

        Args:
            features: of pictures.
            has_image: bool (batch,), false where a row has no picture and nothing is added; its graph is kept.

        Raises:
            ValueError: there are more or fewer features than `patches`.
        """
        if features.shape[1] != self.positions.shape[1]:
            raise ValueError(
                f"a picture has {features.shape[1]} features, but the generator has {self.positions.shape[1]} "
                "positions: give it pictures of the size that it was built for."
            )
        seen = self.projection(features) + self.positions
        found = torch.cat([part(seen) for part in self.decoders], 1) if not self.separate else None
        count, deltas = len(self.adapted), {layer: {} for layer in self.adapted}
        for number, kind in enumerate(self.kinds):
            own = self.decoders[number](seen) if self.separate else found[:, number * count : (number + 1) * count]
            if has_image is not None:
                own = own * has_image[:, None, None].to(own.dtype)
            generated = own.unflatten(2, (self.sizes[kind][0], self.rank))
            for place, layer in enumerate(self.adapted):
                deltas[layer][kind] = Delta(generated[:, place], self.scale * self.learned[kind][place])
        return deltas


def check_sizes(kinds: Sequence[str], layers: int, skip: int, dim: int, heads: int) -> None:
    """Refuse what no generator can be built of.

    Raises:
        ValueError: see `PerceptualWeights`.
    """
    if not kinds or len(set(kinds)) < len(kinds) or set(kinds) - set(KINDS):
        raise ValueError(f"generator.kinds is {kinds!r}, expected some of {''.join(KINDS)}, each once.")
    if layers % skip:
        raise ValueError(
            f"generator.skip is {skip}, which does not divide the {layers} layers of the language model: choose a "
            "divisor."
        )
    if dim % heads:
        raise ValueError(f"generator.dim ({dim}) must be a multiple of generator.heads ({heads}).")
