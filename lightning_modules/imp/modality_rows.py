"""Resident rows of several modalities: pictures, clips, sounds and captions of the same thing, and what it is."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_modules.datamodules.labelled import EpochSteps, Labelled, portion
from lightning_modules.datasets import storage
from lightning_modules.datasets.splits import ORDER, Part, Portion, permutation, random_words
from lightning_modules.datasets.tokenizers import TextTokenizer, tokenizer_called
from lightning_modules.settings import Count

CAPTIONS = 140  # purpose of random words, which `datasets.splits` has not
COLUMNS = {"images": ("image",), "video": ("video",), "audio": ("audio",), "text": ("captions", "caption", "text")}
Modality = Literal["images", "video", "audio", "text"]
Batch = dict[str, Tensor]


class ModalityRows(Labelled):
    """Batches with a column for each modality: of one row, all are about the same thing.

    `images`, uint8 (batch 3 h w); `video`, uint8 (batch 3 frames h w); `audio`, int16 (batch samples); `token_ids` and
    `attention_mask` (batch length) of a caption; `labels`, int64 (batch,), if `label` names a column. A row with
    several captions shows one of them in each epoch, and the first one in evaluation.

    Args:
        folder: a prepared data set of raw pictures, clips or sounds.
        seed: decides the rows of the splits and, with the epoch, order and captions.
        splits: for each split (train, val, test) its source and number of rows, see `datasets.splits.draw_splits`.
        modalities: that are read.
        label: column of integers that says what it is; null for none.
        tokenizer: null for the captioned world's words, else see `published_tokenizer`.
        text_length: tokens of a caption, start and end included; longer ones are cut.
        batch_size: rows of one optimiser step, over all processes and accumulated batches; null where nothing is
            trained.
        evaluation_batch_size: rows that are judged at a time.

    Raises:
        ValueError: a split is unknown, or a modality or label is none of the data set.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        modalities: Annotated[list[Modality], Field(min_length=1)],
        label: str | None = None,
        tokenizer: str | None = None,
        text_length: Annotated[Count, Field(ge=3)] = 16,
        batch_size: Count | None = None,
        evaluation_batch_size: Count,
    ):
        super().__init__(
            folder=folder, seed=seed, splits=splits, batch_size=batch_size, evaluation_batch_size=evaluation_batch_size
        )
        self.modalities, self.label = modalities, label
        self.tokenizer_name, self.text_length = tokenizer, text_length
        there = storage.card(folder)["columns"]
        if label is not None and label not in there:
            raise ValueError(f"data.label is {label!r}, but {folder} has the columns {', '.join(there)}.")
        for modality in modalities:
            if not (found := [name for name in COLUMNS[modality] if name in there]):
                raise ValueError(f"{folder} has no {modality}: its columns are {', '.join(there)}.")
            if found[0] in ("image", "video") and storage.card(folder)["codec"] != "raw":
                raise ValueError(f"the pictures of {folder} are encoded, expected raw ones: take StreamedImages.")

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """What cuts the captions."""
        return tokenizer_called(self.tokenizer_name)

    @property
    def num_classes(self) -> int | None:
        """Number of classes of `labels`; null without them."""
        if self.label is None:
            return None
        if self.label == "label":
            return storage.card(self.folder)["num_classes"]
        return 1 + max(int(columns[self.label].max()) for columns in self.sources.values())

    def columns(self, split: str) -> dict[str, Tensor]:
        """All rows of a split; captions as `token_ids` (rows captions length), of which `num_captions` are there."""
        source, rows = self.rows[split]
        stored, found = self.sources[source], {}
        for modality in self.modalities:
            name = next(name for name in COLUMNS[modality] if name in stored)
            values = stored[name][rows]
            found |= self._text(values) if modality == "text" else {modality: _tensor(modality, values)}
        if self.label is not None:
            found["labels"] = torch.from_numpy(stored[self.label][rows])
        return found

    def _text(self, told: np.ndarray) -> dict[str, Tensor]:
        told = [[said] if isinstance(said, str) else list(said) for said in told]
        if empty := sum(not said for said in told):
            raise ValueError(f"{empty} rows of {self.folder} have no caption: leave them out of the data set.")
        counts = np.array([len(said) for said in told])
        token_ids, mask = self.tokenizer([text for said in told for text in said], self.text_length)
        there = np.arange(counts.max()) < counts[:, None]
        ids = np.full((*there.shape, self.text_length), self.tokenizer.pad_id)
        masks = np.zeros(ids.shape, bool)
        ids[there], masks[there] = token_ids, mask
        ids, masks, counts = map(torch.from_numpy, (ids, masks, counts))
        return {"token_ids": ids, "attention_mask": masks, "num_captions": counts}

    def train_dataloader(self) -> DataLoader:
        """The training batches, the epoch set by Lightning.

        Raises:
            ValueError: there is no split to train on.
        """
        self.trained_rows()
        batches = _Batches(self.columns("train"), self.seed, self.batch_size, portion(self))
        return DataLoader(batches, sampler=EpochSteps(len(batches)), batch_size=None)

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        """One pass over a split in the order of its rows, each with its first caption."""
        columns = self.columns(split)
        total = len(next(iter(columns.values())))
        for start in range(0, total, self.evaluation_batch_size):
            rows = torch.arange(start, min(start + self.evaluation_batch_size, total))
            yield take(columns, rows, torch.zeros_like(rows))


class _Batches(Dataset):
    """Training batches; item `(epoch, place)` depends on the seed and on that pair only. A last part is left out."""

    def __init__(self, columns: Mapping[str, Tensor], seed: int, batch_size: int, portion: Portion):
        self.columns, self.seed, self.batch_size, self.portion = columns, seed, batch_size, portion
        self.rows = len(next(iter(columns.values())))
        self.places = portion.places(self.rows, batch_size)

    def __len__(self) -> int:
        return self.places

    def __getitem__(self, at: tuple[int, int]) -> Batch:
        epoch, place = at
        rows = permutation(self.rows, self.seed, ORDER, 0, epoch)[self.portion.window(place, self.batch_size)]
        words = random_words(self.rows, self.seed, CAPTIONS, 0, epoch)[rows] >> np.uint64(33)
        return take(self.columns, torch.from_numpy(rows), torch.from_numpy(words.astype(np.int64)))


def take(columns: Mapping[str, Tensor], rows: Int[Tensor, " batch"], words: Int[Tensor, " batch"]) -> Batch:
    """A batch of rows, each with one of its captions, which a random word picks."""
    batch = {name: x[rows] for name, x in columns.items() if name != "num_captions"}
    if "num_captions" in columns:
        picked = torch.arange(len(rows)), words % columns["num_captions"][rows]
        batch |= {name: batch[name][picked] for name in ("token_ids", "attention_mask")}
    return batch


def _tensor(modality: Modality, values: np.ndarray) -> Tensor:
    """A stored column as batches have it: pictures and clips with their colours first, sounds as 16 bits."""
    if modality == "audio":
        return torch.from_numpy(values.astype(np.int16))
    axes = (0, 3, 1, 2) if modality == "images" else (0, 4, 1, 2, 3)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(axes)))
