"""Trains the codec, and judges it on waves that it has not met.

Read `AudioTraining.training_step` first. A published codec is not trained: with `epochs: 0` it is judged alike.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from pydantic import Field
from torch import Tensor

from lightning_modules.base import PaperModule
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.metrics.tokens import perplexity
from lightning_modules.runs import Evaluation, Run
from lightning_modules.settings import Count, Natural, NonNegative
from lightning_modules.validation import judged, mean_over
from lightning_modules.video_tokens.building import build
from lightning_modules.video_tokens.evaluation import some_run
from lightning_modules.video_tokens.training import TokensRecipe
from lightning_modules.videopoet.audio import Codec, Spectra, make_codec, signal_to_noise, stored_sound, waves
from lightning_modules.videopoet.clips import SoundingClips
from lightning_modules.videopoet.pitch import disagreement, heights

SHOWN = 4  # waves that are kept for the page


class AudioTraining(PaperModule):
    """A codec on the sound of clips.

    Args:
        codec: arguments of `make_codec`.
        windows: lengths of `Spectra`, in samples.
        spectral: weight of the distance of spectra.
        waveform: weight of the mean absolute difference of waves.
        free_steps: steps without quantisation at first; then the codes begin at latents of a batch.

    Raises:
        ValueError: a window cannot be moved by a quarter, or is longer than a wave.
    """

    recipe_form = TokensRecipe

    def __init__(
        self,
        *,
        codec: dict,
        windows: Annotated[list[Count], Field(min_length=1)],
        spectral: NonNegative = 1.0,
        waveform: NonNegative = 1.0,
        free_steps: Natural = 0,
    ):
        super().__init__()
        self.codec = build(make_codec, codec, "model.codec")
        if max(windows) > self.codec.samples:
            raise ValueError(
                f"model.windows has {max(windows)}, but a wave has {self.codec.samples} samples: give at most so many."
            )
        self.spectra, self.spectral, self.waveform = Spectra(windows), spectral, waveform
        self.free_steps = free_steps

    def check_data(self, data: SoundingClips) -> None:
        """Refuse sound of another length or rate, and the training of a published codec.

        Raises:
            ValueError: see above.
        """
        expected = self.codec.samples, self.codec.rate
        if (data.samples, data.sample_rate) != expected:
            raise ValueError(
                f"the data has {data.samples} samples, {data.sample_rate} a second, but model.codec is for "
                f"{expected[0]}, {expected[1]} a second: set samples and rate to those of the data."
            )
        if not isinstance(self.codec, Codec) and data.batch_size is not None:
            raise ValueError(
                f"data.batch_size is {data.batch_size}, but a published codec is not trained: set it null."
            )

    def on_fit_start(self) -> None:
        """Refuse several processes: codes that no latent is near to are put at latents of a process's own.

        Raises:
            ValueError: there are several.
        """
        if self.trainer.world_size > 1:
            raise ValueError(
                f"the codec is trained by {self.trainer.world_size} processes, expected one, as unused codes are put "
                "at latents of a process's own: set devices to 1 (conf/trainer)."
            )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """The sum of the differences of waves and spectra, and what the quantiser minimises."""
        wave, step = waves(batch["audio"]), self.global_step
        if step < self.free_steps:
            books = [level.codebook for level in self.codec.quantiser.levels]
            drawn, quantising = self.codec.unquantised(wave), {"codebook": 0.0 * sum(book.sum() for book in books)}
        else:
            if step == self.free_steps:
                self.codec.place(wave)
            found = self.codec(wave)
            drawn, quantising = found.wave, found.terms
        terms = {
            "waveform": self.waveform * F.l1_loss(drawn, wave),
            "spectral": self.spectral * self.spectra.distance(drawn, wave).mean(),
            **quantising,
        }
        self.log_terms({f"pretrain/{name}": term for name, term in terms.items()})
        return sum(terms.values())

    def validate(self, data: SoundingClips, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """How well waves are drawn again."""

        def measure(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            wave = waves(batch["audio"])
            drawn = self.codec.decode(self.codec.encode(wave))
            return {
                "spectral": self.spectra.distance(drawn, wave).mean(),
                "snr": signal_to_noise(drawn, wave).mean(),
            }

        return mean_over(({"audio": batch["audio"]} for batch in batches), measure)

    @torch.no_grad()
    def forward(self, audio: Shaped[Tensor, "batch samples"]) -> Int[Tensor, "batch frames levels"]:
        """The codes of stored sound."""
        return self.codec.encode(waves(audio))

    @torch.no_grad()
    def predictions(self, data: SoundingClips, device: torch.device) -> dict[str, Tensor]:
        """How the sound of the split that is judged comes back from its codes.

        For each clip `codes`; `<n>/snr` and `<n>/spectral` from its first n levels; where the data says how high things
        are `pitch/real`, `pitch/drawn` and `pitch/other`, how far the heights that are heard in the wave, in what
        comes back, and in the wave of the next clip, are from the truth. Of the first clips `shown/real` and
        `shown/drawn`, int16.
        """
        self.to(device).eval()
        parts = defaultdict(list)
        for split in judged(data.rows):
            for batch in data.evaluation_batches(split):
                wave = waves(batch["audio"].to(device))
                codes = self.codec.encode(wave)
                parts["codes"].append(codes)
                for level in range(1, self.codec.levels + 1):
                    drawn = self.codec.decode(codes[..., :level])
                    parts[f"{level}/snr"].append(signal_to_noise(drawn, wave))
                    parts[f"{level}/spectral"].append(self.spectra.distance(drawn, wave))
                if "height" in batch:
                    for name, heard in (("real", wave), ("drawn", drawn), ("other", wave.roll(1, 0))):
                        seen = batch["height"].to(device)
                        parts[f"pitch/{name}"].append(disagreement(heights(heard), seen))
                if "shown/real" not in parts:
                    parts["shown/real"].append(stored_sound(wave[:SHOWN]))
                    parts["shown/drawn"].append(stored_sound(drawn[:SHOWN]))
        return {name: torch.cat(part).cpu() for name, part in parts.items()}

    def facts(self) -> dict:
        """Sizes of the codec."""
        codec, bits = self.codec, (self.codec.codes - 1).bit_length()
        return {
            "parameters": count_parameters(codec if isinstance(codec, Codec) else codec.network),
            "levels": codec.levels,
            "frames": codec.frames,
            "bits_per_second": codec.frames * codec.levels * bits * codec.rate / codec.samples,
            "rate": codec.rate,
        }


def evaluate(runs: Sequence[Run], dataset: str) -> Evaluation:
    """How near waves are to those that come back from their codes, by the number of levels.

    Metrics: `<n>/snr` in decibels and `<n>/spectral` from the first n levels; `level_<n>/perplexity` of each level; of
    sounding things `pitch/real`, `pitch/drawn` and `pitch/other`, see `AudioTraining.predictions`; `bits_per_second`
    and `parameters`.

    Args:
        runs: finished runs of `AudioTraining`, one for each seed.
        dataset: first part of every metric's name.

    Raises:
        ValueError: there is no run.
    """
    some_run(runs)
    metrics = {}
    for run in runs:
        arrays = run.predictions()
        found = {
            name: float(values.mean())
            for name, values in arrays.items()
            if name.endswith(("/snr", "/spectral")) or name.startswith("pitch/")
        }
        for level in range(run.facts["levels"]):
            codes = arrays["codes"][..., level]
            found[f"level_{level + 1}/perplexity"] = perplexity(codes)
        found |= {name: float(run.facts[name]) for name in ("bits_per_second", "parameters")}
        metrics[run.seed] = {f"{dataset}/{name}": value for name, value in found.items()}
    return Evaluation(metrics=metrics)
