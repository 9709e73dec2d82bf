"""What frozen features tell: a linear classifier of them in closed form, without a rate or a number of steps."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def ridge_probe(
    features: Float[Tensor, "rows dim"],
    labels: Int[Tensor, " rows"],
    asked: Float[Tensor, "asked dim"],
    *,
    strength: float,
) -> Int[Tensor, " asked"]:
    """The labels that a ridge regression on one-hot labels gives other features.

    Args:
        features: that it learns from; each number is scaled to mean 0 and deviation 1.
        labels: of these rows, from 0.
        asked: features that are to be labelled.
        strength: of the penalty on squared weights, for each row.

    Raises:
        ValueError: there are no rows, or the strength is not above 0.
    """
    if not len(features) or strength <= 0:
        raise ValueError(f"{len(features)} rows and strength {strength}: expected rows, and a strength above 0.")
    mean, std = features.double().mean(0), features.double().std(0, correction=0).clamp_min(1e-6)
    known, asked = (features.double() - mean) / std, (asked.double() - mean) / std
    targets = torch.nn.functional.one_hot(labels).double()
    offset = targets.mean(0)
    penalty = strength * len(known) * torch.eye(known.shape[1], dtype=known.dtype, device=known.device)
    weights = torch.linalg.solve(known.T @ known + penalty, known.T @ (targets - offset))
    return (asked @ weights + offset).argmax(1)
