"""Trains tokenizers: a quantising autoencoder against a discriminator, both updated at once.

Read `TokenizerTraining.training_step` first. A paper gives the network (`tokenizer_class`). A tokenizer of space and
time may begin with the weights of one of single frames (`inflation`). Beside it learns the judge, a small classifier
of clips for `fvd_world`; no gradient passes between the two.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, NotRequired

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from pydantic import Field
from torch import Tensor, nn

from lightning_modules.base import AnyRecipe, Momentum, PaperModule
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.metrics.video import psnr, ssim
from lightning_modules.metrics.video_networks import PublishedNetworks
from lightning_modules.settings import Natural, NonNegative, Positive, bind
from lightning_modules.validation import judged, mean_over
from lightning_modules.video_tokens.adversarial import Game, discriminator_loss, generator_loss, lecam, r1_penalty
from lightning_modules.video_tokens.building import build
from lightning_modules.video_tokens.clips import ClipData
from lightning_modules.video_tokens.discriminator import Discriminator
from lightning_modules.video_tokens.perception import Judge, Perception
from lightning_modules.video_tokens.tokenizer import Inflation, VideoTokenizer, inflated

Pixels = Literal["squared", "absolute"]
NETWORKS = "lightning_modules.metrics.video_networks.PublishedNetworks"
SHOWN = 8  # clips that are kept for the page


class TokensRecipe(AnyRecipe):
    """AdamW with a cosine after a linear warm-up, for tokenizers and generators."""

    optimizer: Literal["adamw"]
    betas: Annotated[list[Momentum], Field(min_length=2, max_length=2)]
    schedule: Literal["cosine"]
    clip: NotRequired[Positive]


class TokenizerTraining(PaperModule):
    """A tokenizer, its discriminator and the judge; a paper's class names the tokenizer.

    Args:
        tokenizer: arguments of `tokenizer_class`.
        discriminator: `width`, `multipliers` and `blur` of `Discriminator`.
        num_classes: of the labels that the judge learns; 0 for no judge.
        reconstruction: weight of the pixels' difference.
        pixels: whether that is the mean of squares or of absolute values.
        adversarial: weight of looking real.
        perceptual: weight of the perceptual loss.
        perception: whose answers it compares, see `Perception`; null for no such loss.
        r1: weight of the penalty on the discriminator's gradient.
        lecam: weight of LeCam.
        lecam_decay: of its moving averages; the official code takes that of the weights.
        game: what both minimise, see `adversarial`.
        inflation: how the weights of a 2D tokenizer are taken over where the arm starts from one, see `inflated`.
        entropy_start: the weight of the quantiser's entropy term at first, in units of its own.
        entropy_steps: until it has its own.
        published: files of the networks of published measures, see `metrics.video_networks.PublishedNetworks`.
        pixel_scale: the stored value of white; networks read pixels from 0 to 1.
    """

    recipe_form = TokensRecipe
    predictor = "lightning_modules.video_tokens.predictor.Compressor"
    tokenizer_class: type[VideoTokenizer]

    def __init__(
        self,
        *,
        tokenizer: dict,
        discriminator: dict,
        num_classes: Annotated[int, Field(ge=0, le=100_000)] = 0,
        reconstruction: NonNegative = 1.0,
        pixels: Pixels = "squared",
        adversarial: NonNegative = 0.1,
        perceptual: NonNegative = 0.1,
        perception: str | None = None,
        r1: NonNegative = 10.0,
        lecam: NonNegative = 0.0,
        lecam_decay: Momentum = 0.999,
        game: Game = "softplus",
        inflation: Inflation = "central",
        entropy_start: Positive = 1.0,
        entropy_steps: Natural = 0,
        published: dict | None = None,
        pixel_scale: Positive = 255.0,
    ):
        super().__init__()
        self.tokenizer = build(self.tokenizer_class, tokenizer, "model.tokenizer")
        frames, size = self.tokenizer.frames, self.tokenizer.size
        depth = 3 if self.tokenizer.dims == 3 else 1
        given = {"depth": depth, "frames": frames, "size": size}
        self.discriminator = build(Discriminator, discriminator, "model.discriminator", **given)
        self.judge = Judge(num_classes) if num_classes else None
        self.perception = Perception(perception) if perception else None
        self.reconstruction, self.pixel_loss = reconstruction, F.mse_loss if pixels == "squared" else F.l1_loss
        self.adversarial, self.perceptual, self.r1, self.lecam = adversarial, perceptual, r1, lecam
        self.lecam_decay, self.game, self.inflation, self.pixel_scale = lecam_decay, game, inflation, pixel_scale
        self.entropy_start, self.entropy_steps = entropy_start, entropy_steps
        self.published = checked_networks(published)
        self.register_buffer("mean_real", torch.zeros(()))
        self.register_buffer("mean_fake", torch.zeros(()))

    def check_data(self, data: ClipData) -> None:
        """Refuse clips of another shape, or with more classes than the judge has, and networks that are not there.

        Raises:
            ValueError: see above.
        """
        check_clips(data, self.tokenizer, self.judge.classes if self.judge else None)
        check_files(self.published)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """The sum of what generator, discriminator and judge minimise; each has the gradient of its own part alone."""
        terms = self.terms(batch)
        self.log_terms({f"pretrain/{name}": term for name, term in terms.items()})
        return sum(terms.values())

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """All losses, each with its weight, all from one pass of the generator."""
        video = self.read(batch["video"])
        drawn, found = self.tokenizer(video)
        terms = self.generator_terms(video, drawn, found.terms)
        terms |= self.discriminator_terms(video, drawn.detach())
        if self.judge is not None:
            terms["judge"] = self.judge.loss(video, batch["labels"])
        return terms

    def generator_terms(
        self,
        video: Float[Tensor, "batch 3 frames h w"],
        drawn: Float[Tensor, "batch 3 frames h w"],
        quantising: Mapping[str, Float[Tensor, ""]],
    ) -> dict[str, Float[Tensor, ""]]:
        """What encoder, quantiser and decoder minimise: pixels, the quantiser's terms, looking real, and perception."""
        terms = {"reconstruction": self.reconstruction * self.pixel_loss(drawn, video), **quantising}
        if "entropy" in terms:
            terms["entropy"] = terms["entropy"] * annealed(self.global_step, self.entropy_start, self.entropy_steps)
        with frozen(self.discriminator):
            terms["adversarial"] = self.adversarial * generator_loss(self.discriminator(drawn), self.game)
        if self.perception is not None:
            terms["perceptual"] = self.perceptual * self.perception(drawn, video)
        return terms

    def discriminator_terms(
        self, video: Float[Tensor, "batch 3 frames h w"], drawn: Float[Tensor, "batch 3 frames h w"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Telling real from drawn clips, R1 on real ones, and LeCam, whose averages follow in training."""
        penalised = self.r1 > 0 and torch.is_grad_enabled()
        real_video = video.detach().requires_grad_() if penalised else video
        real, fake = self.discriminator(real_video), self.discriminator(drawn)
        terms = {"discriminator": discriminator_loss(real, fake, self.game)}
        if penalised:
            terms["r1"] = self.r1 * r1_penalty(real, real_video)
        if self.lecam:
            averages = self.mean_real.clone(), self.mean_fake.clone()
            terms["lecam"] = self.lecam * lecam(real.mean(), fake.mean(), *averages)
            if self.training:
                for average, logits in ((self.mean_real, real), (self.mean_fake, fake)):
                    average.lerp_(logits.detach().mean(), 1 - self.lecam_decay)
        return terms

    def validate(self, data: ClipData, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """How well clips are drawn again."""

        def measure(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            video = self.read(batch["video"])
            drawn, _ = self.tokenizer(video)
            return {"mse": F.mse_loss(drawn, video), "psnr": psnr(drawn.clamp(0, 1), video).mean()}

        return mean_over(batches, measure)

    def read(self, video: Shaped[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch 3 frames h w"]:
        """Stored pixels as pixels from 0 to 1."""
        return video / self.pixel_scale

    @torch.no_grad()
    def forward(self, video: Shaped[Tensor, "batch 3 frames height width"]) -> Int[Tensor, "batch t h w"]:
        """The tokens of stored clips."""
        return self.tokenizer.encode(self.read(video))

    @torch.no_grad()
    def predictions(self, data: ClipData, device: torch.device) -> dict[str, Tensor]:
        """How the clips of the split that is judged come back from their tokens.

        For each clip `psnr`, `ssim`, `mse`, `tokens`, and where there is a judge `features/drawn` and `features/real`;
        of published networks `i3d/...` and `c3d/...` likewise, and `lpips`; of the first clips `shown/real` and
        `shown/drawn`, uint8.
        """
        self.to(device).eval()
        networks = PublishedNetworks(**self.published, device=device)
        parts = defaultdict(list)
        for split in judged(data.rows):
            for batch in data.evaluation_batches(split):
                video = self.read(batch["video"].to(device))
                tokens = self.tokenizer.encode(video)
                drawn = self.tokenizer.decode(tokens).clamp(0, 1)
                parts["tokens"].append(tokens)
                parts["mse"].append((drawn - video).square().flatten(1).mean(1))
                parts["psnr"].append(psnr(drawn, video))
                parts["ssim"].append(ssim(drawn, video))
                for kind, seen in networks.compared(drawn, video).items():
                    parts[kind].append(seen)
                for which, clips in (("drawn", drawn), ("real", video)):
                    for kind, seen in networks.seen(clips).items():
                        parts[f"{kind}/{which}"].append(seen)
                if self.judge is not None:
                    parts["features/drawn"].append(self.judge(drawn))
                    parts["features/real"].append(self.judge(video))
                if "shown/real" not in parts:
                    parts["shown/real"].append(stored(video[:SHOWN]))
                    parts["shown/drawn"].append(stored(drawn[:SHOWN]))
        return {name: torch.cat(part).cpu() for name, part in parts.items()}

    def facts(self) -> dict:
        """Sizes of the tokenizer."""
        return {
            "parameters": count_parameters(self.tokenizer),
            "discriminator_parameters": count_parameters(self.discriminator),
            "vocabulary": self.tokenizer.vocabulary,
            "grid": list(self.tokenizer.grid),
            "pixels": self.tokenizer.frames * self.tokenizer.size**2,
        }

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over a tokenizer of the same kind, or inflate a 2D one; its discriminator too, where shapes allow.

        Raises:
            ValueError: the encoder or decoder of the other tokenizer has another architecture.
        """
        own = self.export()
        found, kept = inflated(weights, own, self.inflation)
        if wrong := [name for name in kept if name.startswith("tokenizer.")]:
            raise ValueError(
                f"{len(wrong)} weights of the tokenizer cannot be taken over from the one named by `from`, first "
                f"{wrong[0]} of shape {tuple(own[wrong[0]].shape)}: give both the same width, multipliers and blocks."
            )
        self.load_export(found)

    def parameter_groups(self) -> list[dict]:
        """All parts have one rate; the judge has the usual momentum, as it plays no game."""
        groups = [{"params": [p for n, p in self.named_parameters() if not n.startswith("judge.") and p.requires_grad]}]
        if self.judge is not None:
            groups.append({"params": list(self.judge.parameters()), "betas": (0.9, 0.99)})
        return groups


def annealed(step: int, start: float, steps: int) -> float:
    """`start` at step 0, 1 from `steps` on, linear in between."""
    return 1 + (start - 1) * max(0.0, 1 - step / steps) if steps else 1.0


def check_clips(data: ClipData, tokenizer: VideoTokenizer, classes: int | None) -> None:
    """Refuse clips that a tokenizer was not built for, or labels that are not known.

    Raises:
        ValueError: see above.
    """
    expected = (3, tokenizer.frames, tokenizer.size, tokenizer.size)
    if data.video_shape != expected:
        raise ValueError(
            f"the data has clips of shape {data.video_shape} (channels, frames, height, width), but tokenizer.frames "
            f"and tokenizer.size are for {expected}."
        )
    if classes is not None and data.num_classes > classes:
        raise ValueError(
            f"model.num_classes is {classes}, but the data has {data.num_classes} classes: set it to that."
        )


def checked_networks(published: Mapping[str, object] | None) -> dict:
    """Arguments of `PublishedNetworks`, which are loaded after the training alone, as they are given.

    Raises:
        ValueError: one of them is unknown or not of its kind.
    """
    bind({**(published or {}), "_target_": NETWORKS}, "model.published", device="cpu")
    return dict(published or {})


def check_files(published: Mapping[str, object]) -> None:
    """Refuse to train for published networks whose files are not there.

    Raises:
        ValueError: see above.
    """
    for name, file in published.items():
        if isinstance(file, str) and not Path(file).is_file():
            raise ValueError(
                f"model.published.{name} is {file!r}, where no file is: give one, or null for no such measure."
            )


def stored(video: Float[Tensor, "batch 3 frames h w"]) -> Shaped[Tensor, "batch frames h w 3"]:
    """Pixels from 0 to 1 as uint8, channels last."""
    return (video * 255).round().to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No gradient for a module's parameters, while there is one through it."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
