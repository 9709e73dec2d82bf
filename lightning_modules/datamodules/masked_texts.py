"""Texts as ids, some of whose words are hidden and asked for; a batch depends on its place in the epochs alone.

The rule is BERT's (1810.04805, section 3.1): of 15 % of the words, 80 % become the mask token, 10 % another word, and
10 % stay.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt64
from pydantic import Field
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_modules.datamodules.labelled import portion
from lightning_modules.datamodules.streamed import EpochBatches
from lightning_modules.datasets import storage
from lightning_modules.datasets.splits import Part, check_splits, draw_splits
from lightning_modules.datasets.streaming import RowGroups, hold_out
from lightning_modules.datasets.tokenizers import TextTokenizer, tokenizer_called
from lightning_modules.processes import loader_workers, outlive_signals
from lightning_modules.settings import Count, Share

MASKING = 130  # purpose of random words, which `datasets.splits` has not
KEPT = 32_768  # rows of a source that are tokenised once and kept; of a larger one, each row when it is shown
JUDGED = (1 << 64) - 1  # the epoch whose masks evaluation has
IGNORED = -100  # target of a word that is not asked for
MASKED, EXCHANGED = 0.8, 0.9  # shares of the words asked for: up to here the mask token, from there on another word
Batch = dict[str, Tensor]


class MaskedTexts(LightningDataModule):
    """Batches of `token_ids` and `targets` (batch length, -100 where no word is asked for) and `attention_mask`.

    With `pairs` also `segments` (batch length), 0 and 1 for the first and second sentence, and `labels`: whether the
    second belongs to the first, or what `label` names. Rows are read by the row group, so that a corpus need not fit
    into memory.

    Args:
        folder: a prepared data set with the column `text`, and `second` for pairs.
        seed: decides the rows of the splits and, with the epoch, order and masks.
        splits: for each split (train, val, test) its source and number of rows, see `datasets.splits.draw_splits` and
            `datasets.streaming.hold_out`.
        tokenizer: null for the captioned world's words, else see `published_tokenizer`.
        text_length: tokens of a row, special ones included; of two sentences that are too long, the longer one is cut.
        pairs: show two sentences.
        label: column of what is said of a row, integers or floats; null for `label` of pairs, and none otherwise.
        masked: share of the words that are asked for; 0 for tasks that read whole texts.
        batch_size: rows of one optimiser step, over all processes and accumulated batches; null where nothing is
            trained.
        evaluation_batch_size: rows that are judged at a time.

    Raises:
        ValueError: a split is unknown, or the data set has no such column.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        tokenizer: str | None = None,
        text_length: Annotated[Count, Field(ge=4)],
        pairs: bool = False,
        label: str | None = None,
        masked: Share = 0.15,
        batch_size: Count | None = None,
        evaluation_batch_size: Count,
    ):
        super().__init__()
        check_splits(splits, batch_size)
        self.folder, self.seed, self.splits = folder, seed, splits
        self.tokenizer_name, self.text_length, self.pairs, self.masked = tokenizer, text_length, pairs, masked
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.label = "label" if pairs and label is None else label
        there = storage.card(folder)["columns"]
        if missing := [name for name in self._columns if name not in there]:
            raise ValueError(
                f"{folder} has the columns {', '.join(there)}, but not {missing[0]!r}, which data.pairs ({pairs}) and "
                f"data.label ({label}) ask for."
            )

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """What cuts the sentences; `len` of it is the number of ids.

        Raises:
            ValueError: it has no mask token.
        """
        found = tokenizer_called(self.tokenizer_name)
        if found.mask_id is None:
            raise ValueError(f"the tokenizer {self.tokenizer_name} has no mask token: take one like BERT's.")
        return found

    @property
    def num_classes(self) -> int | None:
        """Number of classes of `labels`; null for scores."""
        return storage.card(self.folder)["num_classes"]

    @cached_property
    def rows(self) -> dict[str, tuple[str, np.ndarray]]:
        """The source and the row numbers of each split."""
        ends = {part["source"]: self._groups(part["source"]).ends for part in self.splits.values()}
        counts = {source: int(of[-1]) for source, of in ends.items()}
        return draw_splits(
            counts, self.splits, self.seed, lambda source, sizes: hold_out(ends[source], sizes, self.seed)
        )

    def train_dataloader(self) -> DataLoader:
        """The training batches, the epoch set by Lightning.

        Raises:
            ValueError: there is no split to train on, or the batch cannot be cut into equal parts.
        """
        if "train" not in self.splits:
            raise ValueError(f"there is no split 'train' in data.splits ({list(self.splits)}), so epochs must be 0.")
        source, rows = self.rows["train"]
        groups, mine = self._groups(source), portion(self)
        batches = EpochBatches(groups.ends, batch_size=self.batch_size, seed=self.seed, portion=mine, rows=rows)
        large = len(groups) > KEPT  # what is kept is shown faster here than by new processes
        workers = loader_workers(mine.processes, mine.rows(self.batch_size) * self.text_length) if large else 0
        return DataLoader(
            _Masked(self, groups), sampler=batches, batch_size=None, num_workers=workers,
            worker_init_fn=outlive_signals,
        )  # fmt: skip

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        """One pass over a split in the order of its rows, with the same masks each time."""
        source, rows = self.rows[split]
        shown = _Masked(self, self._groups(source))
        for start in range(0, len(rows), self.evaluation_batch_size):
            yield shown[JUDGED, rows[start : start + self.evaluation_batch_size]]

    def _groups(self, source: str) -> RowGroups:
        return RowGroups(self.folder, source, self._columns)

    @property
    def _columns(self) -> list[str]:
        return ["text", *(["second"] * self.pairs), *([self.label] if self.label else [])]


