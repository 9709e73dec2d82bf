"""Tokens as vectors: a linear map or a table, plus factorised learnt positions. Read `Positions.forward` first."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_modules.imp.encoder import EPS
from lightning_modules.imp.tokens import Tokens, centred


class Positions(nn.Module):
    """A table for each axis, looked up by the coordinate times the table's length; the sum is normalised.

    Args:
        buckets: rows of each table. Of texts there is one axis, and positions are plain indices.
        dim: of a vector.
    """

    def __init__(self, buckets: list[int], dim: int):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(count, dim) for count in buckets)
        self.layer_norm = nn.LayerNorm(dim, eps=EPS)

    def forward(
        self, coordinates: Float[Tensor, "batch tokens axes"] | None, count: int
    ) -> Float[Tensor, "rows tokens dim"]:
        """Vectors to add; with one row for all samples where there are no coordinates.

        Raises:
            ValueError: a text has more tokens than the table rows.
        """
        if coordinates is None:
            if count > self.tables[0].num_embeddings:
                raise ValueError(
                    f"a text of {count} tokens is longer than {self.tables[0].num_embeddings} positions: cut it."
                )
            return self.layer_norm(self.tables[0].weight[:count])[None]
        return self.layer_norm(sum(table(ids) for table, ids in zip(self.tables, self.ids(coordinates), strict=True)))

    def ids(self, coordinates: Float[Tensor, "batch tokens axes"]) -> list[Int[Tensor, "batch tokens"]]:
        """Rows of each table."""
        return [
            (part * table.num_embeddings).long()
            for table, part in zip(self.tables, coordinates.unbind(-1), strict=True)
        ]


class Embedding(nn.Module):
    """Vectors of tokens.

    Args:
        size: numbers of a token, or with `words` the number of ids.
        words: whether tokens are ids.
        buckets: see `Positions`.
        dim: of a vector.
    """

    def __init__(self, size: int, *, words: bool, buckets: list[int], dim: int):
        super().__init__()
        self.to_embedding = nn.Embedding(size, dim) if words else nn.Linear(size, dim)
        self.pos_encoding = Positions(buckets, dim)

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch tokens dim"]:
        """Content plus position; stored pixels are centred here, when tokens have been dropped."""
        content = centred(tokens.content) if tokens.content.dtype == torch.uint8 else tokens.content
        return self.to_embedding(content) + self.pos_encoding(tokens.coordinates, tokens.content.shape[1])


def draw_embeddings(module: nn.Module) -> None:
    """Tables from a normal distribution of variance 1 / dim, as flax does."""
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            with torch.no_grad():
                part.weight.normal_(std=part.embedding_dim**-0.5)
