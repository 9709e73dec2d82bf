"""Tokens that are computed once: a frozen tokenizer gives the same for a clip in every epoch."""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor


class Kept(dict[str, Tensor]):
    """Tokens of rows, under the name of what became tokens.

    Args:
        tokens: of a clip.
    """

    def __init__(self, tokens: int):
        super().__init__()
        self.tokens = tokens

    def once(
        self, name: str, rows: Int[Tensor, " batch"], compute: Callable[[], Int[Tensor, "batch tokens"]]
    ) -> Int[Tensor, "batch tokens"]:
        """Tokens of a batch that were kept, or else are computed for the whole batch."""
        highest = int(rows.max()) + 1
        kept = self.get(name, torch.empty(0, self.tokens, dtype=torch.long, device=rows.device))
        if len(kept) < highest:
            kept = torch.cat([kept, kept.new_full((highest - len(kept), self.tokens), -1)])
            self[name] = kept
        if (kept[rows, 0] < 0).any():
            kept[rows] = compute()
        return kept[rows]
