"""Clips of videos as tokenizers and generators train on them, decoded when they are needed.

Frames, crops and clips for evaluation follow DMVR (google-deepmind/dmvr, `modalities.add_image`), whose names MAGVIT's
settings have: its own loaders are not released. Broken videos and orders are handled as in `video_file_texts`.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_modules.datamodules.annotated_videos import Words
from lightning_modules.datamodules.decoded_videos import DecodedVideos
from lightning_modules.datasets.splits import Part, check_splits
from lightning_modules.datasets.storage import card
from lightning_modules.datasets.video.frame_sources import Opened, open_source
from lightning_modules.datasets.video.sequences import (
    at_random,
    central_square,
    in_the_middle,
    random_square,
    spread,
)
from lightning_modules.settings import Count, Positive, Share

Batch = dict[str, Tensor]


class VideoClips(DecodedVideos):
    """Batches of `video`, uint8 (batch 3 frames size size), `labels` and `broken`, the videos that were left out.

    Training batches have `rows`, too, the number of each video, if it is shown alike in every epoch.

    Args:
        folder: an index that `prepare` of `datasets.video.actions`, `bair` or `nuscenes` has written.
        seed: decides the rows of the splits and, with the epoch, order, beginnings, crops and flips.
        splits: for each split (train, val, test) its source and number of rows, see `datasets.splits.draw_splits`.
        frames: of a clip; a video that is shorter begins again.
        stride: between two of them.
        rate: frames a second that a video file is brought to first; null for its own.
        size: height and width in pixels.
        short_side: pixels to which the shorter side is brought before a square is cut.
        vary: whether training clips begin anywhere and are cut anywhere; if not, they are those of evaluation.
        flip: whether half of the training clips that vary are mirrored; not where left and right matter.
        clips: of each video that are judged; several are spread evenly over it.
        begin: where a single clip that is judged lies.
        batch_size: clips of one optimiser step, over all processes and accumulated batches; null where nothing is
            trained.
        evaluation_batch_size: clips that are judged at a time.
        mirror: local folder with the copy of the videos; the environment variable REPRISE_MIRROR wins over it.
        max_broken: largest share of broken videos, see `skipped.Skipped`.

    Raises:
        ValueError: a split is unknown, a square is larger than what it is cut from, or settings contradict each other.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        frames: Count,
        stride: Count = 1,
        rate: Positive | None = None,
        size: Count,
        short_side: Count,
        vary: bool = True,
        flip: bool = False,
        clips: Count = 1,
        begin: Literal["middle", "start"] = "middle",
        batch_size: Count | None = None,
        evaluation_batch_size: Count,
        mirror: str | None = None,
        max_broken: Share,
    ):
        super().__init__()
        check_splits(splits, batch_size)
        if short_side < size:
            raise ValueError(f"short_side ({short_side}) must be at least size ({size}): a square is cut from it.")
        if flip and not vary:
            raise ValueError("flip is true, but vary is false: every epoch shows the same clips. Set one of them.")
        if begin == "start" and clips > 1:
            raise ValueError(f"begin is 'start', but {clips} clips of each video are judged: set clips to 1.")
        self.folder, self.seed, self.splits = folder, seed, splits
        self.frames, self.stride, self.rate, self.size, self.short_side = frames, stride, rate, size, short_side
        self.vary, self.flip, self.clips, self.begin = vary, flip, clips, begin
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.mirror, self.max_broken = mirror, max_broken

    @property
    def num_classes(self) -> int:
        """Classes of the data set; 0 where there are none."""
        return sum(len(names) for names in card(self.folder)["classes"].values())

    def shown(self, split: str, clips: int = 1) -> "ShownVideos":
        """The clips of a split, so many of each video when they are judged.

        Raises:
            DataUnavailable: the videos are not there.
        """
        prepared, rows = self.rows[split]
        return ShownVideos(open_source(self.folder, prepared, rows, mirror=self.mirror, rate=self.rate), self, clips)

    def train_dataloader(self) -> DataLoader:
        """The training batches of this process, the epoch set by Lightning; they are decoded by processes of its own.

        Raises:
            ValueError: there is no split to train on.
        """
        return self.training_batches()

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        """One pass over the clips of a split in the order of its rows, broken videos left out.

        Raises:
            ValueError: too many are broken.
        """
        return self.judged_batches(self.shown(split, self.clips))


class ShownVideos:
    """Clips of videos, decoded one by one; see `VideoClips`.

    Args:
        opened: the videos and their labels.
        shown: the settings.
        clips: of each video, numbered one after another.
    """

    def __init__(self, opened: Opened, shown: VideoClips, clips: int = 1):
        self.source, self.labels, self.set, self.clips = opened.source, opened.labels, shown, clips
        self.files = np.arange(clips * len(opened.labels))  # one for each clip

    def read(self, row: int, words: Words | None) -> Batch:
        """`video` (frames size size 3), `labels`, and `rows`; see `annotated_videos.Videos`."""
        video, number = divmod(row, self.clips)
        shown = self.set
        options = {"shown": shown.frames, "stride": shown.stride}
        show = partial(central_square, short_side=shown.short_side, size=shown.size)
        if words is not None and shown.vary:
            begin, place, further = words
            choose = partial(at_random, **options, word=begin)
            show = partial(
                random_square, short_side=shown.short_side, size=shown.size, words=(place & 0xFFFFFFFF, place >> 32),
                mirrored=shown.flip and further % 2 == 1,
            )  # fmt: skip
        elif self.clips > 1 or shown.begin == "start":
            choose = partial(spread, **options, number=number, clips=self.clips)
        else:
            choose = partial(in_the_middle, **options)
        frames = self.source.read(video, choose, show)
        found = {"video": torch.from_numpy(frames), "labels": torch.tensor(self.labels[video])}
        return found if words is None or shown.vary else found | {"rows": torch.tensor(video)}
