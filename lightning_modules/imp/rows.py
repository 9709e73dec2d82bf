"""Resident rows with pictures, clips, sounds, classes and captions, each read from a column of the user's choice."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, NotRequired

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.datamodules.labelled import EpochSteps, Labelled, portion
from lightning_modules.datasets.splits import ORDER, Part, Portion, permutation, random_words
from lightning_modules.datasets.tokenizers import TextTokenizer, tokenizer_called
from lightning_modules.settings import STRICT, Count

CAPTIONS = 130  # a purpose of random words, which `datasets.splits` has not
Rows = Int[np.ndarray, " rows"]


class Columns(TypedDict):
    """Which column of the data set each part of a batch is read from; what is left out is not read.

    `captions` is a text or several of each row, of which training draws one and evaluation reads the first.
    """

    __pydantic_config__ = STRICT
    images: NotRequired[str]
    video: NotRequired[str]
    audio: NotRequired[str]
    labels: NotRequired[str]
    captions: NotRequired[str]


class StoredRows(Labelled):
    """Rows in memory.

    Batches have what `columns` names: `images` (uint8, batch 3 h w), `video` (uint8, batch 3 frames h w), `audio`
    (int16, batch samples), `labels`, and of captions `token_ids` and `attention_mask` (batch length).

    Args:
        folder: a prepared data set whose pictures are stored raw.
        seed: decides the rows of the splits and, with the epoch, every order and the captions.
        splits: for each split (train, val, test) its source and number of rows, see `datasets.splits.draw_splits`.
        columns: see `Columns`.
        tokenizer: `world`, or that of a published model.
        text_length: tokens of a caption, start and end included; longer ones are cut.
        batch_size: rows of one optimiser step, over all processes and accumulated batches; null where nothing is
            trained.
        evaluation_batch_size: rows that are judged at a time.

    Raises:
        ValueError: a split is missing or unknown, or nothing is to be read.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        columns: Columns,
        tokenizer: str = "world",
        text_length: Annotated[Count, Field(ge=3)] = 16,
        batch_size: Count | None = None,
        evaluation_batch_size: Count,
    ):
        super().__init__(
            folder=folder, seed=seed, splits=splits, batch_size=batch_size, evaluation_batch_size=evaluation_batch_size
        )
        if not columns:
            raise ValueError("columns is empty: name at least one, such as {images: image, labels: label}.")
        self.columns, self.tokenizer_name, self.text_length = columns, tokenizer, text_length

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """What cuts the captions."""
        return tokenizer_called(self.tokenizer_name)

    @cached_property
    def stored(self) -> dict[str, dict[str, np.ndarray]]:
        """Of each stored split the columns that are read, by the names that batches have.

        Raises:
            ValueError: the data set lacks a column.
        """
        found = {}
        for source, columns in self.sources.items():
            if missing := [name for name in self.columns.values() if name not in columns]:
                raise ValueError(
                    f"{self.folder} has the columns {', '.join(columns)}, but data.columns names {missing[0]!r}: "
                    "correct it."
                )
            found[source] = {key: columns[name] for key, name in self.columns.items()}
        return found

    @cached_property
    def encoded(self) -> dict[str, list[list[tuple[np.ndarray, np.ndarray]]]]:
        """Of each stored split the captions of each row, as ids and mask."""
        return {source: [self._encode(told) for told in columns["captions"]] for source, columns in self.stored.items()}

    def _encode(self, told: str | list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        texts = [told] if isinstance(told, str) else list(told)
        ids, there = self.tokenizer(texts, self.text_length)
        return list(zip(ids, there, strict=True))

    def batch(self, split: str, rows: Rows, choices: Rows | None = None) -> dict[str, Tensor]:
        """Some rows of a stored split.

        Args:
            split: the stored one.
            rows: their numbers.
            choices: which caption each row shows, any numbers; the first without it.
        """
        columns, found = self.stored[split], {}
        for key in ("images", "video", "audio", "labels"):
            if key in columns:
                found[key] = torch.from_numpy(np.ascontiguousarray(columns[key][rows]))
        if "images" in found:
            found["images"] = rearrange(found["images"], "b h w c -> b c h w").contiguous()
        if "video" in found:
            found["video"] = rearrange(found["video"], "b t h w c -> b c t h w").contiguous()
        if "audio" in found:
            found["audio"] = found["audio"].to(torch.int16)
        if "captions" in columns:
            chosen = np.zeros(len(rows), np.int64) if choices is None else choices
            told = [self.encoded[split][row] for row in rows]
            picked = [each[choice % len(each)] for each, choice in zip(told, chosen, strict=True)]
            found["token_ids"] = torch.from_numpy(np.stack([ids for ids, _ in picked]))
            found["attention_mask"] = torch.from_numpy(np.stack([there for _, there in picked]))
        return found

    def train_dataloader(self) -> DataLoader:
        """The training batches, the epoch set by Lightning."""
        batches = StoredBatches(self, portion(self))
        return DataLoader(batches, sampler=EpochSteps(len(batches)), batch_size=None)

    def evaluation_batches(self, split: str) -> Iterator[dict[str, Tensor]]:
        """One pass over a split in the order of its rows."""
        source, rows = self.rows[split]
        for start in range(0, len(rows), self.evaluation_batch_size):
            yield self.batch(source, rows[start : start + self.evaluation_batch_size])


class StoredBatches(Dataset):
    """Batches of the split train; item `(epoch, place)` depends on the seed and that pair only."""

    def __init__(self, data: StoredRows, portion: Portion):
        data.trained_rows()  # refuses data without any
        self.data, self.portion = data, portion
        self.source, self.rows = data.rows["train"]
        self.places = portion.places(len(self.rows), data.batch_size)

    def __len__(self) -> int:
        return self.places

    def __getitem__(self, at: tuple[int, int]) -> dict[str, Tensor]:
        epoch, place = at
        window = self.portion.window(place, self.data.batch_size)
        order = permutation(len(self.rows), self.data.seed, ORDER, 0, epoch)[window]
        words = random_words(len(self.rows), self.data.seed, CAPTIONS, 0, epoch)[order] >> np.uint64(33)
        return self.data.batch(self.source, self.rows[order], words.astype(np.int64))
