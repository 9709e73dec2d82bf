"""What data modules of video files share that decode each clip when it is needed."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_modules.datamodules.annotated_videos import AnnotatedBatches, Judged
from lightning_modules.datamodules.labelled import EpochSteps, portion
from lightning_modules.datasets.skipped import Skipped
from lightning_modules.datasets.splits import Part, draw_splits
from lightning_modules.datasets.storage import card
from lightning_modules.datasets.video.files import BrokenVideo
from lightning_modules.processes import loader_workers, outlive_signals

Batch = dict[str, Tensor]


class DecodedVideos(LightningDataModule):
    """Base of data modules whose clips are squares. A subclass sets the attributes and has `shown`.

    Attributes:
        folder: of the index.
        seed: decides the rows of the splits and, with the epoch, what is drawn.
        splits: for each split its source and number of rows, see `datasets.splits.draw_splits`.
        frames: of a clip.
        size: height and width in pixels.
        batch_size: clips of one optimiser step, over all processes and accumulated batches; null where nothing is
            trained.
        evaluation_batch_size: clips that are judged at a time.
        max_broken: largest share of broken videos, see `skipped.Skipped`.
    """

    folder: Path
    seed: int
    splits: dict[str, Part]
    frames: int
    size: int
    batch_size: int | None
    evaluation_batch_size: int
    max_broken: float

    @cached_property
    def rows(self) -> dict[str, tuple[str, np.ndarray]]:
        """Prepared split and row numbers of each split."""
        written = card(self.folder)["splits"]
        return draw_splits({split: facts["rows"] for split, facts in written.items()}, self.splits, self.seed)

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of a clip."""
        return 3, self.frames, self.size, self.size

    def shown(self, split: str) -> Any:
        """The clips of a split, in the form of `annotated_videos.Videos`."""
        raise NotImplementedError

    def training_batches(self) -> DataLoader:
        """Those of this process, the epoch set by Lightning; they are decoded by processes of its own.

        Raises:
            ValueError: there is no split to train on.
        """
        if "train" not in self.rows:
            raise ValueError(f"there is no split 'train' in data.splits ({list(self.rows)}), so epochs must be 0.")
        mine = portion(self)
        batches = AnnotatedBatches(
            self.shown("train"), _as_it_is, seed=self.seed, batch_size=self.batch_size, max_broken=self.max_broken,
            portion=mine,
        )  # fmt: skip
        return DataLoader(
            batches,
            sampler=EpochSteps(len(batches)),
            batch_size=None,
            num_workers=loader_workers(mine.processes, mine.rows(self.batch_size) * self._clip_bytes),
            worker_init_fn=outlive_signals,
            pin_memory=torch.cuda.is_available(),
        )

    def judged_batches(self, clips: Any) -> Iterator[Batch]:
        """One pass over clips in their order, broken videos left out.

        Raises:
            ValueError: too many are broken.
        """
        parts, skipped = Judged(clips, self.evaluation_batch_size, _as_it_is), Skipped("clips", self.max_broken)
        workers = loader_workers(1, self.evaluation_batch_size * self._clip_bytes) if len(parts) > 1 else 0
        loader = DataLoader(
            parts, batch_size=None, num_workers=workers, worker_init_fn=outlive_signals, collate_fn=_as_it_is
        )
        for found, read, errors in loader:
            for _ in range(read):
                skipped.read()
            for error in errors:
                skipped.skip(BrokenVideo(error))
            if found is not None:
                yield found

    @property
    def _clip_bytes(self) -> int:
        return 3 * self.frames * self.size**2


def _as_it_is(item: object) -> object:
    return item
