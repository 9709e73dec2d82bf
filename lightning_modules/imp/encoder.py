"""The encoder that all modalities share: pre-norm transformer layers without biases, some of them with experts.

Read `Layer.forward` first. Names of parameters are those of the official code.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lightning_modules.imp.experts import Experts, FeedForward, Mixture

EPS = 1e-6
FAR = -1e10  # beside a score, as in the official code


def scaling_norm(dim: int) -> nn.LayerNorm:
    """Layer norm without a bias."""
    return nn.LayerNorm(dim, eps=EPS, bias=False)


def far_off(there: Bool[Tensor, "batch tokens"]) -> Float[Tensor, "batch 1 tokens tokens"]:
    """What is added to scores: nothing where both tokens are there, and so much that nothing else counts elsewhere."""
    both = there[:, None, :, None] & there[:, None, None, :]
    return torch.zeros(both.shape, device=there.device).masked_fill(~both, FAR)


class Attention(nn.Module):
    """Self-attention without biases; with `norm_qk`, queries and keys of each head are normalised.

    Raises:
        ValueError: `dim` cannot be split among the heads.
    """

    def __init__(self, dim: int, heads: int, *, norm_qk: bool):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim ({dim}) must be a multiple of heads ({heads}).")
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.layer_norm_q = scaling_norm(dim // heads) if norm_qk else nn.Identity()
        self.layer_norm_k = scaling_norm(dim // heads) if norm_qk else nn.Identity()

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], there: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """What each token takes from all tokens, or from those that are `there`.

        What is not there takes from all tokens alike, as in the official code: experts read padding, too.
        """
        q, k, v = (rearrange(part(x), "b n (h d) -> b h n d", h=self.heads) for part in (self.q, self.k, self.v))
        q, k = self.layer_norm_q(q), self.layer_norm_k(k)
        if there is None:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:  # the fused kernels have no right gradient where a whole row is far off
            scores = q / q.shape[-1] ** 0.5 @ k.transpose(2, 3)
            mixed = (scores.float() + far_off(there)).softmax(3).to(v.dtype) @ v
        return self.o(rearrange(mixed, "b h n d -> b n (h d)"))


class Layer(nn.Module):
    """Attention and a feed-forward network or experts, each on the normalised stream and added to it."""

    def __init__(self, dim: int, hidden: int, heads: int, *, norm_qk: bool, mixture: Mixture | None = None):
        super().__init__()
        self.layer_norm_sa = scaling_norm(dim)
        self.self_attention = Attention(dim, heads, norm_qk=norm_qk)
        self.layer_norm_ffn = scaling_norm(dim)
        self.feed_forward = FeedForward(dim, hidden) if mixture is None else Experts(dim, hidden, mixture)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], there: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """The stream after both."""
        x = x + self.self_attention(self.layer_norm_sa(x), there)
        return x + self.feed_forward(self.layer_norm_ffn(x))


class Encoder(nn.Module):
    """All layers, and the last norm, which has a bias in the official code as the only one here.

    Args:
        dim: of a token.
        hidden: of the feed-forward networks.
        layers: how many.
        heads: of the attention.
        norm_qk: see `Attention`.
        mixture: of the layers with experts; null for none.

    Raises:
        ValueError: there are more layers with experts than layers, or they cannot be spread evenly.
    """

    def __init__(
        self, *, dim: int, hidden: int, layers: int, heads: int, norm_qk: bool, mixture: Mixture | None = None
    ):
        super().__init__()
        with_experts = sparse_layers(layers, mixture)
        self.layers = nn.ModuleList(
            Layer(dim, hidden, heads, norm_qk=norm_qk, mixture=mixture if sparse else None) for sparse in with_experts
        )
        self.final_layer_norm = nn.LayerNorm(dim, eps=EPS)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], there: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Features of the tokens."""
        for layer in self.layers:
            x = layer(x, there)
        return self.final_layer_norm(x)

    def experts(self) -> list[Experts]:
        """The feed-forward parts that are experts."""
        return [layer.feed_forward for layer in self.layers if isinstance(layer.feed_forward, Experts)]


def sparse_layers(layers: int, mixture: Mixture | None) -> list[bool]:
    """Which layers have experts.

    Raises:
        ValueError: see `Encoder`.
    """
    if mixture is None or not mixture["layers"]:
        return [False] * layers
    sparse = mixture["layers"]
    if sparse > layers:
        raise ValueError(f"mixture.layers is {sparse}, but there are {layers} layers: take fewer.")
    if mixture["place"] == "last":
        return [number >= layers - sparse for number in range(layers)]
    if layers % sparse:
        raise ValueError(
            f"mixture.layers is {sparse}, which does not divide {layers} layers: uniform places need that."
        )
    every = layers // sparse
    return [(number + 1) % every == 0 for number in range(layers)]
