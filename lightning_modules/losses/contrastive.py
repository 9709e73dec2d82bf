"""Losses between paired features, and gathering them over processes so that the negatives are those of all.

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


def dual_softmax_nce(
    first: Float[Tensor, "rows dim"], second: Float[Tensor, "rows dim"], scale: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """As `info_nce`, with logits that are multiplied by their softmax over the queries (2109.04290).

    `NCELearnableTempDSLLoss` of CLIP-ViP's official code.
    """
    logits = scale * first @ second.T
    return one_way_nce(logits * logits.softmax(0)) + one_way_nce(logits.T * logits.T.softmax(0))


def hard_negative_nce(
    first: Float[Tensor, "rows dim"], second: Float[Tensor, "rows dim"], scale: Float[Tensor, ""], *, hardest: int
) -> Float[Tensor, ""]:
    """As `info_nce`, each row against its `hardest` most similar negatives alone.

    `HardNegLoss` of CLIP-ViP's official code, whose scale is fixed at 1.
    """
    logits = scale * first @ second.T
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)

    def one_way(x: Float[Tensor, "rows rows"]) -> Float[Tensor, ""]:
        negatives = x.masked_fill(own, -torch.inf).topk(min(hardest, len(x)), dim=1).values
        drawn = torch.cat([x.diagonal()[:, None], negatives], dim=1)
        return F.cross_entropy(drawn, torch.zeros(len(x), dtype=torch.long, device=x.device))

    return one_way(logits) + one_way(logits.T)


def mil_nce(
    first: Float[Tensor, "rows dim"], second: Float[Tensor, "more_rows dim"], scale: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Several texts for each video, which share its probability (Miech et al., 1912.06430); one softmax for both ways.

    `MILNCEContrastiveLoss` of CLIP-ViP's official code, whose scale is fixed.

    Args:
        first: features of videos.
        second: features of k texts of the first video, then k of the second, and so on.
        scale: the inverse temperature.
    """
    logits = (scale * first @ second.T).unflatten(1, (len(first), -1))  # video, video of the text, its text
    own = torch.eye(len(first), dtype=torch.bool, device=first.device)[:, :, None]
    negatives = logits.masked_fill(own, -torch.inf)  # a video's own texts come once, among those of the other way
    everything = torch.cat([negatives, logits.transpose(0, 1)], dim=1).flatten(1)
    positives = logits.diagonal().T  # rows, k
    return (everything.logsumexp(1) - positives.logsumexp(1)).mean()


def triplet(
    first: Float[Tensor, "rows dim"],
    second: Float[Tensor, "rows dim"],
    scale: Float[Tensor, ""],
    *,
    margin: float,
    hardest_only: bool = False,
    order: bool = False,
) -> Float[Tensor, ""]:
    """Sum over both directions of how far a negative comes within `margin` of the own pair (VSE++, 1707.05612).

    `TripletContrastiveLoss` of CLIP-ViP's official code, which has no scale.

    Args:
        first: features, as `second`.
        second: features, row i belongs to row i of `first`.
        scale: without effect.
        margin: by which the own pair is to be more similar.
        hardest_only: each row against its worst negative alone.
        order: similarity is minus the length of what `second` has beyond `first` (1511.06361), instead of the cosine.
    """
    similarity = first @ second.T
    if order:
        similarity = -torch.linalg.vector_norm((second - first[:, None]).clamp(min=0), dim=2)
    own = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    loss = similarity.new_zeros(())
    for x in (similarity, similarity.T):
        violation = (margin + x - x.diagonal()[:, None]).clamp(min=0).masked_fill(own, 0)
        loss = loss + (violation.amax(1) if hardest_only else violation).sum()
    return loss


def one_way_nce_with(logits: Float[Tensor, "rows rows"], negatives: Float[Tensor, "rows more"]) -> Float[Tensor, ""]:
    """As `one_way_nce`, with further columns that are nobody's own."""
    return F.cross_entropy(torch.cat([logits, negatives], dim=1), torch.arange(len(logits), device=logits.device))


def gather(features: Float[Tensor, "rows dim"]) -> Float[Tensor, "all_rows dim"]:
    """The rows of all processes in order of their ranks, with gradient; the same rows where there is one process.

    Without gradients they are the same rows, too: in a validation every process has all of them.
    Every process computes the whole loss, so each row gets its gradient once from each; DDP's mean over processes makes
    that the gradient of one process with the whole batch.
    """
    alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
    if alone or not torch.is_grad_enabled():
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
