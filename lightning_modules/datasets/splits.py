"""Which rows a seed trains and is judged on, and in which order it sees them. The same on every machine and version.

Only raw Philox words are drawn: numpy promises their stream, while `Generator.permutation` may change.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.settings import STRICT, Count

Draw = Callable[[str, Mapping[str, int]], dict[str, np.ndarray]]  # source, rows of each split -> their numbers
SPLITS, ORDER, AUGMENTATION = range(3)  # purposes: no two of them share random words


class Part(TypedDict):
    """Where a split comes from, and how many of its rows it takes; null for all that other splits leave of it."""

    __pydantic_config__ = STRICT
    source: str
    rows: Count | None


def check_splits(splits: Mapping[str, Part], batch_size: int | None) -> None:
    """Refuse splits that no training asks for, and a split to train on without the size of its batches.

    Raises:
        ValueError: there is no split, an unknown one, or no batch size for `train`.
    """
    if not splits or not set(splits) <= {"train", "val", "test"}:
        raise ValueError(f"splits has {list(splits)}, expected some of train, val and test.")
    if "train" in splits and batch_size is None:
        raise ValueError("splits has train, but there is no batch_size: set it, or leave train out.")


def random_words(n: int, seed: int, purpose: int, copy: int = 0, epoch: int = 0) -> np.ndarray:
    """`n` random 64-bit words, a pure function of the arguments (fewer than 2^64 words per stream)."""
    generator = np.random.Philox(
        key=np.array([seed, purpose], dtype=np.uint64), counter=np.array([0, 0, copy, epoch], dtype=np.uint64)
    )
    return generator.random_raw(n)


def permutation(n: int, seed: int, purpose: int, copy: int = 0, epoch: int = 0) -> np.ndarray:
    """A random order of `range(n)`, a pure function of the arguments."""
    return np.argsort(random_words(n, seed, purpose, copy, epoch), kind="stable")


def split_indices(n: int, sizes: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    """Disjoint random row numbers of each split, drawn from `n` rows by the seed; what is left over is unused.

    Raises:
        ValueError: the splits together need more than `n` rows.
    """
    needed = sum(sizes.values())
    if needed > n:
        raise ValueError(f"the splits {dict(sizes)} need {needed} rows, but the source has {n}: make them smaller.")
    order = permutation(n, seed, SPLITS)
    return cut(order, sizes)


def cut(order: np.ndarray, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The first rows of an order for the first split, the next for the next."""
    ends = np.cumsum(list(sizes.values()), dtype=int)
    return {name: order[end - size : end] for (name, size), end in zip(sizes.items(), ends, strict=True)}


def draw_splits(
    rows: Mapping[str, int], plan: Mapping[str, Mapping], seed: int, draw: Draw | None = None
) -> dict[str, tuple[str, np.ndarray]]:
    """The source and the rows of each split, as a recipe plans them.

    Args:
        rows: rows of each stored source, for example `{"train": 60000, "test": 10000}`.
        plan: for each split its `source` and the number of `rows`; null for what the other splits leave of the source,
            in stored order, which is the whole source where it has no other split.
        seed: decides which rows.
        draw: gives the row numbers of splits with a number of rows, of the named source; see `split_indices`.

    Raises:
        ValueError: a source is not stored or is too small, or two splits want what is left of it.
    """
    draw = draw or (lambda source, sizes: split_indices(rows[source], sizes, seed))
    drawn = {}
    for source in dict.fromkeys(part["source"] for part in plan.values()):
        if source not in rows:
            raise ValueError(f"split source {source!r} is not stored; the data set has {', '.join(rows)}.")
        sizes = {name: part["rows"] for name, part in plan.items() if part["source"] == source}
        rest = [name for name, size in sizes.items() if size is None]
        if len(rest) > 1:
            raise ValueError(
                f"{', '.join(rest)} share the source {source!r}, and rows is null in each: give all but one a number."
            )
        indices = draw(source, {name: size for name, size in sizes.items() if size is not None})
        for name in rest:
            indices[name] = np.setdiff1d(np.arange(rows[source]), np.concatenate([[], *indices.values()]))
            if not len(indices[name]):
                raise ValueError(
                    f"the splits {sizes} leave no row of {source!r}, which has {rows[source]}, to {name}: make the "
                    "others smaller."
                )
        drawn |= {name: (source, index) for name, index in indices.items()}
    return {name: drawn[name] for name in plan}


class Portion(NamedTuple):
    """What one process takes of the batch of each optimiser step: the same rows on any number of devices, cut up.

    Every data set for training cuts its order with `window`, so that all data modules train alike. An epoch has a place
    for each of the `accumulated` batches of each step; rows that do not fill a step are left out.
    """

    rank: int = 0
    processes: int = 1
    accumulated: int = 1

    def rows(self, batch_size: int) -> int:
        """Rows of one of the equal parts that a batch is cut into.

        Raises:
            ValueError: it cannot be cut so.
        """
        parts = self.processes * self.accumulated
        if batch_size % parts:
            raise ValueError(
                f"data.batch_size ({batch_size}) must be a multiple of {parts}: {self.processes} processes with "
                f"{self.accumulated} accumulated batches each (conf/trainer)."
            )
        return batch_size // parts

    def places(self, rows: int, batch_size: int) -> int:
        """How many parts a process takes of an epoch of so many rows.

        Raises:
            ValueError: a batch is larger than the data, or cannot be cut into equal parts.
        """
        if not 0 < batch_size <= rows:
            raise ValueError(f"data.batch_size ({batch_size}) must be between 1 and the number of rows ({rows}).")
        self.rows(batch_size)
        return rows // batch_size * self.accumulated

    def window(self, place: int, batch_size: int) -> slice:
        """Where in the order of an epoch the part numbered `place` lies."""
        part = self.rows(batch_size)
        start = (place * self.processes + self.rank) * part
        return slice(start, start + part)


WHOLE = Portion()