class _Masked(Dataset):
    """Item `(epoch, rows)`: these rows with the masks of that epoch."""

    def __init__(self, data: MaskedTexts, groups: RowGroups):
        self.data, self.groups, self.tokenizer = data, groups, data.tokenizer
        self.kept = self._read(np.arange(len(groups))) if len(groups) <= KEPT else None

    def __len__(self) -> int:
        return len(self.groups)

    def _read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        columns = self.groups[rows]
        second = columns["second"].tolist() if self.data.pairs else None
        read = sentences(self.tokenizer, columns["text"].tolist(), second, self.data.text_length)
        return read if self.data.label is None else read | {"labels": columns[self.data.label]}

    def __getitem__(self, at: tuple[int, np.ndarray]) -> Batch:
        epoch, rows = at
        data = self.data
        read = self._read(rows) if self.kept is None else {name: x[rows] for name, x in self.kept.items()}
        words = np.stack([_random_words(data.seed, int(row), epoch, data.text_length) for row in rows])
        token_ids, targets = hide(read["token_ids"], self.tokenizer, words, data.masked)
        return {name: torch.from_numpy(x) for name, x in (read | {"token_ids": token_ids, "targets": targets}).items()}


def _random_words(seed: int, row: int, epoch: int, length: int) -> UInt64[np.ndarray, "two length"]:
    key, counter = np.array([seed, MASKING], np.uint64), np.array([0, row, 0, epoch], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(2 * length).reshape(2, length)


def sentences(
    tokenizer: TextTokenizer, first: Sequence[str], second: Sequence[str] | None, length: int
) -> dict[str, Int[np.ndarray, "rows length"] | Bool[np.ndarray, "rows length"]]:
    """`token_ids` and `attention_mask` of sentences, or of pairs of them with `segments`.

    A pair is start, first sentence, end, second sentence, end. The longer of the two loses its last words until both
    fit, as in BERT's code.
    """
    if second is None:
        token_ids, mask = tokenizer(first, length)
        return {"token_ids": token_ids, "attention_mask": mask}
    token_ids = np.full((len(first), length), tokenizer.pad_id, np.int64)
    mask, segments = np.zeros((len(first), length), bool), np.zeros((len(first), length), np.int64)
    for row, pair in enumerate(zip(first, second, strict=True)):
        one, two = (tokenizer.backend.encode(text).ids[1:-1] for text in pair)
        kept = _kept(len(one), len(two), length - 3)
        start = [tokenizer.start_id, *one[: kept[0]], tokenizer.end_id]
        whole = [*start, *two[: kept[1]], tokenizer.end_id]
        token_ids[row, : len(whole)], mask[row, : len(whole)] = whole, True
        segments[row, len(start) : len(whole)] = 1
    return {"token_ids": token_ids, "attention_mask": mask, "segments": segments}


def _kept(one: int, two: int, room: int) -> tuple[int, int]:
    """How many tokens of two sentences are kept, where the longer one is cut, and the second of equal ones."""
    while one + two > room:
        one, two = (one - 1, two) if one > two else (one, two - 1)
    return one, two


def hide(
    token_ids: Int[np.ndarray, "rows length"],
    tokenizer: TextTokenizer,
    words: UInt64[np.ndarray, "rows two length"],
    share: float,
) -> tuple[Int[np.ndarray, "rows length"], Int[np.ndarray, "rows length"]]:
    """Ids with some words hidden, and the ids that are asked for.

    Of each row the share is rounded, but one word is asked for at least, if there is one; of a share of 0 none.

    Args:
        token_ids: of sentences.
        tokenizer: whose special tokens are never asked for, nor put in place of a word.
        words: random; two for each place, which decide whether and how a word is hidden.
        share: of the words that are asked for.
    """
    if share == 0:
        return token_ids, np.full_like(token_ids, IGNORED)
    special = [tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id, tokenizer.unknown_id, tokenizer.mask_id]
    ordinary = ~np.isin(token_ids, special)
    count = np.maximum(np.rint(ordinary.sum(1) * share).astype(np.int64), ordinary.any(1))
    drawn = np.where(ordinary, words[:, 0] >> np.uint64(1), np.uint64(1) << np.uint64(63))  # others come last
    rank = np.argsort(np.argsort(drawn, axis=1, kind="stable"), axis=1)
    asked = ordinary & (rank < count[:, None])
    how = (words[:, 1] >> np.uint64(11)) * 2.0**-53
    others = np.setdiff1d(np.arange(len(tokenizer)), special)
    exchanged = others[(words[:, 1] & np.uint64(0x7FF)) * np.uint64(len(others)) >> np.uint64(11)]
    hidden = np.where(how < MASKED, tokenizer.mask_id, np.where(how < EXCHANGED, exchanged, token_ids))
    return np.where(asked, hidden, token_ids), np.where(asked, token_ids, IGNORED)
