"""What generator and discriminator minimise against each other, and the discriminator's regularisers.

Official: videogvt/train_lib/losses.py. R1 is Mescheder et al. (1801.04406) without its factor 1/2; LeCam is Tseng et
al. (2104.03310), named in the paper's appendix and switched off in the released settings.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Game = Literal["softplus", "hinge"]  # the code's `non-saturating` and `hinge`


def generator_loss(fake: Float[Tensor, " logits"], game: Game = "softplus") -> Float[Tensor, ""]:
    """Looking real: the mean of softplus(-D), or of -D."""
    return F.softplus(-fake).mean() if game == "softplus" else -fake.mean()


def discriminator_loss(
    real: Float[Tensor, " logits"], fake: Float[Tensor, " logits"], game: Game = "softplus"
) -> Float[Tensor, ""]:
    """Telling them apart: softplus(-D(real)) + softplus(D(fake)), or the hinge of each at a margin of 1."""
    if game == "softplus":
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def r1_penalty(logits: Float[Tensor, " logits"], video: Float[Tensor, "batch ..."]) -> Float[Tensor, ""]:
    """Squared length of the gradient of each real clip's logit with respect to its pixels, averaged over clips.

    Args:
        logits: of `video`, which requires its gradient.
        video: real clips.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), video, create_graph=True)
    return gradient.float().flatten(1).pow(2).sum(1).mean()


def lecam(
    real: Float[Tensor, ""], fake: Float[Tensor, ""], average_real: Float[Tensor, ""], average_fake: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """How far the mean logits are on the right side of the other's moving average, squared.

    Args:
        real: mean logit of real clips.
        fake: mean logit of drawn clips.
        average_real: moving average of the former.
        average_fake: moving average of the latter.
    """
    return F.relu(real - average_fake).square() + F.relu(average_real - fake).square()
