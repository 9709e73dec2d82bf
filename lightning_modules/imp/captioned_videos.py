"""Video files with captions and, if asked for, their sound, decoded when they are needed."""

import math
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_modules.datamodules.annotated_videos import Words
from lightning_modules.datamodules.decoded_videos import DecodedVideos
from lightning_modules.datasets.download import find
from lightning_modules.datasets.sentence_pieces import SentencePieces, caption_tokenizer
from lightning_modules.datasets.splits import Part, check_splits
from lightning_modules.datasets.storage import card
from lightning_modules.datasets.tokenizers import TextTokenizer
from lightning_modules.datasets.video.corpora import read_index
from lightning_modules.datasets.video.hearing import read_sound
from lightning_modules.datasets.video.sequences import at_random, central_square, in_the_middle
from lightning_modules.datasets.video.showing import read_shown
from lightning_modules.settings import Count, Positive, Share

Batch = dict[str, Tensor]


class CaptionedVideos(DecodedVideos):
    """Batches of `video`, uint8 (batch 3 frames size size), `token_ids` and `attention_mask`, `audio` and `broken`.

    `audio`, int16 (batch samples), is the sound of the whole clip; without a sample rate there is none. Training clips
    begin anywhere and have one of the video's captions, drawn anew in each epoch; those of evaluation lie in the
    middle, and have the first. A video that is shorter than a clip begins again, unless its sound is asked for.

    Args:
        folder: an index that `video.corpora.prepare` has written.
        seed: decides the rows of the splits and, with the epoch, order, beginnings and captions.
        splits: for each split (train, val, test) its source and number of rows, see `datasets.splits.draw_splits`.
        tokenizer: null for the captioned world's words, else see `sentence_pieces.caption_tokenizer`.
        text_length: tokens of a caption, special ones included; longer ones are cut.
        frames: of a clip.
        rate: frames a second that a file is brought to.
        size: height and width in pixels, of the central square.
        sample_rate: samples a second that the sound is brought to; null for no sound.
        seconds: of the sound, from the first frame on; null for those that the frames take.
        batch_size: clips of one optimiser step, over all processes and accumulated batches; null where nothing is
            trained.
        evaluation_batch_size: clips that are judged at a time.
        mirror: local folder with the copy of the videos; the environment variable REPRISE_MIRROR wins over it.
        max_broken: largest share of broken videos, see `skipped.Skipped`.

    Raises:
        ValueError: a split is unknown, or there are seconds of a sound that is not asked for.
    """

    num_classes = 0

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        tokenizer: str | None = None,
        text_length: Annotated[Count, Field(ge=3)],
        frames: Count,
        rate: Positive,
        size: Count,
        sample_rate: Count | None = None,
        seconds: Positive | None = None,
        batch_size: Count | None = None,
        evaluation_batch_size: Count,
        mirror: str | None = None,
        max_broken: Share,
    ):
        super().__init__()
        check_splits(splits, batch_size)
        if seconds is not None and sample_rate is None:
            raise ValueError(f"data.seconds is {seconds}, but data.sample_rate is null, so nothing is heard: set it.")
        self.folder, self.seed, self.splits = folder, seed, splits
        self.tokenizer_name, self.text_length = tokenizer, text_length
        self.frames, self.rate, self.size = frames, rate, size
        self.sample_rate, self.seconds = sample_rate, frames / rate if seconds is None else seconds
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.mirror, self.max_broken = mirror, max_broken

    @cached_property
    def tokenizer(self) -> TextTokenizer | SentencePieces:
        """What cuts the captions."""
        return caption_tokenizer(self.tokenizer_name)

    @property
    def samples(self) -> int:
        """Samples of the sound of a clip; 0 without sound."""
        return round(self.seconds * (self.sample_rate or 0))

    @property
    def span(self) -> int:
        """Frames that a clip and its sound take, so that what is drawn leaves room for both."""
        return max(self.frames, math.ceil(self.samples / (self.sample_rate or 1) * self.rate))

    def shown(self, split: str) -> "ToldVideos":
        """The videos of a split.

        Raises:
            DataUnavailable: they are not there.
            ValueError: a video has no caption.
        """
        facts, (prepared, rows) = card(self.folder), self.rows[split]
        index = read_index(self.folder, prepared)
        files, captions = index["file"][rows], index["caption"][rows]
        if silent := [file for file, said in zip(files, captions, strict=True) if not len(said)]:
            raise ValueError(
                f"{len(silent)} of {len(files)} videos of split {prepared!r} have no caption, the first is "
                f"{silent[0]}: prepare the captions."
            )
        home = find(facts["name"], facts["videos"], mirror=self.mirror, cache=Path(facts["cache"]))
        return ToldVideos(home, files, captions, self)

    def train_dataloader(self) -> DataLoader:
        """See `DecodedVideos.training_batches`."""
        return self.training_batches()

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        """See `DecodedVideos.judged_batches`."""
        return self.judged_batches(self.shown(split))

    @property
    def _clip_bytes(self) -> int:
        return super()._clip_bytes + 2 * self.samples


class ToldVideos:
    """Videos with captions, decoded one by one; see `CaptionedVideos`.

    Args:
        home: folder of the files.
        files: of the videos.
        captions: of each, one or more.
        settings: what is shown of them.
    """

    def __init__(self, home: Path, files: np.ndarray, captions: np.ndarray, settings: CaptionedVideos):
        self.home, self.files, self.captions, self.settings = home, files, captions, settings

    def read(self, row: int, words: Words | None) -> Batch:
        """`video` (frames size size 3), `token_ids`, `attention_mask` and `audio`; see `annotated_videos.Videos`."""
        shown, path, said = self.settings, self.home / self.files[row], self.captions[row]
        begin, _, sentence = (0, 0, 0) if words is None else words
        span = partial(in_the_middle if words is None else at_random, shown=shown.span, stride=1)
        span = span if words is None else partial(span, word=begin)

        def choose(total: int) -> Int[np.ndarray, " shown"]:
            return span(total)[: shown.frames] if total >= shown.span else np.arange(shown.frames) % total

        square = partial(central_square, short_side=shown.size, size=shown.size)
        seen = read_shown(path, choose, square, rate=shown.rate)
        ids, mask = shown.tokenizer([said[sentence % len(said)]], shown.text_length)
        found = {"video": seen.frames, "token_ids": ids[0], "attention_mask": mask[0]}
        if shown.sample_rate is not None:
            found["audio"] = read_sound(path, float(seen.times[0]), shown.samples, shown.sample_rate)
        return {name: torch.from_numpy(x) for name, x in found.items()}
