"""InfoNCE between paired features, and gathering them over processes so that the negatives are those of all.

Features are unit vectors, row i of one side belongs to row i of the other, and `scale` is the inverse temperature.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def one_way_nce(logits: Float[Tensor, "rows rows"]) -> Float[Tensor, ""]:
    """Cross-entropy of picking each row's own column: log N where all logits are equal."""
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def info_nce(
    first: Float[Tensor, "rows dim"], second: Float[Tensor, "rows dim"], scale: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Both directions, added (CLIP itself takes their mean)."""
    logits = scale * first @ second.T
    return one_way_nce(logits) + one_way_nce(logits.T)


def joint_info_nce(
    video: Float[Tensor, "rows dim"],
    first: Float[Tensor, "rows dim"],
    second: Float[Tensor, "rows dim"],
    scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """A video with two texts: each is to beat the other videos' texts of both kinds, and is no negative of the other.

    The combined loss of CLIP-ViP for video, subtitle and auxiliary caption; from text to video it is two ordinary
    cross-entropies.
    """
    ours, theirs = scale * video @ first.T, scale * video @ second.T
    own = torch.eye(len(video), dtype=torch.bool, device=video.device)
    loss = one_way_nce(ours.T) + one_way_nce(theirs.T)
    for positive, other in ((ours, theirs), (theirs, ours)):
        loss = loss + one_way_nce_with(positive, other.masked_fill(own, -torch.inf))
    return loss


def one_way_nce_with(logits: Float[Tensor, "rows rows"], negatives: Float[Tensor, "rows more"]) -> Float[Tensor, ""]:
    """As `one_way_nce`, with further columns that are nobody's own."""
    return F.cross_entropy(torch.cat([logits, negatives], dim=1), torch.arange(len(logits), device=logits.device))


def gather(features: Float[Tensor, "rows dim"]) -> Float[Tensor, "all_rows dim"]:
    """The rows of all processes in order of their ranks, with gradient; the same rows where there is one process.

    Every process computes the whole loss, so each row gets its gradient once from each; DDP's mean over processes makes
    that the gradient of one process with the whole batch.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return features
    return _Gather.apply(features)


class _Gather(torch.autograd.Function):
    """All-gather whose backward pass adds up what the processes say about one's own rows."""

    @staticmethod
    def forward(ctx: object, features: Tensor) -> Tensor:
        parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, features.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]
