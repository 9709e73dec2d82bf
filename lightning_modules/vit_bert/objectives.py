"""Losses: of labels, of masked words, and of what a teacher says about both."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def cross_entropy(logits: Float[Tensor, "rows classes"], labels: Int[Tensor, " rows"]) -> Float[Tensor, ""]:
    """Mean over rows, in nats; 0 where there is none."""
    return F.cross_entropy(logits.float(), labels, reduction="sum") / max(1, len(labels))


def distillation(
    student: Float[Tensor, "rows classes"], teacher: Float[Tensor, "rows classes"], temperature: float
) -> Float[Tensor, ""]:
    """T^2 KL(teacher || student) of softened distributions (Hinton et al., 1503.02531), mean over rows."""
    told = F.log_softmax(teacher.float() / temperature, dim=-1)
    said = F.log_softmax(student.float() / temperature, dim=-1)
    divergence = F.kl_div(said, told, reduction="sum", log_target=True) / max(1, len(student))
    return temperature**2 * divergence


def mixed(hard: Float[Tensor, ""], soft: Float[Tensor, ""] | None, share: float) -> Float[Tensor, ""]:
    """(1 - share) of the loss of labels and `share` of that of the teacher."""
    return hard if soft is None else (1 - share) * hard + share * soft
