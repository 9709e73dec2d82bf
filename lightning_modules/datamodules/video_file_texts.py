"""Video files with sentences, decoded when they are trained on; the same batches as `datamodules.video_texts`.

A video that cannot be read is left out, counted in the batch (`broken`) and logged; too many of them raise an error. In
training, a video of a later step takes its place, so that all ranks keep batches of one size.
"""

import os
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int
from pydantic import Field
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_modules.datamodules.labelled import WHOLE, EpochSteps, Portion, portion
from lightning_modules.datamodules.video_texts import COLUMNS, Batch, Source, check_sources
from lightning_modules.datasets.download import find
from lightning_modules.datasets.splits import (
    AUGMENTATION,
    ORDER,
    Part,
    check_splits,
    draw_splits,
    permutation,
    random_words,
)
from lightning_modules.datasets.storage import card
from lightning_modules.datasets.tokenizers import TextTokenizer, published_tokenizer
from lightning_modules.datasets.video.corpora import read_index
from lightning_modules.datasets.video.files import BrokenVideo, Skipped, evenly, jittered, read_frames
from lightning_modules.settings import Count, Share

FIRST_FRAME, LAST_FRAME, SENTENCE = range(3)  # what the copies of `random_words` decide


class VideoFileTexts(LightningDataModule):
    """Batches as those of `VideoTexts`, without labels, with `broken`, the number of videos left out for each batch.

    Frames are chosen by `video.files.jittered` for training and by `evenly` for evaluation. Of several sentences of a
    source, training takes one that is drawn anew in each epoch, and evaluation refuses them.

    Args:
        folder: an index that `video.corpora.prepare` has written.
        seed: decides the rows of the splits and, with the epoch, order, frames and sentences.
        splits: for each split (train, val, test) its source and number of rows, see `datasets.splits.draw_splits`.
        sources: `subtitle`, `auxiliary` (caption of the middle frame), `caption`.
        tokenizer: see `published_tokenizer`.
        text_length: tokens of a sentence, start and end included; longer ones are cut.
        frames: that are shown of a video.
        image_size: side to which they are brought, see `video.files.read_frames`.
        antialias: whether the filter widens as they shrink, see `video.files.resized`.
        batch_size: videos of one optimiser step, over all processes and accumulated batches, see `labelled.portion`;
            null where nothing is trained.
        mirror: local folder with the copy of the videos; the environment variable REPRISE_MIRROR wins over it.
        max_broken: largest share of broken videos, see `video.files.Skipped`.

    Raises:
        ValueError: a split or source is unknown or named twice.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        sources: Annotated[list[Source], Field(min_length=1)],
        tokenizer: str,
        text_length: Annotated[Count, Field(ge=3)],
        frames: Count,
        image_size: Count,
        antialias: bool = False,
        batch_size: Count | None = None,
        evaluation_batch_size: Count,
        mirror: str | None = None,
        max_broken: Share,
    ):
        super().__init__()
        check_splits(splits, batch_size)
        check_sources(sources)
        self.folder, self.seed, self.splits, self.sources = folder, seed, splits, sources
        self.tokenizer_name, self.text_length = tokenizer, text_length
        self.frames, self.image_size, self.antialias = frames, image_size, antialias
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.mirror, self.max_broken = mirror, max_broken

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """What cuts the sentences; `len` of it is the number of ids that a text tower has to know."""
        return published_tokenizer(self.tokenizer_name)

    @cached_property
    def rows(self) -> dict[str, tuple[str, np.ndarray]]:
        """Prepared split and row numbers of each split."""
        written = card(self.folder)["splits"]
        return draw_splits({split: facts["rows"] for split, facts in written.items()}, self.splits, self.seed)

    @property
    def num_classes(self) -> None:
        """Sentences are no classes here."""
        return None

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of the clips that a network gets."""
        return 3, self.frames, self.image_size, self.image_size

    def clips(self, split: str) -> "Clips":
        """The videos and sentences of a split.

        Raises:
            ValueError: a video has no sentence of a source.
            DataUnavailable: there is no folder of videos.
        """
        facts = card(self.folder)
        videos = find(facts["name"], facts["videos"], mirror=self.mirror, cache=Path(facts["cache"]))
        prepared, rows = self.rows[split]
        index = read_index(self.folder, prepared)
        texts = {source: index[COLUMNS[source]][rows] for source in self.sources}
        for source, said in texts.items():
            if silent := [row for row, sentences in enumerate(said) if not sentences]:
                raise ValueError(
                    f"{len(silent)} of {len(rows)} videos of split {prepared!r} have no {COLUMNS[source]}, the first "
                    f"is {index['file'][rows[silent[0]]]}: take {source!r} out of sources, or prepare the captions."
                )
        files = index["file"][rows]
        return Clips(videos, files, texts, self.tokenizer, self.text_length, self.image_size, self.antialias)

    def train_dataloader(self) -> DataLoader:
        """The training batches of this process, the epoch set by Lightning; they are decoded by processes of its own.

        Raises:
            ValueError: there is no split to train on.
        """
        if "train" not in self.rows:
            raise ValueError(f"there is no split 'train' in data.splits ({list(self.rows)}), so epochs must be 0.")
        mine = portion(self)
        batches = VideoFileBatches(
            self.clips("train"),
            seed=self.seed,
            frames=self.frames,
            batch_size=self.batch_size,
            max_broken=self.max_broken,
            portion=mine,
        )
        return DataLoader(
            batches,
            sampler=EpochSteps(len(batches)),
            batch_size=None,
            num_workers=len(os.sched_getaffinity(0)) // mine.processes,
            pin_memory=torch.cuda.is_available(),
        )

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        """One pass over a split in the order of its rows, broken videos left out.

        Raises:
            ValueError: a video has several sentences of a source, or too many are broken.
        """
        clips, skipped = self.clips(split), Skipped(self.max_broken)
        if any(len(sentences) > 1 for said in clips.texts.values() for sentences in said):
            raise ValueError(f"videos of split {split!r} have several sentences: list one for each to be judged on.")
        choose = partial(evenly, shown=self.frames)
        for start in range(0, len(clips.files), self.evaluation_batch_size):
            found, broken = [], skipped.broken
            for row in range(start, min(start + self.evaluation_batch_size, len(clips.files))):
                try:
                    found.append(clips.read(row, choose, sentence=0))
                    skipped.read()
                except BrokenVideo as error:
                    skipped.skip(error)
            if found:
                yield _batch(found, skipped.broken - broken)


