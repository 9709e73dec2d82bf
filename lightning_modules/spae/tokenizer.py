"""SPAE's autoencoder: MAGVIT's residual encoder and decoder around a pyramid of words (section 3.1).

A picture is a clip of one frame, and its kernels are one frame deep; the video form has kernels over space and time.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, NotRequired

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.settings import STRICT, Count
from lightning_modules.spae.pyramid import Empty, Positions, Pyramid, Quantisation, Spelt
from lightning_modules.spae.words import Scaling, Source, WordTable, chosen_words
from lightning_modules.video_tokens.convolution import Padding, lecun_normal_
from lightning_modules.video_tokens.network import Decoder, Encoder
from lightning_modules.video_tokens.tokenizer import VideoTokenizer, check_video

Layer = Count | Annotated[list[Count], Field(min_length=3, max_length=3)]


class TableSettings(TypedDict):
    """How the table of words is made, see `WordTable` and `chosen_words`."""

    __pydantic_config__ = STRICT
    source: Source
    scaling: Scaling
    words: NotRequired[Count | None]
    leave_out: NotRequired[list[str]]


class TokenizerSettings(TypedDict):
    """The arguments of `SpaeTokenizer` that `conf/` gives; the language model decides the others."""

    __pydantic_config__ = STRICT
    frames: Count
    size: Count
    dims: Literal[2, 3]
    width: Count
    multipliers: list[Count]
    blocks: Count
    halve_time: list[bool]
    embedding_dim: Count
    projection: bool
    spread: bool
    norm_groups: Count
    padding: Padding
    layers: Annotated[list[Layer], Field(min_length=1)]
    quantisation: Quantisation
    positions: Positions
    empty: Empty
    table: TableSettings


class SpaeTokenizer(VideoTokenizer):
    """Encoder, pyramid of words and decoder.

    Args:
        words: the whole words of a language model, see `chosen_words`.
        ids: of these words in its vocabulary.
        word_dim: length of its embeddings.
        frames: of a clip; 1 for pictures.
        size: height and width of a frame.
        dims: 2 for pictures, 3 for kernels over space and time.
        width: channels of the first level.
        multipliers: channels of each level in units of `width`.
        blocks: residual blocks of a level.
        halve_time: for each level but the last, whether it also halves the number of frames.
        embedding_dim: channels of the encoder's output and of the decoder's input.
        projection: whether linear maps lie between these channels and the words' vectors; without them both have one
            length.
        spread: whether latents have mean 0 and variance 1 in each dimension, over a batch in training and by moving
            averages
            afterwards: as words of `standard` scaling do, so that many of them are near to some latent from the start.
        norm_groups: of every group norm.
        padding: beyond the border, see `convolution.conv`.
        layers: the grid of each layer, see `Pyramid`.
        quantisation: see `Pyramid`; likewise `positions` and `empty`.
        table: `source`, `scaling`, `words` (how many) and `leave_out`, see `WordTable` and `chosen_words`.

    Attributes:
        table: the words.
        grid: (t, h, w) of the latents.

    Raises:
        ValueError: frames or size cannot be halved so often, pictures have more than one frame, lists have other
            lengths, the words' vectors have another length than the encoder's output, or a layer does not fit the grid.
    """

    def __init__(
        self,
        *,
        words: Sequence[str],
        ids: Sequence[int],
        word_dim: Count,
        frames: Count,
        size: Count,
        dims: Literal[2, 3] = 2,
        width: Count = 64,
        multipliers: Sequence[Count] = (1, 2, 2, 4),
        blocks: Count = 2,
        halve_time: Sequence[bool] = (False, False, False),
        embedding_dim: Count = 256,
        projection: bool = True,
        spread: bool = True,
        norm_groups: Count = 32,
        padding: Padding = "zeros",
        layers: Sequence[Layer] = (1, 2, 4, 8, 16, 16),
        quantisation: Quantisation = "saq",
        positions: Positions = "dilated",
        empty: Empty = "nearest",
        table: TableSettings,
    ):
        super().__init__()
        self.frames, self.size, self.dims = frames, size, dims
        self.grid = latent_grid(frames, size, dims, multipliers, halve_time)
        options = {
            "depth": 1 if dims == 2 else 3, "width": width, "multipliers": multipliers, "blocks": blocks,
            "halve_time": halve_time, "embedding_dim": embedding_dim, "groups": norm_groups, "padding": padding,
        }  # fmt: skip
        self.encoder, self.decoder = Encoder(**options), Decoder(**options)
        if not projection and embedding_dim != word_dim:
            raise ValueError(
                f"embedding_dim is {embedding_dim} and the words' vectors have length {word_dim}: without projection "
                "both must be the same."
            )
        self.to_words = nn.Conv3d(embedding_dim, word_dim, 1) if projection else nn.Identity()
        self.from_words = nn.Conv3d(word_dim, embedding_dim, 1) if projection else nn.Identity()
        lecun_normal_(self)
        self.spread = nn.BatchNorm3d(word_dim, affine=False) if spread else nn.Identity()
        ids, words = chosen_words(ids, words, count=table.get("words"), leave_out=table.get("leave_out", ()))
        self.table = WordTable(words=words, ids=ids, dim=word_dim, source=table["source"], scaling=table["scaling"])
        self.quantiser = Pyramid(
            self.table, self.grid, layers, quantisation=quantisation, positions=positions, empty=empty
        )

    @property
    def pyramid(self) -> Pyramid:
        """The quantiser."""
        return self.quantiser

    def latents(self, video: Float[Tensor, "batch 3 frames height width"]) -> Float[Tensor, "batch dim t h w"]:
        """What is to be said in words; of length 1 where the words are."""
        z = self.spread(self.to_words(self.encoder(video)))
        return F.normalize(z, dim=1) if self.table.scaling == "unit" else z

    def quantise(
        self, video: Float[Tensor, "batch 3 frames height width"], upto: int | Int[Tensor, " batch"] | None = None
    ) -> Spelt:
        """The words of clips, and the latents of the first `upto` layers, or of so many of each clip."""
        return self.pyramid.quantise(self.latents(video), upto)

    def draw(self, latents: Float[Tensor, "batch dim t h w"]) -> Float[Tensor, "batch 3 frames height width"]:
        """Clips of words' vectors."""
        return self.decoder(self.from_words(latents))

    def words_of(self, pictures: Float[Tensor, "batch 3 *frames height width"]) -> list[Int[Tensor, "batch _"]]:
        """The words of each layer, as indices of the table.

        Args:
            pictures: with pixels from 0 to 1, or clips of `frames` frames.

        Raises:
            ValueError: they are of another size, or pixels are not from 0 to 1.
        """
        video = pictures.unsqueeze(2) if pictures.ndim == 4 else pictures
        check_video(video)
        self.check_shape(video.shape)
        return self.quantise(video).words

    def picture_of(
        self, words: Sequence[Int[Tensor, "batch _"]], upto: int | None = None
    ) -> Float[Tensor, "batch 3 frames height width"]:
        """The clips (pictures: of one frame) of the first `upto` layers of words. Pixels are not held within 0 and 1.

        Raises:
            ValueError: see `Pyramid.latents`.
        """
        return self.draw(self.pyramid.latents(words, upto))

    def encode(self, video: Float[Tensor, "batch 3 frames height width"]) -> Int[Tensor, "batch tokens"]:
        """The words of all layers behind one another.

        Raises:
            ValueError: the clips are of another size.
        """
        return torch.cat(self.words_of(video), dim=1)

    def decode(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch 3 frames height width"]:
        """The clips of the words of all layers, or of the first ones.

        Raises:
            ValueError: there are not as many words as some first layers have, or a word is not in the table.
        """
        counts = self.pyramid.cumulative()
        if tokens.shape[1] not in counts:
            raise ValueError(f"{tokens.shape[1]} words for a picture, expected one of {counts}: whole layers.")
        layers = tokens.split(self.pyramid.tokens[: counts.index(tokens.shape[1]) + 1], dim=1)
        return self.picture_of(layers)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Refuse clips of another size: layers belong to one grid.

        Raises:
            ValueError: see above.
        """
        expected = (3, self.frames, self.size, self.size)
        if tuple(shape[1:]) != expected:
            raise ValueError(
                f"clips of shape {tuple(shape[1:])} (channels, frames, height, width), but tokenizer.frames and "
                f"tokenizer.size are for {expected}."
            )

    def forward(
        self, video: Float[Tensor, "batch 3 frames height width"], upto: int | Int[Tensor, " batch"] | None = None
    ) -> tuple[Float[Tensor, "batch 3 frames height width"], Spelt]:
        """Clips as they are drawn again from the first `upto` layers, or so many of each, and their words."""
        found = self.quantise(video, upto)
        return self.draw(found.latents), found


def latent_grid(
    frames: int, size: int, dims: int, multipliers: Sequence[int], halve_time: Sequence[bool]
) -> tuple[int, int, int]:
    """The grid of the latents: time, height and width.

    Raises:
        ValueError: see `SpaeTokenizer`.
    """
    if len(halve_time) != len(multipliers) - 1:
        raise ValueError(
            f"halve_time has {len(halve_time)} entries, expected {len(multipliers) - 1}: one for each level of "
            f"multipliers ({list(multipliers)}) but the last."
        )
    if dims == 2 and (frames != 1 or any(halve_time)):
        raise ValueError(
            f"dims is 2 for {frames} frames with halve_time {list(halve_time)}: pictures have frames 1 and never halve "
            "time; for clips set dims to 3."
        )
    time, space = 2 ** sum(halve_time), 2 ** len(halve_time)
    if frames % time or size % space:
        raise ValueError(
            f"clips of {frames} frames of {size} pixels cannot become words: expected multiples of {time} frames and "
            f"{space} pixels."
        )
    return frames // time, size // space, size // space


def from_language(language: nn.Module) -> dict[str, object]:
    """The arguments of `SpaeTokenizer` that a language model decides.

    Args:
        language: with `whole_words` and `dim`, see `language.Language`.
    """
    ids, words = language.whole_words()
    return {"ids": ids.tolist(), "words": words, "word_dim": language.dim}
