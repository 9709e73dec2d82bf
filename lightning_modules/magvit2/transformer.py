"""MAGVIT-v2's masked transformer: a token is embedded and predicted as sub-tokens of a few bits each.

A vocabulary of 2^18 words has a table of 268 million numbers at 1,024 channels. Divided into two sub-tokens of 9 bits,
a token is the sum of two of 2 x 512 vectors, which are the two heads as well: 1 million numbers. The authors published
no code; the network around it is MAGVIT's (`video_tokens.transformer.Bert`).
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from lightning_modules.settings import Count, Share
from lightning_modules.video_tokens.transformer import DEVIATION, Bert

Bits = Annotated[Sequence[Annotated[int, Field(ge=1, le=24)]], Field(min_length=1)]


class FactorisedBert(Bert):
    """Token numbers to logits of all sub-tokens, one vocabulary after the other.

    Args:
        bits: of each sub-token, the least significant first; one number for a token that is not divided.
        extra: classes and special tokens, which are numbered after the codes and are not divided.
        hidden_size: of a vector.

    All others are those of `Bert`.
    """

    def __init__(
        self,
        *,
        bits: Bits,
        extra: Count,
        length: Count,
        layers: Count = 12,
        hidden_size: Count = 768,
        mlp_dim: Count = 3072,
        heads: Count = 12,
        dropout: Share = 0.1,
        attention_dropout: Share = 0.1,
        causal: bool = False,
    ):
        super().__init__(
            vocabulary=extra, length=length, layers=layers, hidden_size=hidden_size, mlp_dim=mlp_dim, heads=heads,
            dropout=dropout, attention_dropout=attention_dropout, causal=causal,
        )  # fmt: skip
        self.factors = tuple(2**n for n in bits)
        self.codes = 2 ** sum(bits)
        self.parts = nn.ModuleList(nn.Embedding(factor, hidden_size) for factor in self.factors)
        for part in self.parts:
            nn.init.trunc_normal_(part.weight, std=DEVIATION, a=-2 * DEVIATION, b=2 * DEVIATION)
        self.bias = nn.Parameter(torch.zeros(sum(self.factors)))

    def embed(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens dim"]:
        """The sum of the vectors of a code's sub-tokens; a vector of its own for every other token."""
        rest, found = tokens.clamp_max(self.codes - 1), 0
        for part, factor in zip(self.parts, self.factors, strict=True):
            found, rest = found + part(rest % factor), rest // factor
        other = self.words((tokens - self.codes).clamp_min(0))
        return torch.where(tokens[..., None] < self.codes, found, other)

    def answers(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens subtokens"]:
        """Logits of each sub-token, by its own vectors."""
        return torch.cat([x @ part.weight.T for part in self.parts], -1) + self.bias

    @property
    def head_parameters(self) -> int:
        """Numbers of the sub-tokens' vectors, which are the heads."""
        return sum(part.weight.numel() for part in self.parts)
