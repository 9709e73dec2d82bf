"""What is minimised: contrast between modalities, classes, and words that were masked. Read `cross_modal_nce` first."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from lightning_modules.losses.contrastive import gather

SMALL = 1e-6  # beside a length and beside a temperature, as in the official code
IGNORED = -100  # target of a word that is not asked for


def cross_modal_nce(
    first: Float[Tensor, "rows instances dim"],
    second: Float[Tensor, "rows others dim"],
    temperature: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Mean of both directions; of several instances of a row all pairs are right, and share the probability (MIL-NCE).

    The rows of all processes are negatives.

    Args:
        first: vectors of any length, as `second`, whose rows belong to those of `first`.
        second: see `first`.
        temperature: similarities are divided by it.
    """
    first, second = (gather(unit(x).flatten(1)).unflatten(1, x.shape[1:]) for x in (first, second))
    similarity = torch.einsum("bmd,cnd->bcmn", first, second).flatten(2) / (temperature + SMALL)
    own = similarity.diagonal().T.logsumexp(1)
    return (similarity.logsumexp((1, 2)) + similarity.logsumexp((0, 2)) - 2 * own).mean() / 2


def unit(x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    """Vectors of length 1, nearly: the length is freed of zero as in the official code."""
    return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + SMALL)


def classification(
    logits: Float[Tensor, "rows classes"], labels: Shaped[Tensor, " rows *classes"]
) -> Float[Tensor, ""]:
    """Softmax cross-entropy; of rows with several classes each has an equal share.

    Args:
        logits: of the classes.
        labels: their numbers, or for each class whether it is there.
    """
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels)
    shares = labels.to(logits.dtype)
    return F.cross_entropy(logits, shares / shares.sum(1, keepdim=True).clamp_min(1))


def masked_words(logits: Float[Tensor, "rows length words"], targets: Int[Tensor, "rows length"]) -> Float[Tensor, ""]:
    """Cross-entropy of the words that were asked for, the mean of all; 0 where none was."""
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return losses / (targets != IGNORED).sum().clamp_min(1)
