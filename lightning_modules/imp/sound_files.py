"""Labelled sound files, decoded when they are needed; a batch depends on its place in the epochs alone."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int16
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_modules.datamodules.labelled import EpochSteps, portion
from lightning_modules.datasets import storage, tables
from lightning_modules.datasets.download import find
from lightning_modules.datasets.skipped import Skipped
from lightning_modules.datasets.sounds import read_whole
from lightning_modules.datasets.splits import (
    AUGMENTATION,
    ORDER,
    Part,
    Portion,
    check_splits,
    draw_splits,
    permutation,
    random_words,
)
from lightning_modules.datasets.video.files import BrokenVideo
from lightning_modules.processes import loader_workers, outlive_signals
from lightning_modules.settings import Count, Positive, Share

Batch = dict[str, Tensor]


class SoundFiles(LightningDataModule):
    """Batches of `audio`, int16 (batch samples), `labels` and `broken`, the number of sounds that were left out.

    `labels` are int64 (batch,), or of a data set whose sounds have several, float32 (batch classes), 0 and 1. A sound
    that is shorter than a clip is silent at its end. Evaluation with several clips has `audio` (batch clips samples).

    Args:
        folder: an index that `datasets.sounds.prepare` has written.
        seed: decides the rows of the splits and, with the epoch, order and beginnings.
        splits: for each split (train, val, test) its source and number of rows, see `datasets.splits.draw_splits`.
        sample_rate: samples a second that sounds are brought to.
        seconds: of a clip.
        vary: whether training clips begin anywhere; if not, in the middle, as those of evaluation.
        clips: of each sound that are judged; several are spread evenly over it.
        batch_size: clips of one optimiser step, over all processes and accumulated batches; null where nothing is
            trained.
        evaluation_batch_size: sounds that are judged at a time.
        mirror: local folder with the copy of the sounds; the environment variable REPRISE_MIRROR wins over it.
        max_broken: largest share of broken sounds, see `skipped.Skipped`.

    Raises:
        ValueError: a split is unknown.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        sample_rate: Count,
        seconds: Positive,
        vary: bool = True,
        clips: Count = 1,
        batch_size: Count | None = None,
        evaluation_batch_size: Count,
        mirror: str | None = None,
        max_broken: Share,
    ):
        super().__init__()
        check_splits(splits, batch_size)
        self.folder, self.seed, self.splits = folder, seed, splits
        self.sample_rate, self.seconds, self.vary, self.clips = sample_rate, seconds, vary, clips
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.mirror, self.max_broken = mirror, max_broken

    @cached_property
    def rows(self) -> dict[str, tuple[str, np.ndarray]]:
        """The source and the row numbers of each split."""
        return draw_splits(storage.card(self.folder)["splits"], self.splits, self.seed)

    @property
    def num_classes(self) -> int:
        """Number of classes of the data set."""
        return storage.card(self.folder)["num_classes"]

    @property
    def samples(self) -> int:
        """Samples of a clip."""
        return round(self.seconds * self.sample_rate)

    def sounds(self, split: str) -> "Sounds":
        """The sounds of a split.

        Raises:
            DataUnavailable: they are not there.
        """
        source, rows = self.rows[split]
        return Sounds(self, {name: values[rows] for name, values in tables.read(self.folder, source).items()})

    def train_dataloader(self) -> DataLoader:
        """The training batches, the epoch set by Lightning; sounds are decoded by processes of its own.

        Raises:
            ValueError: there is no split to train on, or the batch cannot be cut into equal parts.
        """
        if "train" not in self.splits:
            raise ValueError(f"there is no split 'train' in data.splits ({list(self.splits)}), so epochs must be 0.")
        mine = portion(self)
        batches = _Batches(self.sounds("train"), self.seed, self.batch_size, self.max_broken, mine)
        return DataLoader(
            batches,
            sampler=EpochSteps(len(batches)),
            batch_size=None,
            num_workers=loader_workers(mine.processes, mine.rows(self.batch_size) * 2 * self.samples),
            worker_init_fn=outlive_signals,
        )

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        """One pass over a split in the order of its rows, broken sounds left out.

        Raises:
            ValueError: too many are broken.
        """
        sounds, skipped = self.sounds(split), Skipped("sounds", self.max_broken)
        for start in range(0, len(sounds), self.evaluation_batch_size):
            found, broken = [], skipped.broken
            for row in range(start, min(start + self.evaluation_batch_size, len(sounds))):
                try:
                    found.append(sounds.judged(row))
                    skipped.read()
                except BrokenVideo as error:
                    skipped.skip(error)
            if found:
                yield _stacked(found, skipped.broken - broken)


