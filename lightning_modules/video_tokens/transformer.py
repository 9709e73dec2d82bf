"""A BERT with norms after each residual sum, whose head is tied to its word embeddings.

Official: videogvt/models/simplified_bert.py of google-research/magvit. With `causal` the same network predicts one
token after another, the baseline of MAGVIT's Table 7, and keeps the keys and values of what it has read.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_modules.settings import Count, Share

NORM_EPS = 1e-12
DEVIATION = 0.02

Past = tuple[Tensor, Tensor]  # keys and values, (batch heads tokens dim)


class Layer(nn.Module):
    """Self-attention and an MLP, the norm after each sum."""

    def __init__(self, hidden_size: int, mlp_dim: int, heads: int, dropout: float, attention_dropout: float):
        super().__init__()
        self.heads, self.attention_dropout = heads, attention_dropout
        self.query, self.key, self.value, self.out = (nn.Linear(hidden_size, hidden_size) for _ in range(4))
        self.attention_norm = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.fc1, self.fc2 = nn.Linear(hidden_size, mlp_dim), nn.Linear(mlp_dim, hidden_size)
        self.mlp_norm = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], causal: bool = False, past: Past | None = None
    ) -> tuple[Float[Tensor, "batch tokens dim"], Past]:
        """The layer's output for the new tokens, and keys and values of all so far."""
        q, k, v = (rearrange(f(x), "b n (h d) -> b h n d", h=self.heads) for f in (self.query, self.key, self.value))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        mixed = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.attention_dropout if self.training else 0.0, is_causal=causal and past is None
        )
        x = self.attention_norm(x + self.dropout(self.out(rearrange(mixed, "b h n d -> b n (h d)"))))
        return self.mlp_norm(x + self.dropout(self.fc2(F.gelu(self.fc1(x), approximate="tanh")))), (k, v)


class Bert(nn.Module):
    """Token numbers to logits of the whole vocabulary.

    Args:
        vocabulary: codes, classes and special tokens.
        length: most tokens of a sequence.
        layers: number of layers; 12 (B), 24 (L), 32 (H).
        hidden_size: 768, 1024, 1280.
        mlp_dim: four times as many.
        heads: 12, 16, 16.
        dropout: of embeddings and residual branches.
        attention_dropout: of attention weights.
        causal: whether a token sees only those before it.

    Raises:
        ValueError: `hidden_size` cannot be divided among the heads.
    """

    def __init__(
        self,
        *,
        vocabulary: Count,
        length: Count,
        layers: Count = 12,
        hidden_size: Count = 768,
        mlp_dim: Count = 3072,
        heads: Count = 12,
        dropout: Share = 0.1,
        attention_dropout: Share = 0.1,
        causal: bool = False,
    ):
        super().__init__()
        if hidden_size % heads:
            raise ValueError(f"hidden_size ({hidden_size}) must be a multiple of heads ({heads}).")
        self.causal = causal
        self.words, self.positions = nn.Embedding(vocabulary, hidden_size), nn.Embedding(length, hidden_size)
        self.embedding_norm = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            Layer(hidden_size, mlp_dim, heads, dropout, attention_dropout) for _ in range(layers)
        )
        self.head, self.head_norm = nn.Linear(hidden_size, hidden_size), nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.trunc_normal_(parameter, std=DEVIATION, a=-2 * DEVIATION, b=2 * DEVIATION)
            elif name.endswith(
                ("query.bias", "key.bias", "value.bias", "out.bias", "fc1.bias", "fc2.bias", "head.bias")
            ):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens vocabulary"]:
        """Logits at each position.

        Raises:
            ValueError: the sequence is longer than the network's positions.
        """
        return self.read(tokens, None)[0]

    def read(
        self, tokens: Int[Tensor, "batch tokens"], past: list[Past] | None
    ) -> tuple[Float[Tensor, "batch tokens vocabulary"], list[Past]]:
        """Logits of new tokens, and what is kept of all so far; `past` is what an earlier call kept."""
        start = 0 if past is None else past[0][0].shape[2]
        end = start + tokens.shape[1]
        if end > len(self.positions.weight):
            raise ValueError(
                f"a sequence of {end} tokens is longer than the {len(self.positions.weight)} positions of the network."
            )
        x = self.embed(tokens) + self.positions.weight[start:end]
        x, kept = self.dropout(self.embedding_norm(x)), []
        for number, layer in enumerate(self.layers):
            x, own = layer(x, self.causal, None if past is None else past[number])
            kept.append(own)
        return self.answers(self.head_norm(F.gelu(self.head(x), approximate="tanh"))), kept

    def embed(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens dim"]:
        """The vectors of tokens, without their positions."""
        return self.words(tokens)

    def answers(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens vocabulary"]:
        """Logits, by the vectors of the vocabulary."""
        return x @ self.words.weight.T + self.bias
