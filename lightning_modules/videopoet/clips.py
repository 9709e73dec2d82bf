"""Batches of clips with their captions and sound: of the captioned world, and (`SoundingVideos`) of a user's files."""

from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Int
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_modules.datamodules.annotated_videos import Words
from lightning_modules.datamodules.decoded_videos import DecodedVideos
from lightning_modules.datamodules.labelled import EpochSteps, portion
from lightning_modules.datasets.download import find
from lightning_modules.datasets.splits import ORDER, WHOLE, Part, Portion, check_splits, permutation
from lightning_modules.datasets.storage import card
from lightning_modules.datasets.tokenizers import TextTokenizer, tokenizer_called
from lightning_modules.datasets.video.corpora import read_index
from lightning_modules.datasets.video.files import BrokenVideo
from lightning_modules.datasets.video.hearing import read_sound
from lightning_modules.datasets.video.sequences import at_random, central_square, in_the_middle
from lightning_modules.datasets.video.showing import read_shown
from lightning_modules.datasets.world import sounding
from lightning_modules.settings import Count, Positive, Share
from lightning_modules.video_tokens.clips import Clips
from lightning_modules.videopoet.text import T5Tokenizer

Columns = dict[str, Tensor]
JUDGED = ("color", "shape", "height")  # columns that evaluation gets in addition


