"""Lookup-free quantisation (MAGVIT-v2, section 3.1): the sign of a channel is a bit of the token. There is no codebook.

Two re-implementations exist, and they write bits in different orders: SEED-Voken's first channel is the lowest bit, as
in the paper, that of vector-quantize-pytorch the highest. In both a latent of exactly 0 becomes -1.

The entropy term asks that each latent be near one code, and that all codes be used. The chances of the codes,
softmax(-|z - c|^2 / tau), are products over channels, each with the chance sigmoid(4 z_i / tau) of +1. So the entropy
of a latent's chances is a sum over channels. The mean chances of all codes, of which there may be 2^18, are one product
of two matrices, each with a row for each latent and a column for each code of half of the channels. No tensor has a row
for each latent and a column for each of all codes.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.distributed
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_modules.settings import Count, NonNegative, Positive
from lightning_modules.video_tokens.quantiser import Quantised

Order = Literal["little", "big"]
TINY = 1e-30  # added to chances within a logarithm


class LookupFree(nn.Module):
    """A bit for each channel, +1 where it is above 0, else -1.

    Args:
        codes: K, a power of two.
        dim: of a latent, log2 K.
        commitment: weight of the latents' squared distance to their codes.
        entropy: weight of the entropy term, mean H(p_n) - diversity x H(mean p_n); see `causal_training` for how it
            is annealed.
        diversity: gamma.
        temperature: tau; both re-implementations have 0.01, for which the term has almost no gradient where latents are
            further than 0.01 from 0.
        order: `little` where the first channel is the lowest bit of a token, `big` where it is the highest.
        group_bits: channels whose joint chances are averaged at once. With fewer than log2 K, H(mean p_n) is the sum
            over groups, an upper bound; with 1 it is that of independent channels.
        eps: added to mean chances within their logarithm; SEED-Voken has 1e-5, more than the chance of a code of 2^18.

    Raises:
        ValueError: K is no power of two, `dim` is not its logarithm, or there is no such order.
    """

    def __init__(
        self,
        codes: Count,
        dim: Count,
        *,
        commitment: NonNegative = 0.25,
        entropy: NonNegative = 0.1,
        diversity: NonNegative = 1.0,
        temperature: Positive = 0.01,
        order: Order = "little",
        group_bits: Count = 18,
        eps: NonNegative = 0.0,
    ):
        super().__init__()
        if codes != 2**dim:
            raise ValueError(
                f"codebook_size is {codes} and embedding_dim {dim}: each channel is a bit, so set codebook_size to a "
                f"power of two and embedding_dim to its logarithm, such as {2**dim} and {dim}."
            )
        self.commitment, self.entropy, self.diversity, self.temperature = commitment, entropy, diversity, temperature
        self.group_bits, self.eps = group_bits, eps
        if order not in get_args(Order):
            raise ValueError(f"order ({order!r}) must be one of {', '.join(get_args(Order))}.")
        places = torch.arange(dim) if order == "little" else torch.arange(dim).flip(0)
        self.register_buffer("places", places, persistent=False)

    @property
    def vocabulary(self) -> int:
        """K."""
        return 2 ** len(self.places)

    def forward(self, latents: Float[Tensor, "batch dim t h w"]) -> Quantised:
        """Signs with straight-through gradient, tokens, and while training the terms of the loss; float32 at least."""
        with torch.autocast(latents.device.type, enabled=False):
            z = latents.to(torch.promote_types(latents.dtype, torch.float32))
            positive = z > 0
            signs = positive.to(z) * 2 - 1
            terms = {}
            if self.training:
                terms["commitment"] = self.commitment * F.mse_loss(z, signs)
                if self.entropy:
                    flat = rearrange(z, "b d t h w -> (b t h w) d")
                    terms["entropy"] = self.entropy * self.entropy_term(flat)
            return Quantised((z + (signs - z).detach()).to(latents), self.tokens(positive), terms)

    def tokens(self, positive: Tensor) -> Int[Tensor, "batch t h w"]:
        """The numbers that the channels (batch dim t h w) are the bits of."""
        return (positive.long() << self.places.view(-1, 1, 1, 1)).sum(1)

    def embed(self, tokens: Int[Tensor, "batch t h w"]) -> Float[Tensor, "batch dim t h w"]:
        """The signs of some tokens, for a decoder."""
        return ((tokens.unsqueeze(1) >> self.places.view(-1, 1, 1, 1)) & 1).float() * 2 - 1

    def entropy_term(self, flat: Float[Tensor, "latents dim"]) -> Float[Tensor, ""]:
        """Mean entropy of each latent's chances, less `diversity` times that of their mean over all processes."""
        logits = 4 / self.temperature * flat
        mean = sum(
            entropy(_over_processes(mean_chances(part.sigmoid())), self.eps)
            for part in logits.split(group_sizes(logits.shape[1], self.group_bits), 1)
        )
        return sample_entropy(logits) - self.diversity * mean


def sample_entropy(logits: Float[Tensor, "latents dim"]) -> Float[Tensor, ""]:
    """Entropy of a latent's chances over all codes, the mean over latents: that of each bit, summed over bits."""
    size = logits.abs()
    return (F.softplus(-size) + size * (-size).sigmoid()).sum(1).mean()


def mean_chances(chances: Float[Tensor, "latents dim"]) -> Float[Tensor, " codes"]:
    """The mean over latents of the chances of all 2^dim codes, the first channel being the highest bit.

    Args:
        chances: of +1, for each channel.
    """
    half = chances.shape[1] // 2
    return (_joint(chances[:, :half]).T @ _joint(chances[:, half:])).flatten() / len(chances)


def entropy(chances: Float[Tensor, " codes"], eps: float = 0.0) -> Float[Tensor, ""]:
    """-sum p log(p + eps), in nats."""
    return -(chances * (chances + max(eps, TINY)).log()).sum()


def group_sizes(dim: int, most: int) -> Sequence[int]:
    """As few groups of channels as possible, of nearly equal sizes."""
    groups = -(-dim // most)
    return [dim // groups + (n < dim % groups) for n in range(groups)]


def _joint(chances: Float[Tensor, "latents dim"]) -> Float[Tensor, "latents codes"]:
    """Products of the chances of each bit, for each combination of bits."""
    found = chances.new_ones(len(chances), 1)
    for up in chances.unsqueeze(-1).unbind(1):
        found = torch.stack([found * (1 - up), found * up], -1).flatten(1)
    return found


def _over_processes(mean: Tensor) -> Tensor:
    """The mean over the processes of a training, with gradients that add up to those of one process."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return mean
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(mean) / torch.distributed.get_world_size()
