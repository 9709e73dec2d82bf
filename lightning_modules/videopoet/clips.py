"""Batches of clips with their captions and sound: of the captioned world, and (`SoundingVideos`) of a user's files."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Int
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_modules.datamodules.labelled import EpochSteps, portion
from lightning_modules.datasets.splits import ORDER, WHOLE, Part, Portion, permutation
from lightning_modules.datasets.tokenizers import TextTokenizer, tokenizer_called
from lightning_modules.datasets.world import sounding
from lightning_modules.settings import Count
from lightning_modules.video_tokens.clips import Clips

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
