"""The tokenizer of clips, MAGVIT-v2's (section 3.1), trained beside a finished codec of sound, which it carries along.

A language model starts from one arm, so that its tokens of clips and of sound come in one file.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Protocol, runtime_checkable

from pydantic import Field
from torch import Tensor

from lightning_modules.layers.published import load_strictly
from lightning_modules.settings import Natural, NonNegative, Positive
from lightning_modules.video_tokens.adversarial import Game
from lightning_modules.video_tokens.building import build
from lightning_modules.video_tokens.causal_training import CausalTraining
from lightning_modules.video_tokens.training import Pixels, check_clips
from lightning_modules.videopoet.audio import make_codec


@runtime_checkable
class SoundData(Protocol):
    """Clips with captions and sound: `clips.SoundingClips`, or `clips.SoundingVideos`."""

    rows: Mapping[str, object]
    video_shape: tuple[int, int, int, int]
    samples: int
    sample_rate: int
    words: int
    text_length: int

    def evaluation_batches(self, split: str) -> Iterator[dict[str, Tensor]]:
        """One pass over a split in the order of its rows."""
        ...


class TokenizerAndCodec(CausalTraining):
    """A causal tokenizer in training, and a frozen codec.

    Args:
        codec: arguments of `audio.make_codec`, as in the arm named by `from`.

    All others are those of `TokenizerTraining`.
    """

    def __init__(
        self,
        *,
        tokenizer: dict,
        codec: dict,
        discriminator: dict,
        num_classes: Annotated[int, Field(ge=0, le=100_000)] = 0,
        reconstruction: NonNegative = 1.0,
        pixels: Pixels = "squared",
        adversarial: NonNegative = 0.1,
        perceptual: NonNegative = 0.1,
        perception: str | None = None,
        r1: NonNegative = 10.0,
        lecam: NonNegative = 0.0,
        game: Game = "softplus",
        entropy_start: Positive = 1.0,
        entropy_steps: Natural = 0,
        published: dict | None = None,
        pixel_scale: Positive = 255.0,
    ):
        super().__init__(
            tokenizer=tokenizer, discriminator=discriminator, num_classes=num_classes, reconstruction=reconstruction,
            pixels=pixels, adversarial=adversarial, perceptual=perceptual, perception=perception, r1=r1, lecam=lecam,
            game=game, entropy_start=entropy_start, entropy_steps=entropy_steps, published=published,
            pixel_scale=pixel_scale,
        )  # fmt: skip
        self.codec = build(make_codec, codec, "model.codec").requires_grad_(False)

    def check_data(self, data: SoundData) -> None:
        """Refuse clips of another shape.

        Raises:
            ValueError: see above.
        """
        check_clips(data, self.tokenizer, self.judge.classes if self.judge else None)

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the codec of the arm in `from`, and its tokenizer, if it has one.

        Raises:
            ValueError: one of them is of another architecture.
        """
        load_strictly(self.codec, part(weights, "codec"), "the codec of the arm in `from`")
        if part(weights, "tokenizer"):
            super().start_from(weights)

    def train(self, mode: bool = True) -> "TokenizerAndCodec":
        """The codec is never trained."""
        super().train(mode)
        self.codec.eval()
        return self


def part(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The weights of a part, under its own names."""
    return {key.removeprefix(f"{name}."): x for key, x in weights.items() if key.startswith(f"{name}.")}
