"""Several tasks with data of their own for one network; which of them a step learns depends on its number alone.

Read `Schedule` first. A task has a data module of the house on a part of a mixture (`datasets.mixture`), so every form
of data that the house reads can be one. A training batch is `{task: batch of that task}`: one task in alternating
steps, all of them where losses are summed. All processes know the schedule without asking each other.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import UInt8
from pydantic import Field
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules import settings
from lightning_modules.datamodules.labelled import EpochSteps, portion
from lightning_modules.datasets.splits import Part, check_splits, random_words
from lightning_modules.settings import STRICT, Count, NonNegative, Share

SCHEDULE, RESOLUTION = 120, 121  # purposes of random words, none of which `datasets.splits` has
LONGEST = 1_000_000  # rounds after which intervals must have come together again
Kind = Literal["joint", "alternate", "interval", "weighted"]
Batch = dict[str, Tensor]


class Resolution(TypedDict):
    """A shape in which pictures or clips are shown, and the share of tokens to drop in it; pictures have no frames."""

    __pydantic_config__ = STRICT
    frames: NotRequired[Count | None]
    height: Count
    width: Count
    drop: Share


class Task(TypedDict):
    """Where a task gets its batches, and how often it is learnt.

    `part`: of the mixture. `weight`: how often it is drawn, where the schedule is `weighted`. `interval`: it is learnt
    in every so many rounds, where the schedule is `interval`. `resolutions`: one is drawn for each step; null to show
    everything as it is. `data`: the data module, by its `_target_`; it has `splits`, `batch_size` and
    `evaluation_batch_size` of its own, or those of all tasks.
    """

    __pydantic_config__ = STRICT
    part: str
    weight: NonNegative
    interval: Count
    resolutions: Annotated[list[Resolution], Field(min_length=1)] | None
    data: dict[str, Any]


class Schedule:
    """Which tasks each step of an epoch learns.

    Args:
        kind: `joint`: all of them in every step. `alternate`: one after the other. `interval`: rounds over all of them,
            in which a task is left out unless the number of the round, from 1, is a multiple of its interval (the loop
            of MAX, the library of official codes). `weighted`: one task a step, drawn by the weights.
        tasks: names, in their order.
        weights: of each.
        intervals: of each.
        steps: of an epoch.
        seed: of what is drawn.

    Raises:
        ValueError: no task has a weight, or the intervals come together too late.
    """

    def __init__(
        self,
        kind: Kind,
        tasks: Sequence[str],
        weights: Sequence[float],
        intervals: Sequence[int],
        steps: int,
        seed: int,
    ):
        self.kind, self.tasks, self.steps, self.seed = kind, list(tasks), steps, seed
        if kind == "weighted" and not sum(weights) > 0:
            raise ValueError(f"weights ({', '.join(map(str, weights))}) must have one above 0: nothing would be drawn.")
        self.weights = np.asarray(weights, dtype=np.float64)
        self.period = self._period([1] * len(self.tasks) if kind == "alternate" else intervals)
        self._drawn, self.words = cache(self._draw), cache(self._words)

    def _period(self, intervals: Sequence[int]) -> np.ndarray:
        """The tasks of all steps until the rounds repeat, for the schedule `interval`."""
        if self.kind not in ("alternate", "interval"):
            return np.zeros(0, np.int64)
        rounds = math.lcm(*intervals)
        if rounds > LONGEST:
            raise ValueError(
                f"intervals ({', '.join(map(str, intervals))}) repeat after {rounds} rounds only, expected at most "
                f"{LONGEST}: take numbers with a smaller common multiple."
            )
        due = np.arange(1, rounds + 1)[:, None] % np.asarray(intervals) == 0
        return np.nonzero(due)[1]

    def at(self, epoch: int, step: int) -> list[str]:
        """The tasks of a step."""
        return self.tasks if self.kind == "joint" else [self.tasks[self._drawn(epoch)[step]]]

    def before(self, epoch: int, step: int) -> dict[str, int]:
        """How many earlier steps have learnt each task."""
        if self.kind == "joint":
            return dict.fromkeys(self.tasks, epoch * self.steps + step)
        counts = sum((np.bincount(self._drawn(each), minlength=len(self.tasks)) for each in range(epoch)), 0)
        counts = counts + np.bincount(self._drawn(epoch)[:step], minlength=len(self.tasks))
        return dict(zip(self.tasks, counts.tolist(), strict=True))

    def share(self, task: str) -> float:
        """Share of the steps in which a task is learnt, over a long time."""
        if self.kind == "joint":
            return 1.0
        number = self.tasks.index(task)
        if self.kind == "weighted":
            return float(self.weights[number] / self.weights.sum())
        return float((self.period == number).mean())

    def _words(self, task: str, epoch: int) -> np.ndarray:
        """A random word for each step of an epoch, which decides the resolution that a task has there."""
        return random_words(self.steps, self.seed, RESOLUTION, self.tasks.index(task), epoch)

    def _draw(self, epoch: int) -> np.ndarray:
        """The number of the task of each step of an epoch."""
        if self.kind != "weighted":
            return self.period[(epoch * self.steps + np.arange(self.steps)) % len(self.period)]
        drawn = (random_words(self.steps, self.seed, SCHEDULE, 0, epoch) >> np.uint64(11)) * 2.0**-53
        there = np.flatnonzero(self.weights)  # a task without weight is never drawn, whatever is rounded
        ends = np.cumsum(self.weights[there]) / self.weights.sum()
        return there[np.minimum(np.searchsorted(ends, drawn, side="right"), len(there) - 1)]


class Alternating(LightningDataModule):
    """Training batches are `{task: batch}`; each evaluation batch is one of a single task, named in its `task`.

    A task that has `resolutions` also has `drop_rate` in its training batches, a float of no dimension.

    Args:
        folder: a mixture that `datasets.mixture` has prepared.
        seed: decides the rows of the splits and, with the epoch, schedule, orders and resolutions.
        splits: for each split (train, val, test) its source and number of rows, of every task that has none of its own.
        batch_size: rows of one task in a step, over all processes and accumulated batches, of every task that has none
            of its own.
        evaluation_batch_size: rows that are judged at a time, likewise.
        tasks: see `Task`.
        trained: names of the tasks that are learnt; null for all. All are judged.
        schedule: see `Schedule`.
        steps: of an epoch.

    Raises:
        ValueError: a task or split is unknown, or a setting of a task's data does not hold.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        batch_size: Count,
        evaluation_batch_size: Count,
        tasks: Annotated[dict[str, Task], Field(min_length=1)],
        trained: Annotated[list[str], Field(min_length=1)] | None = None,
        schedule: Kind,
        steps: Count,
    ):
        super().__init__()
        check_splits(splits, batch_size)
        self.folder, self.seed, self.splits, self.blocks = Path(folder), seed, splits, tasks
        self.evaluation_batch_size, self.steps = evaluation_batch_size, steps
        self.trained = list(tasks) if trained is None else trained
        if unknown := [name for name in self.trained if name not in tasks]:
            raise ValueError(f"data.trained names {unknown[0]!r}{settings.meant(unknown[0], tasks)}.")
        common = {"splits": splits, "batch_size": batch_size, "evaluation_batch_size": evaluation_batch_size}
        self.tasks = {name: self._child(name, task, common) for name, task in tasks.items()}
        chosen = [tasks[name] for name in self.trained]
        weights, intervals = ([task[key] for task in chosen] for key in ("weight", "interval"))
        self.schedule = Schedule(schedule, self.trained, weights, intervals, steps, seed)

    def _child(self, name: str, task: Task, common: Mapping[str, Any]) -> LightningDataModule:
        place = self.folder / task["part"]
        if not (place / "card.json").is_file():
            raise ValueError(
                f"data.tasks.{name}.part is {task['part']!r}, which is no part of the data set {self.folder}: take a "
                "name of its `parts`, and prepare it."
            )
        if "_target_" not in task["data"]:
            raise ValueError(f"data.tasks.{name}.data has no `_target_`, expected the name of a data module.")
        block = {**common, **task["data"]}
        return settings.bind(block, f"data.tasks.{name}.data", folder=place, seed=self.seed)()

    @cached_property
    def batch_size(self) -> float:
        """Rows of a step, in the mean over a long training."""
        return sum(self.schedule.share(name) * self.tasks[name].batch_size for name in self.trained)

    def train_dataloader(self) -> "AlternatingLoader":
        """The training batches of this process, the epoch set by Lightning.

        Raises:
            ValueError: a task has no split to train on, or its batch cannot be cut into equal parts.
        """
        for task in self.tasks.values():
            task.trainer = self.trainer
        loaders = {name: self.tasks[name].train_dataloader() for name in self.trained}
        resolutions = {name: self.blocks[name]["resolutions"] for name in self.trained}
        return AlternatingLoader(self.schedule, loaders, resolutions, accumulated=portion(self).accumulated)

    def evaluation_batches(self, split: str, task: str | None = None) -> Iterator[dict[str, Tensor | str]]:
        """One pass over the rows of a split of each task, or of one; the tasks take turns, batch by batch.

        So the first rows, which a training may be watched with, are of all tasks. They are no mappings of mappings,
        because `validation` moves and cuts batches column by column.
        """
        names = list(self.tasks) if task is None else [task]
        for batches in zip_longest(*(self.tasks[name].evaluation_batches(split) for name in names)):
            for name, batch in zip(names, batches, strict=True):
                if batch is not None:
                    yield {**batch, "task": name}


