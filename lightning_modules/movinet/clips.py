"""Resident clips with labels, as batches for one network or for members that each have their own order."""

from collections.abc import Iterator
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_modules.datamodules.labelled import EpochSteps, Labelled, MemberBatches, portion


@runtime_checkable
class ClipData(Protocol):
    """What a network reads: `LabelledClips`, or `clip_files.ClipFiles`, which says besides what its `targets` are."""

    copies: int | None
    num_classes: int
    video_shape: tuple[int, int, int, int]

    def train_dataloader(self) -> DataLoader:
        """The training batches."""
        ...

    def evaluation_batches(self, split: str) -> Iterator[dict[str, Tensor]]:
        """One pass over a split in the order of its rows."""
        ...


class LabelledClips(Labelled):
    """Batches of `video`, uint8 (batch channels frames height width), and `labels`.

    Args:
        folder: a prepared data set of raw clips with integer labels.
        seed: decides the rows of the splits and, with the member and the epoch, every order.
        splits: for each split (train, val, test) its source and number of rows, see `datasets.splits.draw_splits`.
        copies: number of members; training batches then have a leading axis of that size. Null for one network.
        batch_size: clips of one optimiser step, over all processes and accumulated batches; null where nothing is
            trained.
        evaluation_batch_size: clips that are judged at a time.

    Raises:
        ValueError: a split is missing or unknown.
    """

    @cached_property
    def video_shape(self) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of a clip."""
        source, _ = next(iter(self.rows.values()))
        _, frames, height, width, channels = self.sources[source]["video"].shape
        return channels, frames, height, width

    def train_dataloader(self) -> DataLoader:
        """The training batches, the epoch set by Lightning.

        Raises:
            ValueError: there is no split to train on.
        """
        columns, rows = self.trained_rows()
        batches = _ClipBatches(
            _channels_first(columns["video"][rows]).flatten(1, 2),
            torch.from_numpy(columns["label"][rows]),
            seed=self.seed,
            copies=self.copies,
            batch_size=self.batch_size,
            portion=portion(self),
        )
        batches.frames = self.video_shape[1]
        return DataLoader(batches, sampler=EpochSteps(len(batches)), batch_size=None)

    def evaluation_batches(self, split: str) -> Iterator[dict[str, Tensor]]:
        """One pass over a split in the order of its rows."""
        for columns, part in self.parts(split):
            yield {
                "video": _channels_first(columns["video"][part]),
                "labels": torch.from_numpy(columns["label"][part]),
            }


class _ClipBatches(MemberBatches):
    """Clips pass through as images whose channels are those of all frames."""

    frames: int

    def __getitem__(self, at: tuple[int, int]) -> dict[str, Tensor]:
        batch = super().__getitem__(at)
        return {"video": batch["images"].unflatten(-3, (-1, self.frames)), "labels": batch["labels"]}


def _channels_first(stored: np.ndarray) -> UInt8[Tensor, "rows channels frames height width"]:
    return torch.from_numpy(np.ascontiguousarray(stored.transpose(0, 4, 1, 2, 3)))
