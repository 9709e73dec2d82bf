"""What VLoRA is compared with: pictures as tokens of the language model's input, of a projector or of queries.

Both give embeddings that stand before the text, so that the language model pays for each in every layer.
"""

from typing import NotRequired

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.settings import STRICT, Count
from lightning_modules.vlora.generator import QueryDecoder


class ProjectorSettings(TypedDict):
    """Arguments of `Projector` that do not follow from the language model and the tower."""

    __pydantic_config__ = STRICT
    inner: NotRequired[Count | None]


class QueriesSettings(TypedDict):
    """Likewise of `Queries`."""

    __pydantic_config__ = STRICT
    tokens: Count
    dim: Count
    depth: Count
    heads: Count
    mlp_ratio: NotRequired[Count]


class Projector(nn.Module):
    """A token for each feature, by an MLP of two layers with GELU between, as LLaVA-1.5 has it.

    Args:
        visual_dim: of a feature.
        hidden_size: of the language model.
        inner: of the MLP; null for `hidden_size`, as LLaVA has it.
    """

    def __init__(self, *, visual_dim: Count, hidden_size: Count, inner: Count | None = None):
        super().__init__()
        inner = hidden_size if inner is None else inner
        self.layers = nn.Sequential(nn.Linear(visual_dim, inner), nn.GELU(), nn.Linear(inner, hidden_size))

    def forward(self, features: Float[Tensor, "batch patches visual_dim"]) -> Float[Tensor, "batch patches hidden"]:
        """The tokens."""
        return self.layers(features)


class Queries(nn.Module):
    """A token for each of a few learned queries, which read the features in blocks as the generator's (a Q-Former).

    Args:
        visual_dim: of a feature.
        patches: features of a picture.
        hidden_size: of the language model.
        tokens: queries.
        dim: of a query.
        depth: blocks.
        heads: of attention.
        mlp_ratio: inner size of a block's MLP over `dim`.

    Raises:
        ValueError: the heads do not divide `dim`.
    """

    def __init__(
        self,
        *,
        visual_dim: Count,
        patches: Count,
        hidden_size: Count,
        tokens: Count,
        dim: Count,
        depth: Count,
        heads: Count,
        mlp_ratio: Count = 4,
    ):
        super().__init__()
        if dim % heads:
            raise ValueError(f"queries.dim ({dim}) must be a multiple of queries.heads ({heads}).")
        self.projection = nn.Linear(visual_dim, dim)
        self.positions = nn.Parameter(torch.randn(1, patches, dim))
        self.decoder = QueryDecoder(
            dim=dim, depth=depth, heads=heads, mlp_ratio=mlp_ratio, queries=tokens, outputs=hidden_size
        )

    def forward(self, features: Float[Tensor, "batch patches visual_dim"]) -> Float[Tensor, "batch tokens hidden"]:
        """The tokens."""
        return self.decoder(self.projection(features) + self.positions)
