"""Sound as tokens: residual vector quantisation, level by level (section 3.1; SoundStream, Zeghidour et al., 2021).

Read `Codec.forward` first. Each level quantises what the levels before it leave over, so that a wave is a grid of
(latent frames, levels) codes, and the first levels alone give a coarser wave. `make_codec` gives a small codec of our
own, or EnCodec with published weights in the place of SoundStream, which has none; both have the same methods.

Ours is not causal, as SoundStream is, and has no discriminator: it is trained on waves and spectra alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from pydantic import Field
from torch import Tensor, nn

from lightning_modules import rehearsal
from lightning_modules.layers.published import from_pretrained
from lightning_modules.layers.teacher import Frozen
from lightning_modules.settings import Count, NonNegative, Share
from lightning_modules.video_tokens.building import build
from lightning_modules.video_tokens.quantiser import VectorQuantiser

HIGHEST = 32768  # of 16-bit samples
Strides = Annotated[list[Count], Field(min_length=1)]


def waves(audio: Shaped[Tensor, "batch samples"]) -> Float[Tensor, "batch samples"]:
    """Stored sound, integers of 16 bits, as numbers from -1 to 1."""
    return audio.float() / HIGHEST


def stored_sound(wave: Float[Tensor, "batch samples"]) -> Shaped[Tensor, "batch samples"]:
    """Waves as integers of 16 bits."""
    return (wave * HIGHEST).round().clamp(-HIGHEST, HIGHEST - 1).to(torch.int16)


@dataclass
class Coded:
    """What becomes of waves.

    Attributes:
        wave: drawn again from the codes.
        codes: of each latent frame, one for each level.
        terms: of the loss, `commitment` and `codebook`; only while training.
    """

    wave: Float[Tensor, "batch samples"]
    codes: Int[Tensor, "batch frames levels"]
    terms: dict[str, Tensor]


class ResidualQuantiser(nn.Module):
    """Levels of vector quantisers, each of what those before it leave over.

    Args:
        levels: number of quantisers.
        codes: of each.
        dim: of a latent.
        commitment: weight of the latents' distance to their codes.
        codebook: weight of the codes' distance to their latents.
        restart: see `VectorQuantiser`.
    """

    def __init__(
        self,
        *,
        levels: Count,
        codes: Count,
        dim: Count,
        commitment: NonNegative = 0.25,
        codebook: NonNegative = 1.0,
        restart: Share = 0.1,
    ):
        super().__init__()
        self.levels = nn.ModuleList(
            VectorQuantiser(codes, dim, commitment=commitment, codebook=codebook, entropy=0.0, restart=restart)
            for _ in range(levels)
        )

    def forward(
        self, latents: Float[Tensor, "batch dim frames"]
    ) -> tuple[Float[Tensor, "batch dim frames"], Int[Tensor, "batch frames levels"], dict[str, Tensor]]:
        """Sums of codes with straight-through gradient, the codes' numbers, and in training the terms of the loss."""
        left, total, codes, terms = latents, torch.zeros_like(latents), [], {}
        for level in self.levels:
            found = level(left[..., None, None])
            taken = found.latents[..., 0, 0]
            codes.append(found.tokens[:, :, 0, 0])
            total, left = total + taken.detach(), left - taken.detach()
            terms = {name: terms.get(name, 0.0) + term for name, term in found.terms.items()}
        return latents + (total - latents).detach(), torch.stack(codes, -1), terms

    @torch.no_grad()
    def place(self, latents: Float[Tensor, "batch dim frames"]) -> None:
        """Put the codes of each level at what is left of latents that are drawn at random."""
        left = latents.transpose(1, 2).flatten(0, 1)
        for level in self.levels:
            level.codebook.copy_(left[torch.randint(len(left), (level.vocabulary,), device=left.device)])
            left = left - level.codes[torch.cdist(left, level.codes).argmin(-1)]

    def nearest(self, latents: Float[Tensor, "batch dim frames"]) -> Int[Tensor, "batch frames levels"]:
        """The codes alone; changes nothing, in any mode."""
        left, codes = latents.transpose(1, 2), []
        for level in self.levels:
            book = level.codes
            distances = (book**2).sum(1) - 2 * left @ book.T
            codes.append(distances.argmin(-1))
            left = left - book[codes[-1]]
        return torch.stack(codes, -1)

    def embed(self, codes: Int[Tensor, "batch frames levels"]) -> Float[Tensor, "batch dim frames"]:
        """The sums of some codes; there may be fewer levels, the first ones."""
        books = [level.codes for level in self.levels][: codes.shape[-1]]
        return sum(book[codes[..., number]] for number, book in enumerate(books)).transpose(1, 2)


