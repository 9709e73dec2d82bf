"""Pictures changed by texts with a trained HD-VILA (supplement of 2111.10337, section D.3): editing and enlarging.

A generator draws pictures from codes. An encoder finds the codes of a picture, and a mapper moves them by what HD-VILA
says of the picture and of a text. For editing, the moved codes are to give a picture that HD-VILA finds near to the new
text and that is else what it was; for enlarging (super-resolution), the picture itself from a quarter of its sides and
its sentence.

Read `Manipulation.training_step` first, then `Manipulation.drawn`.

No code was released, and the supplement was known from the authors' answer in issue 12 of microsoft/XPretrain alone:
HD-VILA encodes the picture and the text, which drive edits of a pre-trained StyleGAN. This is our reading of that, not
the authors' method: their losses, data and figures are not known. The generator is StyleGAN2's (`generator.py`), and
stays as it is where a trained one is given. Without one, it learns to draw the pictures that the encoder has read, and
the picture at a quarter of its sides is added to StyleGAN2's constant (`sees_coarse`).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, NotRequired

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules import settings
from lightning_modules.base import AnyRecipe, Momentum, PaperModule
from lightning_modules.datamodules.video_texts import VideoTexts
from lightning_modules.hd_vila.generator import StyleGenerator, load_stylegan, read_stylegan
from lightning_modules.hd_vila.hybrid_clips import HybridClips
from lightning_modules.hd_vila.module import Batch, HdVila
from lightning_modules.hd_vila.network import SMALLER, Norm, ResNet
from lightning_modules.layers.published import load_strictly
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.settings import STRICT, Count, NonNegative
from lightning_modules.validation import judged, mean_over

GUIDE = f"{HdVila.__module__}.{HdVila.__name__}"
Pictures = Float[Tensor, "batch 3 size size"]
Stages = Annotated[list[Count], Field(min_length=1, max_length=4)]
SLOPE = 0.2  # of the leaky ReLU


class ManipulationRecipe(AnyRecipe):
    """AdamW with one of the schedules of `base.learning_rate_schedule`; gradients may be clipped."""

    optimizer: Literal["adamw"]
    betas: Annotated[list[Momentum], Field(min_length=2, max_length=2)]
    schedule: Literal["cosine"]
    clip: NonNegative


class GeneratorSettings(TypedDict):
    """Arguments of `StyleGenerator`, and `official`: a checkpoint of a trained one."""

    __pydantic_config__ = STRICT
    size: Count
    style_dim: Count
    widths: Annotated[list[Count], Field(min_length=1)]
    official: NotRequired[str | None]


class EncoderSettings(TypedDict):
    """Arguments of `ResNet`, whose last stages may be left out, and `pool`: the side its last map is brought to."""

    __pydantic_config__ = STRICT
    width: NotRequired[Count]
    layers: NotRequired[Stages]
    strides: NotRequired[Stages]
    stem_kernel: NotRequired[Count]
    stem_pool: NotRequired[bool]
    norm: NotRequired[Norm]
    pool: Count


class Mapper(nn.Module):
    """How far each code is moved, from the code, a picture's and a text's feature; at first not at all."""

    def __init__(self, codes: int, style_dim: int, feature_dim: int, hidden: int):
        super().__init__()
        self.places = nn.Parameter(torch.randn(codes, hidden))
        self.read, self.said = nn.Linear(style_dim, hidden), nn.Linear(2 * feature_dim, hidden)
        self.middle, self.move = nn.Linear(hidden, hidden), nn.Linear(hidden, style_dim)
        nn.init.zeros_(self.move.weight)
        nn.init.zeros_(self.move.bias)

    def forward(
        self,
        codes: Float[Tensor, "batch codes s"],
        picture: Float[Tensor, "batch d"],
        text: Float[Tensor, "batch d"],
    ) -> Float[Tensor, "batch codes s"]:
        """What is added to the codes."""
        scale = picture.shape[1] ** 0.5  # unit features have small values
        said = self.said(scale * torch.cat([picture, text], 1))[:, None]
        x = F.leaky_relu(self.read(codes) + said + self.places, SLOPE)
        return self.move(F.leaky_relu(self.middle(x), SLOPE))


class Manipulation(PaperModule):
    """A generator whose codes are moved by a text; HD-VILA, which tells what fits, stays as it is.

    Args:
        guide: arguments of a `HdVila` that reads one sharp frame (`streams: high`) and is trained for contrast; its
            weights come from the arm that this one starts from, or from `guide.official`.
        generator: see `GeneratorSettings`; of a checkpoint of StyleGAN2 the entry `g_ema` is read, null is for one that
            is trained here.
        encoder: see `EncoderSettings`; codes are read off the pooled map.
        hidden: width of the mapper.
        sees_coarse: whether the generator is given the picture at a quarter of its sides.
        task: `edit`: towards the text of another row of the batch; `enlarge`: the own picture, from a quarter of its
            sides and its own text.
        reads_text: false for a mapper to which the text is not told.
        text_weight: of the contrast that asks for the text, where that of drawing the right pixels counts 1.
        look_weight: of the difference of what the guide's first stage says of the changed picture and of the one whose
            text is asked for: means and deviations over all places, which tell texture and not where it is.
        keep_weight: of the difference to the unedited picture at a quarter of the sides, for `edit`.
        move_weight: of the mean square of what the codes are moved by.

    Raises:
        ValueError: an option is unknown, the guide reads no single frame, or a checkpoint does not fit.
    """

    recipe_form = ManipulationRecipe
    predictor = "lightning_modules.hd_vila.editor.Editor"

    def __init__(
        self,
        *,
        guide: dict,
        generator: GeneratorSettings,
        encoder: EncoderSettings,
        hidden: Count,
        sees_coarse: bool = False,
        task: Literal["edit", "enlarge"] = "edit",
        reads_text: bool = True,
        text_weight: NonNegative,
        look_weight: NonNegative,
        keep_weight: NonNegative,
        move_weight: NonNegative,
    ):
        super().__init__()
        self.guide: HdVila = settings.bind({"_target_": GUIDE, **guide}, "model.guide")()
        if (self.guide.network.streams, self.guide.task) != ("high", "contrast"):
            raise ValueError(
                f"guide.streams is {self.guide.network.streams!r} and guide.task {self.guide.task!r}; expected 'high' "
                "and 'contrast': it compares single pictures with texts."
            )
        self.guide.requires_grad_(False)
        self.generator = StyleGenerator(**{name: value for name, value in generator.items() if name != "official"})
        if generator.get("official") is not None:
            load_stylegan(self.generator, read_stylegan(Path(generator["official"])))
            self.generator.requires_grad_(False)
        self.first = nn.Conv2d(3, generator["widths"][0], 3, padding=1) if sees_coarse else None
        side = encoder["pool"]
        self.encoder = ResNet(**{name: value for name, value in encoder.items() if name != "pool"})
        codes, style_dim = self.generator.codes, self.generator.style_dim
        self.pool = nn.AdaptiveAvgPool2d(side)
        self.to_codes = nn.Linear(side**2 * self.encoder.channels[-1], codes * style_dim)
        self.mapper = Mapper(codes, style_dim, self.guide.network.transformer.v_proj.out_features, hidden)
        self.task, self.reads_text, self.text_weight = task, reads_text, text_weight
        self.look_weight, self.keep_weight, self.move_weight = look_weight, keep_weight, move_weight

    def train(self, mode: bool = True) -> "Manipulation":
        """The guide stays in evaluation mode, without dropout."""
        super().train(mode)
        self.guide.eval()
        return self

    def check_data(self, data: VideoTexts | HybridClips) -> None:
        """Refuse what the guide cannot read, and frames that give no picture of the generator's size.

        Raises:
            ValueError: what does not fit, with both values.
        """
        self.guide.check_data(data)
        if self.generator.size % self.guide.network.multiple:
            raise ValueError(
                f"generator.size ({self.generator.size}) must be a multiple of {self.guide.network.multiple}, which "
                "the guide reads as one place of its map."
            )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """The sum of the losses of the task."""
        losses = self.losses(batch)
        self.log_terms({"pretrain/loss": sum(losses.values()), **{f"pretrain/loss {k}": x for k, x in losses.items()}})
        return sum(losses.values())

    def losses(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """`pixels`: of the drawn picture; `text`: that the changed one fits its text; the others see above."""
        pictures, texts = self.pictures(batch), self.texts(batch)
        wanted = torch.arange(len(pictures), device=pictures.device)  # rows whose texts are asked for
        with torch.no_grad():
            feature, look = self.seen(pictures)
        losses = {}
        if self.task == "enlarge":
            given = enlarged(pictures)
            drawn, move = self.drawn(given, texts)
            losses["pixels"] = F.l1_loss(drawn, pictures)
        else:
            codes = self.codes(pictures)
            losses["pixels"] = F.l1_loss(self.generate(pictures, codes), pictures)
            wanted = wanted.roll(int(torch.randint(1, max(2, len(wanted)), ())))
            drawn, move = self.drawn(pictures, texts[wanted], codes, feature)
            losses["keep"] = self.keep_weight * F.l1_loss(_smaller(drawn), _smaller(pictures))
        down, across = torch.randint(2 * SMALLER, (2,)).tolist()  # what pleases in one place only is no pattern
        found, found_look = self.seen(drawn.roll((down, across), (2, 3)))
        losses["look"] = self.look_weight * F.l1_loss(found_look, look[wanted])
        losses["text"] = self.text_weight * F.cross_entropy((found @ texts.T / self.guide.temperature).float(), wanted)
        losses["move"] = self.move_weight * move.square().mean()
        return losses

    def drawn(
        self,
        pictures: Pictures,
        texts: Float[Tensor, "batch d"],
        codes: Float[Tensor, "batch codes s"] | None = None,
        feature: Float[Tensor, "batch d"] | None = None,
    ) -> tuple[Pictures, Float[Tensor, "batch codes s"]]:
        """Pictures changed by texts, and what their codes were moved by.

        Args:
            pictures: normalised, what is changed.
            texts: unit features.
            codes: of the pictures, where they are known.
            feature: what the guide says of them, likewise.
        """
        codes = self.codes(pictures) if codes is None else codes
        read = texts if self.reads_text else torch.zeros_like(texts)
        if feature is None:
            with torch.no_grad():
                feature, _ = self.seen(pictures)
        move = self.mapper(codes, feature, read)
        return self.generate(pictures, codes + move), move

    def generate(self, pictures: Pictures, codes: Float[Tensor, "batch codes s"]) -> Pictures:
        """What the generator draws of codes, and of the pictures at a quarter of their sides where it sees these."""
        if self.first is None:
            return self.generator(codes)
        side = self.generator.start
        coarse = F.interpolate(_smaller(pictures), size=(side, side), mode="bilinear", align_corners=False)
        return self.generator(codes, self.first(coarse))

    def codes(self, pictures: Pictures) -> Float[Tensor, "batch codes s"]:
        """What the encoder reads off pictures."""
        last = self.pool(self.encoder(pictures)[-1]).flatten(1)
        return self.to_codes(last).unflatten(1, (self.generator.codes, self.generator.style_dim))

    def seen(self, pictures: Pictures) -> tuple[Float[Tensor, "batch d"], Float[Tensor, "batch looks"]]:
        """What HD-VILA says of pictures: unit features; and how they look to its first stage, see `look_weight`."""
        network = self.guide.network
        first, *_, last = network.cnn(pictures)
        places = first.flatten(2)
        look = torch.cat([places.mean(2), places.std(2)], 1)
        return network.video_features(network.grid_encoder(last)[:, None]), look

    def pictures(self, batch: Batch) -> Pictures:
        """The middle frames of the first clips, as `centre` gives them."""
        return self.centre(self.guide.clips_of(batch)[0][:, 0])

    def centre(self, frames: Float[Tensor, "batch 3 height width"]) -> Pictures:
        """The central squares of normalised frames, in the generator's size."""
        side, size = min(frames.shape[2:]), self.generator.size
        top, left = ((length - side) // 2 for length in frames.shape[2:])
        frames = frames[:, :, top : top + side, left : left + side]
        if side == size:
            return frames
        return F.interpolate(frames, size=(size, size), mode="bilinear", antialias=True, align_corners=False)

    @torch.no_grad()
    def texts(self, batch: Batch) -> Float[Tensor, "batch d"]:
        """Unit features of the texts."""
        return self.guide.encode_texts(*self.guide.texts_of(batch))

    def stored(self, pictures: Pictures) -> UInt8[Tensor, "batch size size 3"]:
        """Pixels of normalised pictures."""
        own = self.guide.preprocess
        pixels = own.pixel_scale * (pictures * own.std + own.mean)
        return pixels.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def forward(self, video: Shaped[Tensor, "videos 3 frames height width"]) -> Pictures:
        """What the generator draws of the middle frames of stored videos, unmoved."""
        pictures = self.pictures({"video": video})
        return self.generate(pictures, self.codes(pictures))

    def validate(self, data: VideoTexts | HybridClips, batches: Iterable[Batch]) -> dict[str, Float[Tensor, ""]]:
        """The loss, and how different drawn pixels are from the right ones."""

        def measure(batch: Batch) -> dict[str, Float[Tensor, ""]]:
            losses = self.losses(batch)
            return {"loss": sum(losses.values()), "pixels": losses["pixels"]}

        return mean_over(batches, measure)

    @torch.no_grad()
    def predictions(self, data: VideoTexts | HybridClips, device: torch.device) -> dict[str, Tensor]:
        """What the evaluation reads, by split.

        `frames`, and `changed`, what became of them: uint8 (rows size size 3). `row`: the row whose text was asked for:
        that of half a batch later for `edit`, the own one for `enlarge`. `before` and `after`: cosine of the picture
        and that text. Also `token_ids`, and `labels` of the data.
        """
        self.to(device).eval()
        found = {}
        for split in judged(data.rows):
            parts, rows = [], 0
            for batch in data.evaluation_batches(split):
                batch = {name: x.to(device) for name, x in batch.items() if isinstance(x, Tensor)}
                pictures, texts = self.pictures(batch), self.texts(batch)
                row = torch.arange(len(pictures), device=device)
                row = row.roll(-(len(row) // 2)) if self.task == "edit" else row
                wanted = texts[row]
                given = pictures if self.task == "edit" else enlarged(pictures)
                changed, _ = self.drawn(given, wanted)
                part = {"frames": self.stored(pictures), "changed": self.stored(changed), "row": rows + row}
                part |= {name: (self.seen(x)[0] * wanted).sum(1) for name, x in (("before", given), ("after", changed))}
                part["token_ids"] = self.guide.texts_of(batch)[0]
                parts.append(part | ({"labels": batch["labels"]} if "labels" in batch else {}))
                rows += len(pictures)
            found |= {f"{name}/{split}": torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
        return found

    def facts(self) -> dict:
        """The task, and how large the networks are."""
        return {"task": self.task, "parameters": count_parameters(self)}

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the guide, as another arm has exported it."""
        load_strictly(self.guide.network, weights, "weights of the arm that this one starts from")


def enlarged(pictures: Pictures) -> Pictures:
    """Pictures of which a quarter of the sides is known, each of its pixels repeated."""
    return F.interpolate(_smaller(pictures), scale_factor=SMALLER, mode="nearest")


def _smaller(pictures: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 low_height low_width"]:
    return F.avg_pool2d(pictures, SMALLER)
