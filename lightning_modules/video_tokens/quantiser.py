"""Vector quantisers: the nearest of K codes, with the loss terms and remedies that are known against unused codes."""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_modules.settings import Count, NonNegative, Positive, Share

ENTROPY_EPS = 1e-5  # within the logarithm of the mean share, as in the official code


@dataclass
class Quantised:
    """What becomes of latents.

    Attributes:
        latents: the codes in their place, with the gradient of what was quantised.
        tokens: their numbers.
        terms: of the loss, each with its weight: `commitment`, `codebook`, `entropy`; only while training.
    """

    latents: Float[Tensor, "batch dim t h w"]
    tokens: Int[Tensor, "batch t h w"]
    terms: dict[str, Tensor] = field(default_factory=dict)


class VectorQuantiser(nn.Module):
    """The code nearest to each latent by squared Euclidean distance (videogvt/models/vqvae.py, `VectorQuantizer`).

    The entropy term, 0.1 (E_n H(p_n) - H(E_n p_n)) with p_n the softmax of minus distance / 0.01, is in the official
    code and not in the paper: each latent is to be near one code, and all codes are to be used.

    Args:
        codes: K.
        dim: of a latent.
        commitment: weight of the latents' distance to their codes.
        codebook: weight of the codes' distance to their latents; without effect where codes are averages (`decay`).
        entropy: weight of the entropy term.
        temperature: that distances are divided by in it.
        unit: whether latents and codes are scaled to length 1 first (`latent_normalize`; ViT-VQGAN's l2 codes).
        decay: of codes that are moving averages of their latents (VQ-VAE-2) and get no gradient; null for codes that
            are learnt by gradients, as in the paper.
        restart: a code whose share of use, as a moving average over batches, is below this times 1 / K is put at a
            random latent of the batch; 0 for never.

    Raises:
        ValueError: codes are averages and of unit length at once.
    """

    def __init__(
        self,
        codes: Count,
        dim: Count,
        *,
        commitment: NonNegative = 0.25,
        codebook: NonNegative = 1.0,
        entropy: NonNegative = 0.1,
        temperature: Positive = 0.01,
        unit: bool = False,
        decay: Share | None = None,
        restart: Share = 0.0,
    ):
        super().__init__()
        if unit and decay is not None:
            raise ValueError(
                f"unit is true and decay is {decay}: codes of length 1 are learnt by gradients, set it null."
            )
        self.commitment, self.codebook_weight, self.entropy = commitment, codebook, entropy
        self.temperature, self.unit, self.decay, self.restart = temperature, unit, decay, restart
        bound = (3 / codes) ** 0.5  # Flax's variance scaling by fan in, uniform, of a matrix (codes, dim)
        self.codebook = nn.Parameter(torch.empty(codes, dim).uniform_(-bound, bound), requires_grad=decay is None)
        if decay is not None or restart:
            self.register_buffer("used", torch.full((codes,), 1 / codes))
        if decay is not None:
            self.register_buffer("sums", self.codebook.detach() / codes)

    @property
    def vocabulary(self) -> int:
        """K."""
        return len(self.codebook)

    @property
    def codes(self) -> Float[Tensor, "codes dim"]:
        """The codes that take the place of latents; a copy, as `restart` writes into the codebook before backward."""
        return F.normalize(self.codebook.clone(), dim=-1) if self.unit else self.codebook.clone()

    def forward(self, latents: Float[Tensor, "batch dim t h w"]) -> Quantised:
        """Codes with straight-through gradient, their numbers, and while training the terms of the loss."""
        flat = rearrange(latents, "b d t h w -> (b t h w) d")
        flat, codes = F.normalize(flat, dim=-1) if self.unit else flat, self.codes
        distances = (flat**2).sum(1, keepdim=True) - 2 * flat @ codes.T + (codes**2).sum(1)
        tokens = distances.argmin(1)
        nearest, terms = codes[tokens], {}
        if self.training:
            terms["commitment"] = self.commitment * F.mse_loss(flat, nearest.detach())
            if self.decay is None:
                terms["codebook"] = self.codebook_weight * F.mse_loss(nearest, flat.detach())
            if self.entropy:
                terms["entropy"] = self.entropy * entropy_term(-distances / self.temperature)
            self._follow(flat.detach(), tokens)
        passed = flat + (nearest - flat).detach()
        b, _, t, h, w = latents.shape
        return Quantised(rearrange(passed, "(b t h w) d -> b d t h w", b=b, t=t, h=h), tokens.view(b, t, h, w), terms)

    def embed(self, tokens: Int[Tensor, "batch t h w"]) -> Float[Tensor, "batch dim t h w"]:
        """The codes of some tokens, for a decoder."""
        return rearrange(self.codes[tokens], "b t h w d -> b d t h w")

    @torch.no_grad()
    def _follow(self, flat: Tensor, tokens: Tensor) -> None:
        """Move averages, and put unused codes at latents of this batch."""
        if self.decay is None and not self.restart:
            return
        decay = 0.99 if self.decay is None else self.decay
        counts = torch.bincount(tokens, minlength=len(self.codebook)).to(flat)
        self.used.lerp_(counts / len(tokens), 1 - decay)
        if self.decay is not None:
            sums = torch.zeros_like(self.sums).index_add_(0, tokens, flat) / len(tokens)
            self.sums.lerp_(sums, 1 - decay)
            self.codebook.copy_(self.sums / self.used.clamp_min(1e-8)[:, None])
        dead = (self.used < self.restart / len(self.codebook)).nonzero()[:, 0]
        if len(dead):
            chosen = flat[torch.randint(len(flat), (len(dead),), device=flat.device)]
            self.codebook[dead] = chosen
            self.used[dead] = 1 / len(self.codebook)
            if self.decay is not None:
                self.sums[dead] = chosen / len(self.codebook)


def entropy_term(
    affinity: Float[Tensor, "latents codes"], kind: Literal["softmax", "argmax"] = "softmax"
) -> Float[Tensor, ""]:
    """Mean entropy of each latent's shares, less the entropy of the mean shares (train_lib/losses.py, `entropy_loss`).

    Args:
        affinity: logits of the shares.
        kind: `argmax` takes the nearest code alone as the share, with the gradient of the softmax.
    """
    shares, log_shares = affinity.softmax(-1), affinity.log_softmax(-1)
    if kind == "argmax":
        shares = shares + (F.one_hot(affinity.argmax(-1), affinity.shape[-1]) - shares).detach()
    mean = shares.mean(0)
    return -(shares * log_shares).sum(-1).mean() + (mean * (mean + ENTROPY_EPS).log()).sum()
