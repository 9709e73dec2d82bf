"""Open-MAGVIT2's generator: a Llama over tokens, and a smaller one over the sub-tokens of each.

A re-implementation that is not by MAGVIT-v2's authors (Luo et al., arXiv 2409.04410); official:
src/Open_MAGVIT2/modules/transformer/gpt.py in TencentARC/SEED-Voken, whose names the parameters carry. A token of 18
bits has a first sub-token of 6 and a second of 12. The spatial blocks read the class and all earlier tokens; the
factorized blocks read what these say, and then the first sub-token, and so predict one after the other.

The rotary positions of the class and of the first place in the factorized blocks are no rotation but zeros, as in that
code: queries and keys there are zero, and attention to it depends on nothing.
"""

from collections.abc import Generator, Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_modules.layers.published import load_strictly
from lightning_modules.magvit2.transformer import Bits
from lightning_modules.settings import Count, Share

DEVIATION = 0.02
BASE = 10_000.0  # of the rotary frequencies
NORM_EPS = 1e-5
MULTIPLE = 256  # that the width of an MLP is rounded up to

Past = tuple[Tensor, Tensor]  # keys and values, (batch heads tokens dim)
PREFIX = "transformer."
UNUSED = ("first_stage_model.", "cond_stage_model.")  # the tokenizer, and what reads labels