class AlternatingLoader:
    """What Lightning iterates over; item by item a pure function of the seed, the epoch and the place in it.

    A task goes through epochs of its own, whatever those of the training: its batches follow each other without a gap.

    Args:
        schedule: see `Schedule`.
        loaders: of each task, whose samplers can go on in the middle of an epoch (`resume`).
        resolutions: of each task, or null.
        accumulated: batches of a step, all of the same tasks.
    """

    def __init__(
        self,
        schedule: Schedule,
        loaders: Mapping[str, DataLoader],
        resolutions: Mapping[str, list[Resolution] | None],
        accumulated: int = 1,
    ):
        self.schedule, self.loaders, self.resolutions, self.accumulated = schedule, loaders, resolutions, accumulated
        self.sampler = EpochSteps(schedule.steps * accumulated)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        passes: dict[str, Iterator[Batch]] | None = None
        for epoch, place in self.sampler:
            step, within = divmod(place, self.accumulated)
            if passes is None:
                passes = self._passes(epoch, step, within)
            yield {name: self._shown(name, next(passes[name]), epoch, step) for name in self.schedule.at(epoch, step)}

    def _passes(self, epoch: int, step: int, within: int) -> dict[str, Iterator[Batch]]:
        """The batches of each task from a place on."""
        now, found = self.schedule.at(epoch, step), {}
        for name, steps in self.schedule.before(epoch, step).items():
            done = steps * self.accumulated + (within if name in now else 0)
            found[name] = _endless(self.loaders[name], done)
        return found

    def _shown(self, name: str, batch: Batch, epoch: int, step: int) -> Batch:
        """A batch in the resolution of its step."""
        if not (choices := self.resolutions[name]):
            return batch
        choice = choices[int(self.schedule.words(name, epoch)[step] % np.uint64(len(choices)))]
        return show(batch, choice) | {"drop_rate": torch.tensor(float(choice["drop"]))}


