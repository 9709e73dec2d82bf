"""The loss of the embedding: pictures, or regions, against texts, both ways.

Phrases of regions are often equal. The text of another row that is the same, letter by letter, is no negative here; the
paper's way is not known. Without equal texts this is half of `info_nce`, CLIP's loss.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_modules.losses.contrastive import gather

FACTOR = 6364136223846793005  # odd, for a polynomial of the ids modulo 2^64 (Knuth's MMIX)


def paired_nce(
    pictures: Float[Tensor, "rows dim"],
    texts: Float[Tensor, "rows dim"],
    scale: Float[Tensor, ""],
    keys: Int[Tensor, " rows"] | None = None,
) -> Float[Tensor, ""]:
    """Mean of both directions: log N where all are equally similar. Rows of all processes are each other's negatives.

    Args:
        pictures: unit vectors.
        texts: likewise, row by row.
        scale: inverse temperature.
        keys: of the texts, see `text_keys`; rows with one key are no negatives of each other. None for all different.
    """
    logits = scale * gather(pictures) @ gather(texts).T
    if keys is not None:
        logits = logits.masked_fill(others_alike(everywhere(keys)), -torch.inf)
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def others_alike(keys: Int[Tensor, " rows"]) -> Bool[Tensor, "rows rows"]:
    """Which other rows have the same key."""
    return (keys[:, None] == keys) & ~torch.eye(len(keys), dtype=torch.bool, device=keys.device)


def text_keys(token_ids: Int[Tensor, "rows length"], there: Bool[Tensor, "rows length"]) -> Int[Tensor, " rows"]:
    """A number for each text, equal for equal ids whatever the padding behind them; others are equal by accident only.

    Args:
        token_ids: padded on the right.
        there: false where padded.
    """
    keys = torch.zeros_like(token_ids[:, 0])
    for ids, real in zip(token_ids.T, there.T, strict=True):
        keys = torch.where(real, keys * FACTOR + ids + 1, keys)  # int64, modulo 2^64
    return keys


def everywhere(keys: Int[Tensor, " rows"]) -> Int[Tensor, " all_rows"]:
    """The keys of all processes in order of their ranks, where `gather` gathers the rows."""
    alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
    if alone or not torch.is_grad_enabled():
        return keys
    parts = [torch.empty_like(keys) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, keys.contiguous())
    return torch.cat(parts)
