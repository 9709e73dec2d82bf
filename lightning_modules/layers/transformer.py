"""Pre-norm transformer blocks. Parameters carry timm's names, which most published vision checkpoints use."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class QuickGELU(nn.Module):
    """`x sigmoid(1.702 x)`, the activation of the official CLIP."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The activation, value by value."""
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 1603.09382): a sample's residual branch is dropped with `probability`.

    What is kept is scaled up, so that the expectation stays; nothing happens in evaluation mode.
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, x: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch *shape"]:
        """`x`, with whole samples set to zero while training."""
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        return x * x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(keep) / keep


class Attention(nn.Module):
    """Multi-head self-attention through PyTorch's fused kernel, which never shows its weights.

    Raises:
        ValueError: `dim` cannot be split among the heads.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim ({dim}) must be a multiple of num_heads ({num_heads}).")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """What each token takes from all tokens."""
        q, k, v = rearrange(self.qkv(x), "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.num_heads)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(rearrange(mixed, "b h n d -> b n (h d)"))

    def cls_attention(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch heads tokens"]:
        """How the first token attends to all tokens (rows sum to 1), without the weights of the other tokens."""
        dim = x.shape[-1]
        q = F.linear(x[:, 0], self.qkv.weight[:dim], self.qkv.bias[:dim])
        k = F.linear(x, self.qkv.weight[dim : 2 * dim], self.qkv.bias[dim : 2 * dim])
        q = rearrange(q, "b (h d) -> b h 1 d", h=self.num_heads)
        k = rearrange(k, "b n (h d) -> b h d n", h=self.num_heads)
        return (q @ k / q.shape[-1] ** 0.5).squeeze(2).float().softmax(-1)


class Mlp(nn.Module):
    """Linear, activation, linear, for each token by itself."""

    def __init__(self, dim: int, hidden: int, activation: str = "gelu"):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = ACTIVATIONS[activation]()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """The two layers."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each on the normalised stream and added to it."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        activation: str = "gelu",
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), activation)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """The stream after attention and MLP."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def cls_attention(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch heads tokens"]:
        """How this block's first token attends to all tokens of the block's input."""
        return self.attn.cls_attention(self.norm1(x))
