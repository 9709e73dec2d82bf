"""Resident long clips with a paragraph each, of which those with the same events in other orders share a batch."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int
from pydantic import Field
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_modules.datamodules.labelled import EpochSteps, portion
from lightning_modules.datasets import storage
from lightning_modules.datasets.splits import ORDER, WHOLE, Part, Portion, check_splits, draw_splits, permutation
from lightning_modules.datasets.tokenizers import TextTokenizer, world_tokenizer
from lightning_modules.settings import Count

Batch = dict[str, Tensor]


class EventClips(LightningDataModule):
    """Batches as those of `datamodules.annotated_videos.LongVideos`, drawn from the captioned world's long clips.

    A batch has `video`, uint8 (batch channels frames height width), and `token_ids` and `attention_mask` (batch
    sentences length); for evaluation also the `permuted_` ones, the same sentences in another order, and `group`.

    Args:
        folder: a prepared data set `world_long_clips`.
        seed: decides the rows of the splits and, with the epoch, every order.
        splits: for each split (train, val, test) its source and number of rows, whole groups each, see
            `datasets.splits.draw_splits`.
        text_length: tokens of a sentence, start and end included.
        frames: of a clip that are shown, as many of each event, evenly; null for all.
        batch_size: rows of one optimiser step, whole groups, over all processes and accumulated batches; null where
            nothing is trained.
        evaluation_batch_size: rows that are judged at a time.

    Raises:
        ValueError: rows or frames are not of whole groups and events.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        text_length: Annotated[Count, Field(ge=3)],
        frames: Count | None,
        batch_size: Count | None = None,
        evaluation_batch_size: Count,
    ):
        super().__init__()
        check_splits(splits, batch_size)
        self.folder, self.seed, self.splits, self.text_length = folder, seed, splits, text_length
        self.frames, self.batch_size, self.evaluation_batch_size = frames, batch_size, evaluation_batch_size
        sizes = {"batch_size": batch_size} | {f"splits.{name}.rows": part["rows"] for name, part in splits.items()}
        for name, size in sizes.items():
            if size is not None and size % self.group:
                raise ValueError(f"data.{name} ({size}) must be a multiple of {self.group}: the clips of a group.")

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """What cuts the sentences."""
        return world_tokenizer()

    @cached_property
    def stored(self) -> dict[str, dict[str, np.ndarray]]:
        """The stored splits that are drawn from, whole."""
        return {name: storage.read(self.folder, name) for name in sorted({p["source"] for p in self.splits.values()})}

    @cached_property
    def group(self) -> int:
        """Clips with the same events, which lie side by side."""
        return int(np.bincount(next(iter(self.stored.values()))["group"])[0])

    @property
    def sentences(self) -> int:
        """Of each paragraph."""
        return next(iter(self.stored.values()))["event"].shape[1]

    @cached_property
    def rows(self) -> dict[str, tuple[str, np.ndarray]]:
        """Stored split and row numbers of each split, drawn in whole groups."""
        groups = {name: rows // self.group for name, rows in storage.card(self.folder)["splits"].items()}
        plan = {
            name: {**part, "rows": part["rows"] and part["rows"] // self.group} for name, part in self.splits.items()
        }
        inside = np.arange(self.group)
        return {
            name: (stored, (self.group * drawn[:, None] + inside).ravel())
            for name, (stored, drawn) in draw_splits(groups, plan, self.seed).items()
        }

    @cached_property
    def video_shape(self) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of the clips that a network gets."""
        frames, height, width, channels = storage.card(self.folder)["image_shape"]
        return channels, len(self._shown(frames)), height, width

    def _shown(self, stored: int) -> Int[np.ndarray, " shown"]:
        """As many frames of each event, the first one of each equal part of it."""
        if self.frames is None:
            return np.arange(stored)
        if self.frames % self.sentences or stored % self.frames:
            raise ValueError(
                f"data.frames ({self.frames}) must be a multiple of the {self.sentences} events, and divide the frames "
                f"of a stored clip ({stored})."
            )
        return np.arange(0, stored, stored // self.frames)

    def train_dataloader(self) -> DataLoader:
        """The training batches, the epoch set by Lightning.

        Raises:
            ValueError: there is no split to train on.
        """
        if "train" not in self.rows:
            raise ValueError(f"there is no split 'train' in data.splits ({list(self.rows)}), so epochs must be 0.")
        columns = self._columns("train")
        own = {name: columns[name] for name in ("video", "token_ids", "attention_mask")}
        batches = EventBatches(own, seed=self.seed, group=self.group, batch_size=self.batch_size, portion=portion(self))
        return DataLoader(batches, sampler=EpochSteps(len(batches)), batch_size=None)

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        """One pass over a split in the order of its rows."""
        columns = self._columns(split)
        for start in range(0, len(columns["video"]), self.evaluation_batch_size):
            yield _batch(columns, slice(start, start + self.evaluation_batch_size))

    def _columns(self, split: str) -> dict[str, Tensor]:
        """All that batches of a split are cut from; the clips as they are stored, colours last."""
        name, rows = self.rows[split]
        stored = self.stored[name]
        shown = self._shown(stored["video"].shape[1])
        found = {"video": torch.from_numpy(stored["video"][rows[:, None], shown])}
        for prefix, column in (("", "sentences"), ("permuted_", "permuted")):
            said = [sentence for row in rows for sentence in stored[column][row]]
            for kind, x in zip(("token_ids", "attention_mask"), self.tokenizer(said, self.text_length), strict=True):
                found[f"{prefix}{kind}"] = torch.from_numpy(x).unflatten(0, (len(rows), -1))
        return found | {"group": torch.from_numpy(stored["group"][rows])}


class EventBatches(Dataset):
    """Training batches of whole groups; item `(epoch, place)` depends on the seed and on that pair only.

    A batch has one row of each of its groups, then the next of each: neighbours, which the loss over time and the
    exchange of videos take for others, have other events.

    Args:
        columns: of all rows, group by group.
        seed: of the order.
        group: rows of a group.
        batch_size: rows of a step.
        portion: what this process takes of each step.
    """

    def __init__(self, columns: dict[str, Tensor], *, seed: int, group: int, batch_size: int, portion: Portion = WHOLE):
        self.columns, self.seed, self.group, self.batch_size = columns, seed, group, batch_size
        self.portion, self.places = portion, portion.places(len(columns["video"]), batch_size)
        self.epoch, self.order = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return self.places

    def __getitem__(self, at: tuple[int, int]) -> Batch:
        epoch, place = at
        if epoch != self.epoch:
            groups = permutation(len(self.columns["video"]) // self.group, self.seed, ORDER, epoch=epoch)
            steps = len(self.columns["video"]) // self.batch_size
            groups = groups[: steps * self.batch_size // self.group].reshape(steps, 1, -1)
            self.order = (
                self.group * groups + np.arange(self.group)[:, None]
            ).ravel()  # steps, rows of a group, groups
            self.epoch = epoch
        return _batch(self.columns, torch.from_numpy(self.order[self.portion.window(place, self.batch_size)]))


def _batch(columns: dict[str, Tensor], rows: Tensor | slice) -> Batch:
    batch = {name: values[rows] for name, values in columns.items()}
    batch["video"] = rearrange(batch["video"], "b t h w c -> b c t h w").contiguous()
    return batch
