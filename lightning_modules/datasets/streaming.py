"""Data sets larger than memory: rows read by the row group, in a random order that any number of workers keeps.

The order is a pure function of seed and epoch, and a batch is one of its slices; so a run resumes in the middle of an
epoch from two integers, and the number of workers changes nothing.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from lightning_modules.datasets import storage
from lightning_modules.datasets.columns import to_numpy
from lightning_modules.datasets.splits import ORDER, SPLITS, WHOLE, Portion, cut, permutation, random_words

WINDOW = 8  # row groups that are shuffled together
HELD = 16  # rows of a row group that are held out together


class RowGroups:
    """Rows of one split of a prepared data set as a map-style data set whose items are whole batches.

    Give it to a `DataLoader` with a `WindowBatches` sampler and `batch_size=None`. It holds the decoded row
    groups of two windows. Shards are trusted: `storage.read` is what checks digests.

    Args:
        folder: of the data set.
        split: one of those on its card.
        columns: names of the columns wanted; all by default.

    Raises:
        ValueError: the split or a column is not on the card, or shards are missing.
    """

    def __init__(self, folder: Path, split: str, columns: Sequence[str] | None = None):
        facts = storage.card(folder)
        if split not in facts["splits"]:
            raise ValueError(f"split ({split!r}) must be one of {', '.join(facts['splits'])}, as {folder} has.")
        if unknown := sorted(set(columns or ()) - set(facts["columns"])):
            raise ValueError(f"columns {', '.join(unknown)} are not in {folder}: it has {', '.join(facts['columns'])}.")
        self.columns = list(columns or facts["columns"])
        self.paths = storage.shards(folder, split)
        self._shape = facts["image_shape"] if facts["codec"] == "raw" else None
        self._places, sizes = [], []
        for path in self.paths:
            metadata = pq.read_metadata(path)
            self._places += [(path, group) for group in range(metadata.num_row_groups)]
            sizes += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.ends = np.cumsum(sizes)
        self._files: dict[Path, pq.ParquetFile] = {}
        self._decoded: OrderedDict[int, dict[str, np.ndarray]] = OrderedDict()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": {}, "_decoded": OrderedDict()}

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The columns of some rows, in the order asked for."""
        rows = np.asarray(rows)
        groups = np.searchsorted(self.ends, rows, side="right")
        order = np.argsort(groups, kind="stable")
        found, starts = np.unique(groups[order], return_index=True)
        parts = [
            {name: values[part - self._start(group)] for name, values in self._group(group).items()}
            for group, part in zip(found.tolist(), np.split(rows[order], starts[1:]), strict=True)
        ]
        back = np.argsort(order)
        return {name: np.concatenate([part[name] for part in parts])[back] for name in self.columns}

    def _start(self, group: int) -> int:
        return int(self.ends[group - 1]) if group else 0

    def _group(self, group: int) -> dict[str, np.ndarray]:
        if group not in self._decoded:
            path, index = self._places[group]
            if path not in self._files:
                self._files[path] = pq.ParquetFile(path, memory_map=True)
            table = self._files[path].read_row_group(index, columns=self.columns, use_threads=False)
            self._decoded[group] = {name: to_numpy(table[name], self._shape) for name in self.columns}
            if len(self._decoded) > 2 * WINDOW:  # a batch may lie across two windows
                self._decoded.popitem(last=False)
        self._decoded.move_to_end(group)
        return self._decoded[group]


class WindowBatches:
    """Batches of row numbers for one process: row groups in random order, and rows shuffled within `WINDOW` groups.

    All processes cut one order. What does not fill a step is left out. Lightning calls `set_epoch`.

    Args:
        ends: where each row group ends: `RowGroups.ends`.
        batch_size: rows of a step, over all processes and accumulated batches.
        seed: with the epoch, decides the order.
        portion: what this process takes of each step.
        rows: the numbers of those that are trained on; all by default.

    Raises:
        ValueError: there are too few rows for a single step, or it cannot be cut into equal parts.
    """

    def __init__(
        self,
        ends: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        portion: Portion = WHOLE,
        rows: np.ndarray | None = None,
    ):
        self.ends, self.batch_size, self.seed, self.portion = np.asarray(ends), batch_size, seed, portion
        self.taken = np.full(self.ends[-1], rows is None)
        if rows is not None:
            self.taken[rows] = True
        self.places, self.epoch, self.begun = portion.places(int(self.taken.sum()), batch_size), 0, (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration is about."""
        self.epoch = epoch

    def resume(self, epoch: int, done: int) -> None:
        """Go on in this epoch, of which so many batches are done; later epochs, and the length, are whole."""
        self.epoch, self.begun = epoch, (epoch, done)

    def __len__(self) -> int:
        return self.places

    def __iter__(self) -> Iterator[np.ndarray]:
        order, (epoch, done) = self.order(), self.begun
        left = range(done if self.epoch == epoch else 0, self.places)
        return (order[self.portion.window(place, self.batch_size)] for place in left)

    def order(self) -> np.ndarray:
        """The order of all rows in this epoch, the same for every rank."""
        groups = permutation(len(self.ends), self.seed, ORDER, epoch=self.epoch)
        starts = np.concatenate([[0], self.ends[:-1]])
        windows = []
        for number, first in enumerate(range(0, len(groups), WINDOW), start=1):
            rows = [np.arange(starts[group], self.ends[group]) for group in groups[first : first + WINDOW]]
            rows = np.concatenate(rows)
            windows.append(rows[permutation(len(rows), self.seed, ORDER, copy=number, epoch=self.epoch)])
        order = np.concatenate(windows)
        return order[self.taken[order]]


def hold_out(ends: np.ndarray, sizes: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    """Disjoint rows of each split, as `splits.split_indices` draws them, but few row groups have to be read for them.

    `HELD` rows are taken of a row group, then of the next, in a random order; of all groups again if that is not
    enough. So a source that is sorted by its classes loses few rows of each.

    Args:
        ends: where each row group ends: `RowGroups.ends`.
        sizes: rows of each split.
        seed: decides the order of the groups, and which rows.

    Returns:
        The numbers of the rows in ascending order.

    Raises:
        ValueError: the splits together need more rows than there are.
    """
    if (needed := sum(sizes.values())) > ends[-1]:
        raise ValueError(
            f"the splits {dict(sizes)} need {needed} rows, but the source has {ends[-1]}: make them smaller."
        )
    counts = np.diff(ends, prepend=0)
    group = np.repeat(np.arange(len(ends)), counts)
    shuffled = np.lexsort((random_words(len(group), seed, SPLITS, copy=1), group))  # within each group
    place = np.arange(len(group)) - np.repeat(ends - counts, counts)
    turn = np.argsort(permutation(len(ends), seed, SPLITS))[group]
    order = shuffled[np.lexsort((place, turn, place // HELD))]
    return {name: np.sort(rows) for name, rows in cut(order, sizes).items()}
