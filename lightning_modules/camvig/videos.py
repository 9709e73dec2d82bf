"""Clips of video files with the poses of RealEstate10K, among clips of broad video without; see `clips.py`.

RealEstate10K stands in for the paper's renderings of radiance fields, which are not public. Its translations have no
unit that is the same in all clips. The frames of a clip are a stride apart among those that have poses. They are cut to
the central square, so that the camera goes on looking at the middle.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_modules.camvig.paths import DIM, path_of
from lightning_modules.datamodules.annotated_videos import Words
from lightning_modules.datamodules.decoded_videos import DecodedVideos
from lightning_modules.datasets.download import find
from lightning_modules.datasets.splits import Part, check_splits
from lightning_modules.datasets.storage import card
from lightning_modules.datasets.video.corpora import read_index
from lightning_modules.datasets.video.files import BrokenVideo
from lightning_modules.datasets.video.posed import SECOND
from lightning_modules.datasets.video.sequences import at_random, central_square
from lightning_modules.datasets.video.showing import Show, read_shown
from lightning_modules.settings import Count, Positive, Share

Batch = dict[str, Tensor]


class PosedVideos(DecodedVideos):
    """Batches of `video`, uint8 (batch 3 frames size size), `path`, `posed`, `focal`, `labels` (all 0) and `broken`.

    `path` is float32 (batch later 6), `focal` float32 (batch 2), in sides of the square.

    Args:
        folder: an index that `prepare` of `datasets.video.posed` has written.
        seed: decides the rows of the splits and, with the epoch, order and beginnings.
        splits: for each split (train, val, test) its source and number of rows, see `datasets.splits.draw_splits`.
        broad: prepared split of videos without poses that training mixes in; null for none.
        share: of the training clips that have paths.
        frames: of a clip.
        stride: between two of them, in poses; less where a clip has too few.
        rate: frames a second in which a time of a pose is looked up, and broad videos are read.
        size: height and width in pixels.
        batch_size: clips of one optimiser step, over all processes and accumulated batches; null where nothing is
            trained.
        evaluation_batch_size: clips that are judged at a time.
        mirror: local folder with the copy of the videos; the environment variable REPRISE_MIRROR wins over it.
        max_broken: largest share of broken videos, see `skipped.Skipped`.

    Raises:
        ValueError: a split is unknown, or the share asks for broad videos where there are none.
    """

    num_classes = 0

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        broad: str | None = None,
        share: Share = 1.0,
        frames: Count,
        stride: Count,
        rate: Positive,
        size: Count,
        batch_size: Count | None = None,
        evaluation_batch_size: Count,
        mirror: str | None = None,
        max_broken: Share,
    ):
        super().__init__()
        check_splits(splits, batch_size)
        if broad is None and share < 1:
            raise ValueError(f"share is {share}, but broad is null: name a split of videos without poses, or set 1.")
        self.folder, self.seed, self.splits, self.broad, self.share = folder, seed, splits, broad, share
        self.frames, self.stride, self.rate, self.size = frames, stride, rate, size
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.mirror, self.max_broken = mirror, max_broken

    def shown(self, split: str) -> "ShownClips":
        """The clips of a split; of `train`, broad ones are mixed in, by repeating and leaving out whole rounds of them.

        Raises:
            DataUnavailable: the videos are not there.
        """
        source, rows = self.rows[split]
        clips, train = ShownClips(self), split == "train"
        if not train or self.share > 0:
            clips.add(source, rows)
        if train and self.share < 1:
            every = np.arange(card(self.folder)["splits"][self.broad]["rows"])
            wanted = len(every) if not self.share else round(len(rows) * (1 - self.share) / self.share)
            clips.add(self.broad, np.resize(every, max(wanted, 1)))
        return clips

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
        return self.judged_batches(self.shown(split))


class ShownClips:
    """Clips of videos, decoded one by one.

    Args:
        shown: the settings.
    """

    def __init__(self, shown: PosedVideos):
        self.set, self.files, self.columns = shown, np.empty(0, object), {"times": [], "focal": [], "poses": []}

    def add(self, split: str, rows: Int[np.ndarray, " rows"]) -> None:
        """The clips of some rows of a prepared split.

        Raises:
            DataUnavailable: the videos are not there.
        """
        facts, index = card(self.set.folder), read_index(self.set.folder, split)
        videos = facts["splits"][split]["videos"]
        folder = find(facts["name"], videos, mirror=self.set.mirror, cache=Path(facts["cache"]))
        self.files = np.concatenate([self.files, np.array([folder / index["file"][row] for row in rows], object)])
        for name, column in self.columns.items():
            column += [index[name][row] for row in rows]

    def read(self, row: int, words: Words | None) -> Batch:
        """`video` (frames size size 3), `path` and more; see `annotated_videos.Videos`."""
        shown, times = self.set, np.asarray(self.columns["times"][row], np.int64)
        word = 0 if words is None else words[0]
        show = partial(central_square, short_side=shown.size, size=shown.size)
        if not len(times):
            choose = partial(at_random, shown=shown.frames, stride=shown.stride, word=word)
            frames = read_shown(self.files[row], choose, show, rate=shown.rate).frames
            path, focal = np.zeros((shown.frames - 1, DIM)), np.ones(2)
        else:
            chosen = among(len(times), shown.frames, shown.stride, None if words is None else word)
            choose = partial(at_times, times=times[chosen], rate=shown.rate)
            sizes = []
            frames = read_shown(self.files[row], choose, partial(_measured, show, sizes), rate=shown.rate).frames
            path = path_of(np.reshape(self.columns["poses"][row], (-1, 3, 4))[chosen])
            focal = np.asarray(self.columns["focal"][row]) * sizes[0] / min(sizes[0])
        return {
            "video": torch.from_numpy(frames),
            "path": torch.from_numpy(path.astype(np.float32)),
            "focal": torch.from_numpy(focal.astype(np.float32)),
            "posed": torch.tensor(bool(len(times))),
            "labels": torch.tensor(0),
        }


def among(poses: int, frames: int, stride: int, word: int | None) -> Int[np.ndarray, " frames"]:
    """The poses of a clip, a stride apart, or as far as there are enough of them.

    Args:
        poses: that there are, at least `frames`.
        frames: of the clip.
        stride: wanted.
        word: a large random integer that decides where it begins; null for the middle.
    """
    stride = min(stride, (poses - 1) // (frames - 1))
    spare = poses - (frames - 1) * stride
    first = spare // 2 if word is None else word % spare
    return first + stride * np.arange(frames)


def at_times(total: int, times: Int[np.ndarray, " frames"], rate: float) -> Int[np.ndarray, " frames"]:
    """The frames that are shown at some times.

    Args:
        total: frames of the video at this rate.
        times: in microseconds.
        rate: frames a second.

    Raises:
        BrokenVideo: the video ends before.
    """
    numbers = np.floor(times / SECOND * rate + 1e-6).astype(np.int64)
    if numbers.max() > total:  # a time that is rounded up may lie just behind the last frame
        raise BrokenVideo(f"there are {total} frames at {rate} a second, but a pose has number {int(numbers.max())}")
    return np.minimum(numbers, total - 1)


def _measured(show: Show, sizes: list[np.ndarray], picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "s s 3"]:
    sizes.append(np.array(picture.shape[1::-1], np.float64))
    return show(picture)