class SoundingClips(Clips):
    """Resident clips of the view `sounding` in memory.

    Batches have `video`, uint8 (batch 3 frames h w); `labels`, int64, the directions right, left, down, up; `caption`
    and `caption_mask` (batch length), ids and whether there is one; `audio`, int16 (batch samples). In training there
    are also `rows`, in evaluation `color`, `shape` and `height` (batch frames), where the thing is, from the top.

    Args:
        folder: a prepared data set of the view.
        seed: decides the rows of the splits and, with the epoch, every order.
        splits: for each split (train, val, test) its source and number of rows, see `datasets.splits.draw_splits`.
        tokenizer: null for the captioned world's words, else see `published_tokenizer`.
        text_length: tokens of a caption, start and end included; longer ones are cut.
        batch_size: clips of one optimiser step, over all processes and accumulated batches; null where nothing is
            trained.
        evaluation_batch_size: clips that are judged at a time.

    Raises:
        ValueError: a split is missing or unknown.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        tokenizer: str | None = None,
        text_length: Annotated[Count, Field(ge=3)] = 8,
        batch_size: Count | None = None,
        evaluation_batch_size: Count,
    ):
        super().__init__(
            folder=folder, seed=seed, splits=splits, batch_size=batch_size, evaluation_batch_size=evaluation_batch_size
        )
        self.tokenizer_name, self.text_length = tokenizer, text_length

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """What cuts the captions."""
        return tokenizer_called(self.tokenizer_name)

    @property
    def words(self) -> int:
        """Number of ids of captions."""
        return len(self.tokenizer)

    @property
    def sample_rate(self) -> int:
        """Samples a second."""
        return sounding.RATE

    @cached_property
    def samples(self) -> int:
        """Samples of a clip.

        Raises:
            ValueError: the data set has no sound.
        """
        source, _ = next(iter(self.rows.values()))
        columns = self.sources[source]
        if "audio" not in columns:
            raise ValueError(f"{self.folder} has no column 'audio' ({', '.join(columns)}): take the view sounding.")
        return columns["audio"].shape[1]

    def train_dataloader(self) -> DataLoader:
        """The training batches, the epoch set by Lightning.

        Raises:
            ValueError: there is no split to train on.
        """
        columns, rows = self.trained_rows()
        batches = _Batches(
            self._taken(columns, rows), seed=self.seed, batch_size=self.batch_size, portion=portion(self)
        )
        return DataLoader(batches, sampler=EpochSteps(len(batches)), batch_size=None)

    def evaluation_batches(self, split: str) -> Iterator[Columns]:
        """One pass over a split in the order of its rows."""
        for columns, part in self.parts(split):
            yield self._taken(columns, part) | {name: torch.from_numpy(columns[name][part]) for name in JUDGED}

    def read_captions(
        self, captions: list[str]
    ) -> tuple[Int[Tensor, "captions length"], Bool[Tensor, "captions length"]]:
        """Ids and mask of sentences."""
        ids, mask = self.tokenizer(captions, self.text_length)
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def _taken(self, columns: dict[str, np.ndarray], rows: np.ndarray) -> Columns:
        said, place = np.unique(columns["caption"][rows].astype(str), return_inverse=True)
        ids, mask = self.read_captions(said.tolist())
        video = np.ascontiguousarray(columns["video"][rows].transpose(0, 4, 1, 2, 3))
        return {
            "video": torch.from_numpy(video),
            "labels": torch.from_numpy(columns["label"][rows]),
            "caption": ids[place],
            "caption_mask": mask[place],
            "audio": torch.from_numpy(columns["audio"][rows].astype(np.int16)),
        }


class _Batches(Dataset):
    """Training batches; item `(epoch, place)` depends on the seed and on that pair only. A last part is left out."""

    def __init__(self, columns: Columns, *, seed: int, batch_size: int, portion: Portion = WHOLE):
        self.columns, self.seed, self.batch_size, self.portion = columns, seed, batch_size, portion
        self.rows = len(columns["labels"])
        self.places = portion.places(self.rows, batch_size)

    def __len__(self) -> int:
        return self.places

    def __getitem__(self, at: tuple[int, int]) -> Columns:
        epoch, place = at
        order = permutation(self.rows, self.seed, ORDER, 0, epoch)[self.portion.window(place, self.batch_size)]
        rows = torch.from_numpy(order)
        return {name: x[rows] for name, x in self.columns.items()} | {"rows": rows}


class SoundingVideos(DecodedVideos):
    """Video files with captions and sound, decoded when they are needed.

    Batches have `video`, uint8 (batch 3 frames size size), the central square; `caption` and `caption_mask` (batch
    length); `audio`, int16 (batch samples); and `broken`, the number of videos that were left out. A file is broken if
    it cannot be decoded, is shorter than a clip, or has no sound. Training clips begin anywhere, and have one of the
    video's captions that is drawn anew in each epoch; those of evaluation lie in the middle, and have the first.

    Args:
        folder: an index that `video.corpora.prepare` has written, such as MSR-VTT's.
        seed: decides the rows of the splits and, with the epoch, order, beginnings and captions.
        splits: for each split (train, val, test) its source and number of rows, see `datasets.splits.draw_splits`.
        tokenizer: of a T5, a name of the hub or a folder.
        text_length: tokens of a caption, its end included; longer ones are cut.
        frames: of a clip.
        rate: frames a second that a file is brought to.
        size: height and width in pixels.
        sample_rate: samples a second that the sound is brought to.
        batch_size: clips of one optimiser step, over all processes and accumulated batches; null where nothing is
            trained.
        evaluation_batch_size: clips that are judged at a time.
        mirror: local folder with the copy of the videos; the environment variable REPRISE_MIRROR wins over it.
        max_broken: largest share of broken videos, see `skipped.Skipped`.

    Raises:
        ValueError: a split is unknown.
    """

    num_classes = 0

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        tokenizer: str,
        text_length: Annotated[Count, Field(ge=3)],
        frames: Count,
        rate: Positive,
        size: Count,
        sample_rate: Count = 24_000,
        batch_size: Count | None = None,
        evaluation_batch_size: Count,
        mirror: str | None = None,
        max_broken: Share,
    ):
        super().__init__()
        check_splits(splits, batch_size)
        self.folder, self.seed, self.splits = folder, seed, splits
        self.tokenizer_name, self.text_length = tokenizer, text_length
        self.frames, self.rate, self.size, self.sample_rate = frames, rate, size, sample_rate
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.mirror, self.max_broken = mirror, max_broken

    @cached_property
    def tokenizer(self) -> T5Tokenizer:
        """What cuts the captions."""
        return T5Tokenizer(self.tokenizer_name)

    @property
    def words(self) -> int:
        """Number of ids of captions."""
        return len(self.tokenizer)

    @property
    def samples(self) -> int:
        """Samples of the sound of a clip."""
        return round(self.frames / self.rate * self.sample_rate)

    def shown(self, split: str) -> "HeardVideos":
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
        return HeardVideos(home, files, captions, self)

    def train_dataloader(self) -> DataLoader:
        """See `DecodedVideos.training_batches`."""
        return self.training_batches()

    def evaluation_batches(self, split: str) -> Iterator[Columns]:
        """See `DecodedVideos.judged_batches`."""
        return self.judged_batches(self.shown(split))

    @property
    def _clip_bytes(self) -> int:
        return super()._clip_bytes + 2 * self.samples


def some(batch: Columns, rows: slice) -> Columns:
    """Some rows of a batch; what belongs to no row (`broken`, a number) stays."""
    return {name: x[rows] if x.ndim else x for name, x in batch.items()}


class HeardVideos:
    """Videos with captions and sound, decoded one by one; see `SoundingVideos`.

    Args:
        home: folder of the files.
        files: of the videos.
        captions: of each, one or more.
        settings: what is shown of them.
    """

    def __init__(self, home: Path, files: np.ndarray, captions: np.ndarray, settings: SoundingVideos):
        self.home, self.files, self.captions, self.settings = home, files, captions, settings

    def read(self, row: int, words: Words | None) -> Columns:
        """`video` (frames size size 3), `audio`, `caption` and `caption_mask`; see `annotated_videos.Videos`."""
        shown, path, said = self.settings, self.home / self.files[row], self.captions[row]
        begin, _, sentence = (0, 0, 0) if words is None else words
        choose = partial(in_the_middle, shown=shown.frames, stride=1)
        if words is not None:
            choose = partial(at_random, shown=shown.frames, stride=1, word=begin)

        def whole(total: int) -> np.ndarray:
            if total < shown.frames:
                raise BrokenVideo(f"it has {total} frames at {shown.rate:g} a second, and a clip {shown.frames}")
            return choose(total)

        seen = read_shown(path, whole, partial(central_square, short_side=shown.size, size=shown.size), rate=shown.rate)
        sound = read_sound(path, float(seen.times[0]), shown.samples, shown.sample_rate)
        ids, mask = shown.tokenizer([said[sentence % len(said)]], shown.text_length)
        found = {"video": seen.frames, "audio": sound, "caption": ids[0], "caption_mask": mask[0]}
        return {name: torch.from_numpy(x) for name, x in found.items()}
