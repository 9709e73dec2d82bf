"""Mask-predict: all tokens at once, then the least certain again, a few times (Ghazvininejad et al., 1904.09324).

The same loop draws images from codes in X-LXMERT, in the unified generator and, with another schedule, in MaskGIT.
"""

import math
from collections.abc import Callable, Sequence

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

Predict = Callable[[Int[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]], Float[Tensor, "batch tokens codes"]]
SCHEDULES = {"linear": lambda left: left, "cosine": lambda left: math.cos(math.pi / 2 * (1 - left))}


def mask_counts(tokens: int, steps: int, schedule: str = "linear") -> list[int]:
    """How many tokens are predicted in each step: all in the first, then ever fewer (64 in 4: 64, 48, 32, 16).

    Raises:
        ValueError: the schedule is unknown, or there are fewer tokens than steps, or no step.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule ({schedule!r}) must be one of {', '.join(SCHEDULES)}.")
    if not 1 <= steps <= tokens:
        raise ValueError(f"steps ({steps}) must be between 1 and the number of tokens ({tokens}).")
    return [max(1, int(SCHEDULES[schedule]((steps - k) / steps) * tokens)) for k in range(steps)]


def mask_predict(
    predict: Predict, *, batch: int, counts: Sequence[int], device: torch.device | None = None
) -> tuple[Int[Tensor, "batch tokens"], Float[Tensor, "batch tokens codes"]]:
    """The most probable code at each masked place, step by step; before each later step the least certain are masked.

    Certainty is the largest probability at a place, computed anew in every step also where nothing was masked.

    Args:
        predict: logits for given codes, those at masked places being of no meaning.
        batch: number of images.
        counts: tokens predicted in each step, see `mask_counts`; the first is the number of tokens.
        device: of the codes.

    Returns:
        The codes, and at each place the logits of the step that filled it last. Gradients go through these logits; the
        choice of places and of codes has none.
    """
    codes = torch.zeros(batch, counts[0], dtype=torch.int64, device=device)
    logits = kept = None
    for count in counts:
        masked = torch.ones_like(codes, dtype=torch.bool) if logits is None else _least_certain(logits, count)
        logits = predict(codes, masked)
        codes = torch.where(masked, logits.argmax(-1), codes)
        kept = logits if kept is None else torch.where(masked[..., None], logits, kept)
    return codes, kept


def _least_certain(logits: Float[Tensor, "batch tokens codes"], count: int) -> Bool[Tensor, "batch tokens"]:
    certainty = logits.detach().float().softmax(-1).amax(-1)
    return torch.zeros_like(certainty, dtype=torch.bool).scatter(
        1, certainty.argsort(dim=1, stable=True)[:, :count], True
    )


@torch.no_grad()
def one_by_one(
    predict: Predict, *, batch: int, tokens: int, device: torch.device | None = None
) -> Int[Tensor, "batch tokens"]:
    """Greedy decoding in raster order, one place in each forward pass: what mask-predict is measured against."""
    codes = torch.zeros(batch, tokens, dtype=torch.int64, device=device)
    for place in range(tokens):
        masked = repeat(torch.arange(tokens, device=device) >= place, "n -> b n", b=batch)
        codes[:, place] = predict(codes, masked)[:, place].argmax(-1)
    return codes