def _endless(loader: DataLoader, done: int) -> Iterator[Batch]:
    """The batches of a loader, epoch after epoch, from number `done` on.

    Each time that a loader begins, it draws a number. It draws from a generator of its own, because it may begin at any
    step, and a training that goes on at another one has to draw the same dropout.
    """
    loader.generator = torch.Generator()
    epoch, place = divmod(done, len(loader))
    while True:
        loader.sampler.resume(epoch, place)
        yield from loader
        epoch, place = epoch + 1, 0


def show(batch: Batch, resolution: Resolution) -> Batch:
    """A batch whose pictures and clips have another resolution: means over areas, and frames evenly spread.

    Raises:
        ValueError: it is finer than what is stored.
    """
    size = resolution["height"], resolution["width"]
    shown = dict(batch)
    if "images" in batch:
        shown["images"] = shrink(batch["images"], size)
    if "video" in batch:
        shown["video"] = shrink_clips(batch["video"], resolution.get("frames"), size)
    return shown


def shrink_clips(
    video: UInt8[Tensor, "rows channels t h w"], frames: int | None, size: tuple[int, int]
) -> UInt8[Tensor, "rows channels frames height width"]:
    """Clips of fewer frames, the first and the last among them, and fewer pixels.

    Raises:
        ValueError: there are not so many.
    """
    there = video.shape[2]
    if frames is not None and frames > there:
        raise ValueError(f"a resolution has {frames} frames, but the clips have {there}: take at most so many.")
    if frames not in (None, there):
        video = video[:, :, np.linspace(0, there - 1, frames).astype(np.int64)]
    flat = shrink(rearrange(video, "b c t h w -> (b t) c h w"), size)
    return rearrange(flat, "(b t) c h w -> b c t h w", b=len(video)).contiguous()


def shrink(
    images: UInt8[Tensor, "rows channels h w"], size: tuple[int, int]
) -> UInt8[Tensor, "rows channels height width"]:
    """Pictures of fewer pixels, each the mean of the area that it covers.

    Raises:
        ValueError: there are not so many pixels.
    """
    there = tuple(images.shape[-2:])
    if size[0] > there[0] or size[1] > there[1]:
        raise ValueError(f"a resolution has {size[0]} x {size[1]} pixels, but the pictures {there[0]} x {there[1]}.")
    return images if size == there else F.adaptive_avg_pool2d(images.float(), size).round().to(torch.uint8)
