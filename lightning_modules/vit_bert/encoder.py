"""The encoder that pictures and sentences share: transformer layers, norms before or after their branches.

Read `Layer.forward` first. `pre` is ViT's order with a last norm; `post` is BERT's, whose tokens are normalised before
the first layer (see `tokens.py`), without a last norm.
"""

from typing import Literal

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lightning_modules.layers.transformer import Mlp

Order = Literal["pre", "post"]


class Attention(nn.Module):
    """Self-attention of several heads, which may leave out padding.

    Raises:
        ValueError: `dim` cannot be split among the heads.
    """

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim ({dim}) must be a multiple of heads ({heads}).")
        self.heads, self.dropout = heads, dropout
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], there: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """What each token takes from all tokens, or from those that are `there`."""
        q, k, v = rearrange(self.qkv(x), "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        mask = None if there is None else there[:, None, None]
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.proj(rearrange(mixed, "b h n d -> b n (h d)"))


class Layer(nn.Module):
    """Attention and a two-layer network, each a branch beside the stream."""

    def __init__(self, dim: int, hidden: int, heads: int, *, norm: Order, norm_eps: float, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=norm_eps), nn.LayerNorm(dim, eps=norm_eps)
        self.attn, self.mlp = Attention(dim, heads, dropout), Mlp(dim, hidden)
        self.dropout, self.order = nn.Dropout(dropout), norm

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], there: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """The stream after both branches."""
        if self.order == "pre":
            x = x + self.dropout(self.attn(self.norm1(x), there))
            return x + self.dropout(self.mlp(self.norm2(x)))
        x = self.norm1(x + self.dropout(self.attn(x, there)))
        return self.norm2(x + self.dropout(self.mlp(x)))


class Encoder(nn.Module):
    """All layers, and the last norm of the order `pre`.

    Args:
        dim: of a token.
        hidden: of the two-layer networks.
        layers: how many.
        heads: of the attention.
        norm: see the head of this file.
        norm_eps: of all norms.
        dropout: of attention and branches.

    Raises:
        ValueError: see `Attention`.
    """

    def __init__(self, *, dim: int, hidden: int, layers: int, heads: int, norm: Order, norm_eps: float, dropout: float):
        super().__init__()
        self.blocks = nn.ModuleList(
            Layer(dim, hidden, heads, norm=norm, norm_eps=norm_eps, dropout=dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim, eps=norm_eps) if norm == "pre" else nn.Identity()

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], there: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Features of the tokens."""
        for block in self.blocks:
            x = block(x, there)
        return self.norm(x)