class Codec(nn.Module):
    """A small codec of our own: strided convolutions, `ResidualQuantiser`, and their mirror image.

    Args:
        samples: of a wave.
        rate: samples a second.
        levels: of the quantiser.
        codes: of each level.
        strides: of the convolutions; even, and their product is the number of samples of a latent frame.
        width: channels of the first layer, twice as many after each stride, up to `dim`.
        dim: of a latent.
        quantiser: further arguments of `ResidualQuantiser`.

    Raises:
        ValueError: a stride is odd, or waves are not made of whole latent frames.
    """

    def __init__(
        self,
        *,
        samples: Count,
        rate: Count,
        levels: Count,
        codes: Count,
        strides: Strides,
        width: Count,
        dim: Count,
        quantiser: dict,
    ):
        super().__init__()
        hop = math.prod(strides)
        if any(stride < 2 or stride % 2 for stride in strides) or samples % hop:
            raise ValueError(
                f"strides are {list(strides)} and samples {samples}: expected even strides, whose product ({hop}) "
                "divides the samples."
            )
        self.samples, self.rate, self.levels, self.codes, self.frames = samples, rate, levels, codes, samples // hop
        widths = [1, *(min(width * 2**number, dim) for number in range(len(strides)))]
        down, up = [], []
        for stride, coming, going in zip(strides, widths, widths[1:], strict=False):
            down += [nn.Conv1d(coming, going, 2 * stride, stride, stride // 2), nn.ELU(), Residual(going)]
            up = [Residual(going), nn.ELU(), nn.ConvTranspose1d(going, coming, 2 * stride, stride, stride // 2), *up]
        self.encoder = nn.Sequential(*down, nn.Conv1d(widths[-1], dim, 3, padding=1))
        self.decoder = nn.Sequential(nn.Conv1d(dim, widths[-1], 3, padding=1), *up)
        given = {"levels": levels, "codes": codes, "dim": dim}
        self.quantiser = build(ResidualQuantiser, quantiser, "codec.quantiser", **given)

    def forward(self, wave: Float[Tensor, "batch samples"]) -> Coded:
        """Waves drawn again from their codes, with gradients."""
        latents, codes, terms = self.quantiser(self.encoder(wave[:, None]))
        return Coded(self.decoder(latents)[:, 0], codes, terms)

    def unquantised(self, wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch samples"]:
        """Waves drawn again from their latents, as long as there are no codes worth the name."""
        return self.decoder(self.encoder(wave[:, None]))[:, 0]

    @torch.no_grad()
    def place(self, wave: Float[Tensor, "batch samples"]) -> None:
        """Put all codes at latents of waves, before the first step with codes."""
        self.quantiser.place(self.encoder(wave[:, None]))

    @torch.no_grad()
    def encode(self, wave: Float[Tensor, "batch samples"]) -> Int[Tensor, "batch frames levels"]:
        """The codes of waves."""
        return self.quantiser.nearest(self.encoder(wave[:, None]))

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "batch frames levels"]) -> Float[Tensor, "batch samples"]:
        """The waves of codes, also of the first levels alone."""
        return self.decoder(self.quantiser.embed(codes))[:, 0]


class Residual(nn.Module):
    """Two convolutions beside the identity, as in SoundStream."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.ELU(), nn.Conv1d(width, width, 3, padding=1), nn.ELU(), nn.Conv1d(width, width, 1)
        )

    def forward(self, x: Float[Tensor, "batch width time"]) -> Float[Tensor, "batch width time"]:
        """The input and what the layers add."""
        return x + self.layers(x)


class EnCodec(Frozen):
    """EnCodec (Défossez et al., 2022) with published weights, never trained; they are in no checkpoint and no export.

    Args:
        name: of the hub, such as `facebook/encodec_24khz`, or a folder in its format.
        samples: of a wave.
        rate: samples a second.
        levels: of its quantisers that are used.
        codes: of each.

    Raises:
        ConnectionError: the weights cannot be had.
        ValueError: the model has another rate, other codes or fewer levels.
    """

    def __init__(self, name: str, *, samples: Count, rate: Count, levels: Count, codes: Count):
        from transformers import EncodecConfig, EncodecModel

        def drawn() -> EncodecModel:
            hidden, filters = rehearsal.width(128), rehearsal.width(32)  # of `facebook/encodec_24khz`
            return EncodecModel(EncodecConfig(hidden_size=hidden, codebook_dim=hidden, num_filters=filters))

        super().__init__(from_pretrained(EncodecModel, name, drawn))
        config = self.network.config
        there = config.sampling_rate, config.codebook_size, config.audio_channels
        if there != (rate, codes, 1) or levels > self.network.quantizer.num_quantizers:
            raise ValueError(
                f"{name} has {there[0]} samples a second, {there[1]} codes, {there[2]} channels and at most "
                f"{self.network.quantizer.num_quantizers} levels, but rate is {rate}, codes {codes} and levels "
                f"{levels} for one channel: give its own."
            )
        self.samples, self.rate, self.levels, self.codes = samples, rate, levels, codes
        self.frames = math.ceil(samples / config.hop_length)

    @torch.no_grad()
    def encode(self, wave: Float[Tensor, "batch samples"]) -> Int[Tensor, "batch frames levels"]:
        """The codes of waves."""
        latents = self.network.encoder(wave[:, None])
        return self.network.quantizer.encode(latents).permute(1, 2, 0)[..., : self.levels]

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "batch frames levels"]) -> Float[Tensor, "batch samples"]:
        """The waves of codes, also of the first levels alone."""
        wave = self.network.decoder(self.network.quantizer.decode(codes.permute(2, 0, 1)))[:, 0]
        return F.pad(wave, (0, max(self.samples - wave.shape[1], 0)))[:, : self.samples]


def make_codec(
    *,
    samples: Count,
    rate: Count,
    levels: Count,
    codes: Count,
    hub: str | None = None,
    strides: Strides | None = None,
    width: Count | None = None,
    dim: Count | None = None,
    quantiser: dict | None = None,
) -> Codec | EnCodec:
    """EnCodec by its name, or a codec of our own with these strides and sizes.

    Raises:
        ValueError: both are given, or neither.
    """
    shape = {"samples": samples, "rate": rate, "levels": levels, "codes": codes}
    own = {"strides": strides, "width": width, "dim": dim}
    given = [name for name, value in own.items() if value is not None]
    if (hub is None and len(given) < len(own)) or (hub is not None and given):
        raise ValueError(
            f"the codec has hub {hub!r} and {', '.join(given) or 'no sizes'}: give hub alone (EnCodec), or "
            f"{', '.join(own)} without it."
        )
    return Codec(**shape, **own, quantiser=quantiser or {}) if hub is None else EnCodec(hub, **shape)


class Spectra(nn.Module):
    """Magnitudes of a wave in windows of several lengths, as matrix products with sines and cosines.

    Args:
        windows: lengths in samples; neighbours overlap by three quarters.

    Raises:
        ValueError: a window cannot be moved by a quarter of its length.
    """

    def __init__(self, windows: Sequence[int]):
        super().__init__()
        if small := [window for window in windows if window < 4]:
            raise ValueError(f"windows has {small[0]}, expected at least 4 samples: each is moved by a quarter.")
        self.windows = list(windows)
        for window in self.windows:
            time = torch.arange(window, dtype=torch.float64)
            angle = 2 * math.pi / window * torch.arange(window // 2 + 1, dtype=torch.float64)[:, None] * time
            fade = torch.sin(math.pi * (time + 0.5) / window).square() * (2 / window)
            self.register_buffer(f"basis_{window}", torch.cat([angle.cos() * fade, angle.sin() * fade]).float(), False)

    def forward(self, wave: Float[Tensor, "batch samples"]) -> list[Float[Tensor, "batch time frequencies"]]:
        """The magnitudes, one tensor for each length."""
        found = []
        for window in self.windows:
            parts = wave.unfold(1, window, window // 4) @ getattr(self, f"basis_{window}").T
            cosine, sine = parts.chunk(2, -1)
            found.append((cosine.square() + sine.square() + 1e-10).sqrt())
        return found

    def distance(
        self, drawn: Float[Tensor, "batch samples"], wave: Float[Tensor, "batch samples"]
    ) -> Float[Tensor, " batch"]:
        """Mean absolute difference of magnitudes, summed over the lengths."""
        pairs = zip(self(drawn), self(wave), strict=True)
        return sum((a - b).abs().flatten(1).mean(1) for a, b in pairs)


def signal_to_noise(
    drawn: Float[Tensor, "batch samples"], wave: Float[Tensor, "batch samples"]
) -> Float[Tensor, " batch"]:
    """Power of the wave over that of the difference, in decibels."""
    noise = (drawn - wave).square().mean(1).clamp_min(1e-10)
    return 10 * (wave.square().mean(1).clamp_min(1e-10) / noise).log10()
