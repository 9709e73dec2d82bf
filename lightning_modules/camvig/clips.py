"""Clips with camera paths among clips without: the mix that CamViG is fine-tuned on, from the captioned world.

`videos.py` has the same for RealEstate10K's poses and video files. In each optimiser step a share of the clips has
paths; all others come from broad video, in which things move.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_modules.camvig.paths import path_of
from lightning_modules.datamodules.labelled import EpochSteps, portion
from lightning_modules.datasets.splits import ORDER, WHOLE, Part, Portion, permutation
from lightning_modules.datasets.world.camera import BEFORE, BEHIND, FAR, FOCAL, MOVES, NEAR, OWN
from lightning_modules.settings import Count, Share, meant
from lightning_modules.video_tokens.clips import Clips

DEPTHS = {BEHIND: float(FAR), BEFORE: float(NEAR)}
PERCENT = 100


class CameraClips(Clips):
    """Batches of `video`, uint8 (batch channels frames height width), `path`, float32 (batch later 6), and `posed`.

    `posed` says whether a network may see the path, `labels` is the move, and training batches have `rows`. Those of
    evaluation have `layers` (batch height width) and `moving` (batch,) too, see `datasets.world.camera`.

    Args:
        folder: a prepared data set of the view `camera`.
        seed: decides the rows of the splits and, with the epoch, every order.
        splits: for each split (train, val, test) its source and number of rows, see `datasets.splits.draw_splits`.
        share: of the training clips that have paths; the others are moving ones.
        held_out: names of moves that are not trained on.
        batch_size: clips of one optimiser step, over all processes and accumulated batches; null where nothing is
            trained.
        evaluation_batch_size: clips that are judged at a time.

    Raises:
        ValueError: a split is missing or unknown, or a move is.
    """

    depths = DEPTHS  # of the things that `layers` shows
    focal = float(FOCAL)  # in sides of the frame
    own = OWN  # the thing that moves by itself

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        share: Share,
        held_out: list[str] = (),
        batch_size: Count | None = None,
        evaluation_batch_size: Count,
    ):
        super().__init__(
            folder=folder, seed=seed, splits=splits, batch_size=batch_size, evaluation_batch_size=evaluation_batch_size
        )
        for name in held_out:
            if name not in MOVES:
                raise ValueError(f"held_out has {name!r}{meant(name, MOVES)}")
        self.share, self.held_out = share, [MOVES.index(name) for name in held_out]

    def train_dataloader(self) -> DataLoader:
        """The training batches, the epoch set by Lightning.

        Raises:
            ValueError: there is no split to train on, or it lacks one of the two kinds of clips.
        """
        columns, rows = self.trained_rows()
        moving, move = columns["moving"][rows] == 1, columns["label"][rows]
        batches = MixedBatches(
            {
                "video": channels_first(columns["video"][rows]),
                "path": torch.from_numpy(path_of(columns["poses"][rows]).astype(np.float32)),
                "posed": torch.from_numpy(~moving),
                "labels": torch.from_numpy(move),
                "rows": torch.arange(len(rows)),
            },
            posed=np.flatnonzero(~moving & ~np.isin(move, self.held_out)),
            broad=np.flatnonzero(moving),
            share=self.share,
            seed=self.seed,
            batch_size=self.batch_size,
            portion=portion(self),
        )
        return DataLoader(batches, sampler=EpochSteps(len(batches)), batch_size=None)

    def evaluation_batches(self, split: str) -> Iterator[dict[str, Tensor]]:
        """One pass over a split in the order of its rows; all moves are in it."""
        for columns, part in self.parts(split):
            moving = columns["moving"][part]
            yield {
                "video": channels_first(columns["video"][part]),
                "path": torch.from_numpy(path_of(columns["poses"][part]).astype(np.float32)),
                "posed": torch.from_numpy(moving == 0),
                "labels": torch.from_numpy(columns["label"][part]),
                "layers": torch.from_numpy(columns["layers"][part]),
                "moving": torch.from_numpy(moving),
            }


class MixedBatches(Dataset):
    """Training batches with a share of clips of one kind; item `(epoch, place)` depends on the seed and on that pair.

    An epoch has as many clips as there are rows, whatever the share: kinds that are too few for it come again.

    Args:
        columns: of all clips.
        posed: numbers of those with paths that are trained on.
        broad: numbers of those without.
        share: of clips with paths, in whole percent.
        seed: of the orders.
        batch_size: of an optimiser step.
        portion: what this process takes of it.

    Raises:
        ValueError: a kind is asked for and there is none of it, or the batch is larger than the data.
    """

    def __init__(
        self,
        columns: dict[str, Tensor],
        *,
        posed: Int[np.ndarray, " posed"],
        broad: Int[np.ndarray, " broad"],
        share: float,
        seed: int,
        batch_size: int,
        portion: Portion = WHOLE,
    ):
        for rows, asked, kind in ((posed, share > 0, "with paths"), (broad, share < 1, "without paths")):
            if asked and not len(rows):
                raise ValueError(f"share is {share}, but the split train has no clips {kind}: change it to 0 or 1.")
        self.columns, self.posed, self.broad, self.percent = columns, posed, broad, round(PERCENT * share)
        self.seed, self.batch_size, self.portion = seed, batch_size, portion
        self.length = len(next(iter(columns.values())))
        self.places = portion.places(self.length, batch_size)
        self.epoch, self.order = -1, np.empty(0, int)

    def __len__(self) -> int:
        return self.places

    def __getitem__(self, at: tuple[int, int]) -> dict[str, Tensor]:
        epoch, place = at
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = mixed(self.posed, self.broad, self.percent, self.length, self.seed, epoch)
        rows = torch.from_numpy(self.order[self.portion.window(place, self.batch_size)])
        return {name: column[rows] for name, column in self.columns.items()}


def mixed(
    posed: Int[np.ndarray, " posed"], broad: Int[np.ndarray, " broad"], percent: int, length: int, seed: int, epoch: int
) -> Int[np.ndarray, " length"]:
    """An order in which both kinds are as evenly spread as can be, each in random orders of all its rows.

    Args:
        posed: rows of the first kind.
        broad: rows of the second.
        percent: of the places that the first kind takes.
        length: of the order.
        seed: of the random orders.
        epoch: likewise.
    """
    at = np.arange(length) * percent
    first = (at + percent) // PERCENT > at // PERCENT
    order = np.empty(length, np.int64)
    for copy, (rows, places) in enumerate(((posed, first), (broad, ~first))):
        order[places] = _in_turn(rows, int(places.sum()), seed, copy, epoch)
    return order


def _in_turn(rows: Int[np.ndarray, " rows"], count: int, seed: int, copy: int, epoch: int) -> Int[np.ndarray, " count"]:
    rounds = -(-count // len(rows)) if count else 0
    orders = [rows[permutation(len(rows), seed, ORDER, copy + 2 * n, epoch)] for n in range(rounds)]
    return np.concatenate([rows[:0], *orders])[:count]


def channels_first(stored: UInt8[np.ndarray, "rows frames h w 3"]) -> UInt8[Tensor, "rows 3 frames h w"]:
    """Stored clips as a network reads them."""
    return torch.from_numpy(np.ascontiguousarray(stored.transpose(0, 4, 1, 2, 3)))
