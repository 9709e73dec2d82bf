"""Contrastive batches larger than what fits into memory, with the exact gradient (GradCache, Gao et al., 2101.06983).

A batch is embedded in micro-batches without keeping what their gradients need. The loss is taken over all vectors at
once, and then each micro-batch is embedded a second time, and gets the gradient of its own vectors. Autograd's
checkpoints are these two passes, one micro-batch after another, and restore the random states of the first.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_modules.settings import Count

Parts = tuple[Tensor, ...]


def cached(encode: Callable[..., Parts], rows: Count | None, *columns: Tensor) -> Parts:
    """What `encode` gives for all rows, of which the intermediate results of one micro-batch are kept at a time.

    Args:
        encode: from columns to tensors, each with as many rows; a row's result depends on that row alone.
        rows: of a micro-batch, of which the last may have fewer; null for all at once, with nothing computed twice.
        columns: what is given to `encode`, in equal numbers of rows.
    """
    if rows is None:
        return encode(*columns)
    parts = []
    for part in zip(*(column.split(rows) for column in columns), strict=True):
        parts.append(checkpoint(encode, *part, use_reentrant=False) if torch.is_grad_enabled() else encode(*part))
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))