def turns(rows: int, columns: int, dim: int) -> Float[Tensor, "places half 2"]:
    """Cosine and sine of each pair of channels at each place: the first half of the pairs by row, the second by column.

    Args:
        rows: of the grid.
        columns: of the grid.
        dim: of a head.

    Returns:
        The class, with zeros, and then the grid row by row.
    """
    rates = BASE ** -(torch.arange(0, dim // 2, 2).float() / (dim // 2))
    by_row = torch.outer(torch.arange(rows).float(), rates)[:, None].expand(-1, columns, -1)
    by_column = torch.outer(torch.arange(columns).float(), rates)[None].expand(rows, -1, -1)
    angles = torch.cat([by_row, by_column], -1).flatten(0, 1)
    return torch.cat([torch.zeros(1, dim // 2, 2), torch.stack([angles.cos(), angles.sin()], -1)])


def turned(
    x: Float[Tensor, "batch heads tokens dim"], by: Float[Tensor, "tokens half 2"]
) -> Float[Tensor, "batch heads tokens dim"]:
    """Each pair of channels as a complex number, times another."""
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = by.unbind(-1)
    return torch.stack([real * cosine - imaginary * sine, imaginary * cosine + real * sine], -1).flatten(-2)


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.wqkv, self.wo = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], by: Float[Tensor, "tokens half 2"], past: Past | None
    ) -> tuple[Float[Tensor, "batch tokens dim"], Past]:
        """What the new tokens take from all so far, and the keys and values of these."""
        q, k, v = rearrange(self.wqkv(x), "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        q, k = turned(q, by), turned(k, by)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        return self.dropout(self.wo(rearrange(mixed, "b h n d -> b n (h d)"))), (k, v)


class FeedForward(nn.Module):
    """SwiGLU; its width is 8 / 3 of `dim`, rounded up to a multiple."""

    def __init__(self, dim: int, multiple: int, dropout: float):
        super().__init__()
        hidden = -(-(8 * dim // 3) // multiple) * multiple
        self.w1, self.w3 = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """The gated layer."""
        return self.dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))


class Block(nn.Module):
    """Attention and MLP, each on the normalised stream and added to it."""

    def __init__(self, dim: int, heads: int, multiple: int, dropout: float):
        super().__init__()
        self.attention, self.feed_forward = Attention(dim, heads, dropout), FeedForward(dim, multiple, dropout)
        self.attention_norm, self.ffn_norm = nn.RMSNorm(dim, NORM_EPS), nn.RMSNorm(dim, NORM_EPS)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], by: Float[Tensor, "tokens half 2"], past: Past | None
    ) -> tuple[Float[Tensor, "batch tokens dim"], Past]:
        """The stream after attention and MLP, and keys and values."""
        mixed, kept = self.attention(self.attention_norm(x), by, past)
        x = x + mixed
        return x + self.feed_forward(self.ffn_norm(x)), kept


class ClassEmbedding(nn.Module):
    """A vector for each class, and one for none, the last."""

    def __init__(self, classes: int, dim: int):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, dim)


class Llama(nn.Module):
    """Classes and sub-tokens to logits of the sub-tokens.

    Args:
        classes: number of classes.
        rows: of the grid of tokens.
        columns: of the grid.
        bits: of the first and the second sub-token.
        layers: spatial blocks; 24 (B), 36 (L), 48 (XL).
        factorized_layers: 2, 3, 4.
        hidden_size: 1024, 1280, 1536.
        heads: 16, 20, 24.
        mlp_multiple: see `FeedForward`.
        dropout: of embeddings and residual branches.

    Raises:
        ValueError: there are not two sub-tokens, or `hidden_size` is no multiple of four times the heads.
    """

    def __init__(
        self,
        *,
        classes: Count,
        rows: Count,
        columns: Count,
        bits: Bits = (6, 12),
        layers: Count = 24,
        factorized_layers: Count = 2,
        hidden_size: Count = 1024,
        heads: Count = 16,
        mlp_multiple: Count = MULTIPLE,
        dropout: Share = 0.1,
    ):
        super().__init__()
        if len(bits) != 2:
            raise ValueError(f"bits is {list(bits)}, expected two numbers: those of the first and second sub-token.")
        if hidden_size % (4 * heads):
            raise ValueError(f"hidden_size ({hidden_size}) must be a multiple of 4 x heads ({heads}).")
        self.factors = tuple(2**n for n in bits)
        self.pre_emb, self.post_emb = (nn.Embedding(factor, hidden_size) for factor in self.factors)
        self.class_emb = ClassEmbedding(classes, hidden_size)
        self.dropout = nn.Dropout(dropout)
        options = hidden_size, heads, mlp_multiple, dropout
        self.spatial_blocks = nn.ModuleList(Block(*options) for _ in range(layers))
        self.factorized_blocks = nn.ModuleList(Block(*options) for _ in range(factorized_layers))
        self.norm = nn.RMSNorm(hidden_size, NORM_EPS)
        self.head = nn.ModuleList(nn.Linear(hidden_size, factor, bias=False) for factor in self.factors)
        self.register_buffer("turns", turns(rows, columns, hidden_size // heads), persistent=False)
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                nn.init.normal_(part.weight, std=DEVIATION)
        for part in self.head:
            nn.init.zeros_(part.weight)

    def forward(
        self, labels: Int[Tensor, " batch"], first: Int[Tensor, "batch tokens"], second: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens subtokens"]:
        """Logits of every token's sub-tokens, one vocabulary after the other, given the truth of all before."""
        start = self.class_emb.embedding_table(labels)[:, None]
        x = torch.cat([start, self.pre_emb(first[:, :-1]) + self.post_emb(second[:, :-1])], 1)
        said, _ = self.read(x, None)
        pairs = torch.stack([said, self.pre_emb(first)], 2).flatten(0, 1)
        answers, _ = self.read_within(pairs, None)
        logits = [head(answers[:, n]) for n, head in enumerate(self.head)]
        return torch.cat(logits, -1).unflatten(0, said.shape[:2])

    def steps(self, labels: Int[Tensor, " batch"]) -> Generator[Float[Tensor, "batch codes"], Int[Tensor, " batch"]]:
        """Logits of one sub-token after another; each time, the sub-token is to be sent. Keys and values are kept."""
        said, past = self.read(self.class_emb.embedding_table(labels)[:, None], None)
        while True:
            answer, within = self.read_within(said, None)
            first = self.pre_emb((yield self.head[0](answer[:, 0])))[:, None]
            answer, _ = self.read_within(first, within)
            second = self.post_emb((yield self.head[1](answer[:, 0])))[:, None]
            said, past = self.read(first + second, past)

    @property
    def head_parameters(self) -> int:
        """Numbers of the heads."""
        return sum(head.weight.numel() for head in self.head)

    def read(
        self, x: Float[Tensor, "batch tokens dim"], past: list[Past] | None
    ) -> tuple[Float[Tensor, "batch tokens dim"], list[Past]]:
        """What the spatial blocks say after each new vector, and what is kept of all so far."""
        return _through(self.spatial_blocks, self.dropout(x), self.turns, past)

    def read_within(
        self, x: Float[Tensor, "batch subtokens dim"], past: list[Past] | None
    ) -> tuple[Float[Tensor, "batch subtokens dim"], list[Past]]:
        """The same of the factorized blocks, normalised."""
        x, kept = _through(self.factorized_blocks, x, self.turns, past)
        return self.norm(x), kept


def _through(blocks: nn.ModuleList, x: Tensor, by: Tensor, past: list[Past] | None) -> tuple[Tensor, list[Past]]:
    start, kept = 0 if past is None else past[0][0].shape[2], []
    for number, block in enumerate(blocks):
        x, own = block(x, by[start : start + x.shape[1]], None if past is None else past[number])
        kept.append(own)
    return x, kept


def load_open_magvit2(network: Llama, state: Mapping[str, Tensor]) -> list[str]:
    """Take over the `state_dict` of an Open-MAGVIT2-AR checkpoint, every key of it accounted for.

    Returns:
        The keys that are not the generator's: those of the tokenizer that lies in the same file.

    Raises:
        ValueError: a key is unknown or missing, or a shape is another.
    """
    own = {name.removeprefix(PREFIX): x for name, x in state.items() if not name.startswith(UNUSED)}
    load_strictly(network, own, "the checkpoint of Open-MAGVIT2-AR")
    return [name for name in state if name.startswith(UNUSED)]