class Sounds:
    """The sounds of some rows, decoded one by one.

    Args:
        data: the settings.
        columns: of the index: `file` and `labels`.
    """

    def __init__(self, data: SoundFiles, columns: dict[str, np.ndarray]):
        facts = storage.card(data.folder)
        self.data, self.files, self.labels = data, columns["file"], columns["labels"]
        self.several, self.num_classes = facts["several_labels"], facts["num_classes"]
        self.home = find(facts["name"], facts["sounds"], mirror=data.mirror, cache=Path(facts["cache"]))

    def __len__(self) -> int:
        return len(self.files)

    def trained(self, row: int, word: int) -> Batch:
        """One clip, which begins where the word says."""
        heard, samples = self._heard(row), self.data.samples
        room = max(0, len(heard) - samples)
        start = word % (room + 1) if self.data.vary else room // 2
        return {"audio": _clip(heard, start, samples), "labels": self._labels(row)}

    def judged(self, row: int) -> Batch:
        """The clip in the middle, or several."""
        heard, samples, clips = self._heard(row), self.data.samples, self.data.clips
        room = max(0, len(heard) - samples)
        starts = [room // 2] if clips == 1 else [round(room * number / (clips - 1)) for number in range(clips)]
        found = torch.stack([_clip(heard, start, samples) for start in starts])
        return {"audio": found[0] if clips == 1 else found, "labels": self._labels(row)}

    def _heard(self, row: int) -> Int16[np.ndarray, " samples"]:
        return read_whole(self.home / self.files[row], self.data.sample_rate)

    def _labels(self, row: int) -> Tensor:
        if not self.several:
            return torch.tensor(self.labels[row][0])
        found = torch.zeros(self.num_classes)
        found[list(self.labels[row])] = 1.0
        return found


class _Batches(Dataset):
    """Training batches; item `(epoch, place)` depends on the seed, on that pair, and on which files are broken.

    In place of a broken sound comes that of a later place that no other process takes.
    """

    def __init__(self, sounds: Sounds, seed: int, batch_size: int, max_broken: float, portion: Portion):
        self.sounds, self.seed, self.batch_size, self.portion = sounds, seed, batch_size, portion
        self.places, self.skipped = portion.places(len(sounds), batch_size), Skipped("sounds", max_broken)

    def __len__(self) -> int:
        return self.places

    def __getitem__(self, at: tuple[int, int]) -> Batch:
        epoch, place = at
        order = permutation(len(self.sounds), self.seed, ORDER, 0, epoch)
        words = random_words(len(self.sounds), self.seed, AUGMENTATION, 0, epoch)
        window = self.portion.window(place, self.batch_size)
        part, (rank, processes, _) = window.stop - window.start, self.portion
        later = np.roll(order, -(place + 1) * part * processes)[rank::processes]
        found, broken = [], self.skipped.broken
        for row in [*order[window].tolist(), *later.tolist()]:
            if len(found) == part:
                break
            try:
                found.append(self.sounds.trained(row, int(words[row])))
                self.skipped.read()
            except BrokenVideo as error:
                self.skipped.skip(error)
        if len(found) < part:
            raise ValueError(f"only {len(found)} sounds can be read, too few for a batch of {part}.")
        return _stacked(found, self.skipped.broken - broken)


def _clip(heard: Int16[np.ndarray, " heard"], start: int, samples: int) -> Int16[Tensor, " samples"]:
    cut = heard[start : start + samples]
    return torch.from_numpy(np.pad(cut, (0, samples - len(cut))).astype(np.int16))


def _stacked(found: list[Batch], broken: int) -> Batch:
    batch = {name: torch.stack([each[name] for each in found]) for name in found[0]}
    return batch | {"broken": torch.tensor(broken)}
