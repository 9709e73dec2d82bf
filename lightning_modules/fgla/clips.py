"""Windows of time lapses whose flow is known, from the captioned world.

Videos without it come from `datamodules.video_clips.VideoClips`, and their flow from a network (`raft.FlowTeacher`).
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_modules.datamodules.labelled import EpochSteps, Labelled, portion
from lightning_modules.datasets.splits import AUGMENTATION, ORDER, WHOLE, Part, Portion, permutation, random_words
from lightning_modules.datasets.world.timelapse import flows, lit, visible
from lightning_modules.settings import Count

Columns = dict[str, np.ndarray]


class TimelapseClips(Labelled):
    """Batches of `video`, uint8 (batch 3 frames h w), `flow`, float32 (batch frames-1 2 h w), `rows` and `starts`.

    `flow` is backward, in pixels, see `warping`. Training batches are windows of clips, `rows` and `starts` say of
    which clip of the split and from which frame on. Those of evaluation are whole clips and have `visible`, bool (batch
    frames-1 h w), pixels that show what was there a frame before; `parts` (batch h w), see `datasets.world.timelapse`;
    and `other` (batch 3 h w), the first frame of another clip with the same layout.

    Args:
        folder: a prepared data set of `datasets.world.timelapse`.
        seed: decides the rows of the splits and, with the epoch, order and windows.
        splits: for each split (train, val, test) its source and number of rows, see `datasets.splits.draw_splits`.
        window: frames of a training clip.
        daylight: whether the light changes within a clip.
        batch_size: windows of one optimiser step, over all processes and accumulated batches; null where nothing is
            trained.
        evaluation_batch_size: clips that are judged at a time.

    Raises:
        ValueError: a split is missing or unknown, or a window is no pair of frames.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        window: Count = 2,
        daylight: bool = False,
        batch_size: Count | None = None,
        evaluation_batch_size: Count,
    ):
        super().__init__(
            folder=folder, seed=seed, splits=splits, batch_size=batch_size, evaluation_batch_size=evaluation_batch_size
        )
        if window < 2:
            raise ValueError(
                f"window is {window}, expected at least 2 frames: motion is what lies between two of them."
            )
        self.window, self.daylight = window, daylight

    @cached_property
    def video_shape(self) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of a whole clip."""
        source, _ = next(iter(self.rows.values()))
        _, frames, height, width, channels = self.sources[source]["video"].shape
        return channels, frames, height, width

    def train_dataloader(self) -> DataLoader:
        """The training batches, the epoch set by Lightning.

        Raises:
            ValueError: there is no split to train on, or windows are longer than clips.
        """
        columns, rows = self.trained_rows()
        batches = Windows(
            self.shown({name: columns[name][rows] for name in ("video", "light", "parts", "velocity")}),
            window=self.window, seed=self.seed, batch_size=self.batch_size, portion=portion(self),
        )  # fmt: skip
        return DataLoader(batches, sampler=EpochSteps(len(batches)), batch_size=None)

    def shown(self, columns: Columns) -> Columns:
        """The columns, their clips in the light of day if this is asked for."""
        return columns | {"video": lit(columns["video"], columns["light"])} if self.daylight else columns

    def evaluation_batches(self, split: str) -> Iterator[dict[str, Tensor]]:
        """One pass over a split in the order of its rows, whole clips."""
        done = 0
        for columns, part in self.parts(split):
            found = self.shown({name: columns[name][part] for name in ("video", "light", "parts", "velocity")})
            other = self.shown({name: columns[name][part ^ 1, :1] for name in ("video", "light")})
            flow = flows(found["parts"], found["velocity"])
            yield {
                "video": channels_first(found["video"]),
                "flow": torch.from_numpy(flow),
                "visible": torch.from_numpy(visible(found["parts"], flow)),
                "parts": torch.from_numpy(found["parts"]),
                "other": channels_first(other["video"])[:, :, 0],
                "rows": torch.arange(done, done + len(part)),
                "starts": torch.zeros(len(part), dtype=torch.long),
            }
            done += len(part)


class Windows(Dataset):
    """Training batches, one window of each clip in an epoch; item `(epoch, place)` depends on the seed and that pair.

    Args:
        columns: of the clips.
        window: frames.
        seed: of orders and beginnings.
        batch_size: of an optimiser step.
        portion: what this process takes of it.

    Raises:
        ValueError: windows are longer than clips, or the batch is larger than the data.
    """

    def __init__(self, columns: Columns, *, window: int, seed: int, batch_size: int, portion: Portion = WHOLE):
        clips, frames = columns["video"].shape[:2]
        if window > frames:
            raise ValueError(f"window is {window}, but the clips have {frames} frames: make it smaller.")
        self.columns, self.window, self.seed, self.batch_size, self.portion = columns, window, seed, batch_size, portion
        self.clips, self.beginnings, self.places = clips, frames - window + 1, portion.places(clips, batch_size)
        self.epoch, self.order, self.starts = -1, np.empty(0, int), np.empty(0, int)

    def __len__(self) -> int:
        return self.places

    def __getitem__(self, at: tuple[int, int]) -> dict[str, Tensor]:
        epoch, place = at
        if epoch != self.epoch:
            words = random_words(self.clips, self.seed, AUGMENTATION, 0, epoch) >> np.uint64(32)
            self.starts = (words * np.uint64(self.beginnings) >> np.uint64(32)).astype(np.int64)
            self.epoch, self.order = epoch, permutation(self.clips, self.seed, ORDER, 0, epoch)
        rows = self.order[self.portion.window(place, self.batch_size)]
        return self.taken(rows, self.starts[rows])

    def taken(self, rows: Int[np.ndarray, " rows"], starts: Int[np.ndarray, " rows"]) -> dict[str, Tensor]:
        """The windows of some clips."""
        frames = starts[:, None] + np.arange(self.window)
        velocity = self.columns["velocity"][rows[:, None], frames[:, :-1]]
        return {
            "video": channels_first(self.columns["video"][rows[:, None], frames]),
            "flow": torch.from_numpy(flows(self.columns["parts"][rows], velocity)),
            "rows": torch.from_numpy(rows),
            "starts": torch.from_numpy(starts),
        }


def channels_first(stored: UInt8[np.ndarray, "rows frames h w 3"]) -> UInt8[Tensor, "rows 3 frames h w"]:
    """Stored clips as a network reads them."""
    return torch.from_numpy(np.ascontiguousarray(stored.transpose(0, 4, 1, 2, 3)))