class Clips(NamedTuple):
    """Videos with their sentences."""

    folder: Path
    files: np.ndarray
    texts: dict[str, np.ndarray]
    tokenizer: TextTokenizer
    text_length: int
    image_size: int
    antialias: bool

    def read(self, row: int, choose: Callable[[int], np.ndarray], sentence: int) -> Batch:
        """Decode a video, and cut one of its sentences of each source; with auxiliary captions, its middle frame too.

        Args:
            row: of the video.
            choose: see `video.files.read_frames`.
            sentence: a number that decides which of them; larger ones begin anew.

        Raises:
            BrokenVideo: it cannot be decoded.
        """

        def with_middle(total: int) -> Int[np.ndarray, " shown_and_middle"]:
            return np.append(choose(total), total // 2)

        middle = "auxiliary" in self.texts
        frames = read_frames(
            self.folder / self.files[row],
            with_middle if middle else choose,
            self.image_size,
            antialias=self.antialias,
        )
        frames = torch.from_numpy(frames)
        found = {"video": frames[:-1], "images": frames[-1]} if middle else {"video": frames}
        for source, said in self.texts.items():
            token_ids, attention_mask = self.tokenizer([said[row][sentence % len(said[row])]], self.text_length)
            found[f"{source}_token_ids"] = torch.from_numpy(token_ids[0])
            found[f"{source}_attention_mask"] = torch.from_numpy(attention_mask[0])
        return found


class VideoFileBatches(Dataset):
    """Training batches; item `(epoch, place)` depends on the seed, on that pair, and on which files are broken.

    A step has one place for each accumulated batch. Each process that decodes counts on its own how many videos it
    found broken.

    Raises:
        ValueError: there are too few videos for a step.
    """

    def __init__(
        self,
        clips: Clips,
        *,
        seed: int,
        frames: int,
        batch_size: int,
        max_broken: float,
        portion: Portion = WHOLE,
    ):
        if not 0 < batch_size <= len(clips.files):
            raise ValueError(
                f"batch_size ({batch_size}) must be between 1 and the number of videos ({len(clips.files)})."
            )
        self.clips, self.seed, self.frames, self.batch_size = clips, seed, frames, batch_size
        self.portion, self.part = portion, portion.rows(batch_size)
        self.skipped, self.epoch = Skipped(max_broken), -1

    def __len__(self) -> int:
        return len(self.clips.files) // self.batch_size * self.portion.accumulated

    def __getitem__(self, at: tuple[int, int]) -> Batch:
        epoch, place = at
        if epoch != self.epoch:
            rows = len(self.clips.files)
            self.order = permutation(rows, self.seed, ORDER, epoch=epoch)
            self.words = np.stack([random_words(rows, self.seed, AUGMENTATION, copy, epoch) for copy in range(3)])
            self.epoch = epoch
        found, broken = [], self.skipped.broken
        for row in self._candidates(place):
            try:
                found.append(self._read(row))
                self.skipped.read()
            except BrokenVideo as error:
                self.skipped.skip(error)
            if len(found) == self.part:
                return _batch(found, self.skipped.broken - broken)
        raise ValueError(f"only {len(found)} videos can be read, too few for a batch of {self.part}.")

    def _candidates(self, place: int) -> Iterator[int]:
        """The rows of a batch; then, for the broken among them, those of later places that no other process takes."""
        together = self.part * self.portion.processes
        start = place * together + self.portion.rank * self.part
        yield from self.order[start : start + self.part].tolist()
        later = np.roll(self.order, -(place + 1) * together)[:-together]
        yield from later[self.portion.rank :: self.portion.processes].tolist()

    def _read(self, row: int) -> Batch:
        first, last, sentence = (int(word) for word in self.words[:, row])
        return self.clips.read(row, partial(jittered, shown=self.frames, words=(first, last)), sentence)


def _batch(clips: list[Batch], broken: int) -> dict[str, Tensor]:
    batch = {name: torch.stack([clip[name] for clip in clips]) for name in clips[0]}
    batch["video"] = rearrange(batch["video"], "b t h w c -> b c t h w").contiguous()
    if "images" in batch:
        batch["images"] = rearrange(batch["images"], "b h w c -> b c h w").contiguous()
    return batch | {"broken": torch.tensor(broken)}
