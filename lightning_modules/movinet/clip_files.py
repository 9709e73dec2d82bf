"""Video files with labels of actions, decoded when they are trained on, as tensorflow/models reads them.

Frames, crops and short clips follow `official/vision/dataloaders/video_input.py` and `official/vision/ops/
preprocess_ops_3d.py` there, with these facts that one might not expect:
- a clip that is shorter than asked is repeated from its start, again and again; nothing is padded;
- training begins at any frame from which the last frame that is read lies in the clip, or one step behind it;
- `random_stride_range: 1` draws a stride of s - 1 or s: its upper bound is exclusive, whatever its comment says;
- crops have an aspect that is uniform, not log-uniform, a height that is uniform, and at least a tenth of the area
  (`min_object_covered`), although the area ratio begins at 0.08; after a hundred failures the whole frame is taken;
- frames are resized without a filter that widens as they shrink, and numbers are cut off to integers, not rounded.
The stored frames were 25 a second: strides of 5, 3 and 2 make the 5, 8 and 12 frames a second of the README.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_modules.datamodules.labelled import EpochSteps, portion
from lightning_modules.datasets.download import find
from lightning_modules.datasets.skipped import Skipped
from lightning_modules.datasets.splits import (
    AUGMENTATION,
    ORDER,
    WHOLE,
    Part,
    Portion,
    check_splits,
    draw_splits,
    permutation,
    random_words,
)
from lightning_modules.datasets.storage import card
from lightning_modules.datasets.video.corpora import read_index
from lightning_modules.datasets.video.files import BrokenVideo
from lightning_modules.datasets.video.sequences import at_random, central_square, in_the_middle, resized
from lightning_modules.movinet.decoding import Choose, Show, read_clip
from lightning_modules.processes import loader_workers, outlive_signals
from lightning_modules.settings import Count, Natural, Positive, Share

TRIES, COVERED = 100, 0.1  # max_attempts and min_object_covered of random_crop_resize
Range = Annotated[list[float], Field(min_length=2, max_length=2)]
Box = tuple[int, int, int, int]
Batch = dict[str, Tensor]


class ClipFiles(LightningDataModule):
    """Batches of `video`, uint8 (batch channels frames height width), `labels`, and `broken`, the videos left out.

    `labels` are int64 (batch,); for a corpus whose rows have any number of labels float32 (batch, classes), 1 for each
    label; for verbs and nouns int64 (batch, 2).

    Args:
        folder: an index that `datasets.video.actions.prepare` has written.
        seed: decides the rows of the splits and, with the epoch, order, beginnings, crops and flips.
        splits: for each split (train, val, test) its source and number of rows, see `datasets.splits.draw_splits`.
        copies: members that are trained side by side, each on its own order; training batches then have a leading axis
            of that size. Null for one network.
        frames: of a clip that is judged.
        train_frames: of a clip that is trained on; null for as many.
        temporal_stride: of the frames at `rate`, every which is read.
        random_stride: how much smaller the stride may be in training, see the top of this file.
        rate: frames a second that a video is brought to first.
        size: height and width of a frame.
        short_side: pixels to which the shorter side is brought before the central square is cut for evaluation.
        area: least and greatest share of a frame that a training crop has.
        aspect: least and greatest width of it, divided by its height.
        flip: whether half of the training clips are mirrored; not where left and right are classes.
        auto_augment: whether training clips pass through AutoAugment's policy for ImageNet (kornia), all frames alike.
        batch_size: clips of one optimiser step, over all processes and accumulated batches; null where nothing is
            trained.
        evaluation_batch_size: clips that are judged at a time.
        mirror: local folder with the copy of the videos; the environment variable REPRISE_MIRROR wins over it.
        max_broken: largest share of broken videos, see `skipped.Skipped`.

    Raises:
        ValueError: a split is unknown, or a range is none.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        copies: Count | None = None,
        frames: Count,
        train_frames: Count | None = None,
        temporal_stride: Count,
        random_stride: Natural = 0,
        rate: Positive = 25.0,
        size: Count,
        short_side: Count,
        area: Range,
        aspect: Range,
        flip: bool = True,
        auto_augment: bool = False,
        batch_size: Count | None = None,
        evaluation_batch_size: Count,
        mirror: str | None = None,
        max_broken: Share,
    ):
        super().__init__()
        check_splits(splits, batch_size)
        if not 0 < area[0] <= area[1] <= 1 or area[1] < COVERED:
            raise ValueError(
                f"area ({list(area)}) must be two shares, above 0 and at most 1, the second at least {COVERED}, which "
                "a crop has in any case."
            )
        if not 0 < aspect[0] <= aspect[1]:
            raise ValueError(f"aspect ({list(aspect)}) must be two ratios above 0, the smaller one first.")
        if short_side < size:
            raise ValueError(f"short_side ({short_side}) must be at least size ({size}): a square is cut from it.")
        self.folder, self.seed, self.splits, self.copies = folder, seed, splits, copies
        self.frames, self.train_frames = frames, train_frames or frames
        self.temporal_stride, self.random_stride, self.rate = temporal_stride, random_stride, rate
        self.size, self.short_side, self.area, self.aspect = size, short_side, tuple(area), tuple(aspect)
        self.flip, self.auto_augment = flip, auto_augment
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.mirror, self.max_broken = mirror, max_broken

    @cached_property
    def rows(self) -> dict[str, tuple[str, np.ndarray]]:
        """Prepared split and row numbers of each split."""
        written = card(self.folder)["splits"]
        return draw_splits({split: facts["rows"] for split, facts in written.items()}, self.splits, self.seed)

    @cached_property
    def targets(self) -> str | list[list]:
        """What a row's labels are: `one` class, `many`, or names and numbers of classes, one of each."""
        facts = card(self.folder)
        counts = [[kind, len(names)] for kind, names in facts["classes"].items()]
        return "many" if facts["many"] else "one" if len(counts) == 1 else counts

    @property
    def num_classes(self) -> int:
        """Classes of all labels together."""
        return sum(len(names) for names in card(self.folder)["classes"].values())

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of the clips that are judged."""
        return 3, self.frames, self.size, self.size

    def clips(self, split: str) -> "Clips":
        """The videos and labels of a split.

        Raises:
            DataUnavailable: there is no folder of videos.
        """
        facts, (prepared, rows) = card(self.folder), self.rows[split]
        videos = facts["splits"][prepared]["videos"]
        folder = find(facts["name"], videos, mirror=self.mirror, cache=Path(facts["cache"]))
        index = read_index(self.folder, prepared)
        many = self.num_classes if facts["many"] else None
        return Clips(folder, *(index[name][rows] for name in ("file", "start", "end", "labels")), many, self.rate)

    def train_dataloader(self) -> DataLoader:
        """The training batches of this process, the epoch set by Lightning; they are decoded by processes of its own.

        Raises:
            ValueError: there is no split to train on.
        """
        if "train" not in self.rows:
            raise ValueError(f"there is no split 'train' in data.splits ({list(self.rows)}), so epochs must be 0.")
        mine, clips = portion(self), self.clips("train")
        members = [self._batches(clips, member, mine) for member in range(self.copies or 1)]
        batches = members[0] if self.copies is None else Members(members)
        clip_bytes = 3 * self.train_frames * self.size**2
        return DataLoader(
            batches,
            sampler=EpochSteps(len(batches)),
            batch_size=None,
            num_workers=loader_workers(mine.processes, len(members) * mine.rows(self.batch_size) * clip_bytes),
            worker_init_fn=outlive_signals,
            pin_memory=torch.cuda.is_available(),
        )

    def _batches(self, clips: "Clips", member: int, mine: Portion) -> "TrainingClips":
        crops = Crops(self.size, self.area, self.aspect, self.flip, self.auto_augment)
        return TrainingClips(
            clips,
            crops,
            seed=self.seed,
            member=member,
            frames=self.train_frames,
            strides=(max(1, self.temporal_stride - self.random_stride), self.temporal_stride),
            batch_size=self.batch_size,
            max_broken=self.max_broken,
            portion=mine,
        )

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        """One pass over a split in the order of its rows: the middle clip and the central square of each video.

        Broken videos are left out.

        Raises:
            ValueError: too many are broken.
        """
        clips, skipped = self.clips(split), Skipped("videos", self.max_broken)
        parts = JudgedClips(
            clips, self.evaluation_batch_size, self.frames, self.temporal_stride, self.short_side, self.size
        )
        batch_bytes = 3 * self.frames * self.size**2 * self.evaluation_batch_size
        workers = loader_workers(1, batch_bytes) if len(parts) > 1 else 0
        loader = DataLoader(
            parts, batch_size=None, num_workers=workers, worker_init_fn=outlive_signals, collate_fn=_as_it_is
        )
        for found, errors in loader:
            for _ in range(len(found["labels"]) if found else 0):
                skipped.read()
            for error in errors:
                skipped.skip(BrokenVideo(error))
            if found:
                yield found | {"broken": torch.tensor(len(errors))}


class Clips(NamedTuple):
    """Videos with their labels: files, the seconds of each part (NaN for a whole file), lists of class numbers."""

    folder: Path
    files: np.ndarray
    start: np.ndarray
    end: np.ndarray
    labels: np.ndarray
    many: int | None  # classes, where a row has any number of labels
    rate: float

    def read(self, row: int, choose: Choose, show: Show) -> Batch:
        """Decode a clip, see `read_clip`: `video` (frames side side 3), and its `labels`.

        Raises:
            BrokenVideo: it cannot be decoded.
        """
        part = {} if np.isnan(self.start[row]) else {"start": float(self.start[row]), "end": float(self.end[row])}
        frames = read_clip(self.folder / self.files[row], choose, show, rate=self.rate, **part)
        return {"video": torch.from_numpy(frames), "labels": self._labels(row)}

    def _labels(self, row: int) -> Tensor:
        labels = torch.tensor(self.labels[row], dtype=torch.int64)
        if self.many is not None:
            return torch.zeros(self.many).index_fill_(0, labels, 1.0)
        return labels if len(labels) > 1 else labels[0]


class Crops(NamedTuple):
    """How training clips are cut: see `ClipFiles`."""

    size: int
    area: tuple[float, float]
    aspect: tuple[float, float]
    flip: bool
    auto_augment: bool


class TrainingClips(Dataset):
    """Training batches of one member; item `(epoch, place)` depends on the seed, that pair, and which files are broken.

    A step has one place for each accumulated batch. For a broken video comes one of a later place that no other process
    takes. Each process that decodes counts on its own how many videos it found broken.

    Args:
        clips: the videos.
        crops: how they are cut.
        seed: decides all draws, with the member and the epoch.
        frames: of a clip.
        strides: least and greatest temporal stride.
        batch_size: of one optimiser step.
        max_broken: see `skipped.Skipped`.
        portion: what this process takes of a step.
        member: its number among those that are trained side by side.

    Raises:
        ValueError: there are too few videos for a step.
    """

    def __init__(
        self,
        clips: Clips,
        crops: Crops,
        *,
        seed: int,
        frames: int,
        strides: tuple[int, int],
        batch_size: int,
        max_broken: float,
        portion: Portion = WHOLE,
        member: int = 0,
    ):
        self.clips, self.crops, self.seed, self.frames, self.strides = clips, crops, seed, frames, strides
        self.batch_size, self.portion, self.member = batch_size, portion, member
        self.places, self.part = portion.places(len(clips.files), batch_size), portion.rows(batch_size)
        self.skipped, self.epoch = Skipped("videos", max_broken), -1

    def __len__(self) -> int:
        return self.places

    def __getitem__(self, at: tuple[int, int]) -> Batch:
        epoch, place = at
        if epoch != self.epoch:
            rows, copies = len(self.clips.files), range(3 * self.member, 3 * self.member + 3)
            self.order = permutation(rows, self.seed, ORDER, self.member, epoch)
            self.words = np.stack([random_words(rows, self.seed, AUGMENTATION, copy, epoch) for copy in copies])
            self.epoch = epoch
        found, broken = [], self.skipped.broken
        for row in self._candidates(place):
            try:
                found.append(self._read(row))
                self.skipped.read()
            except BrokenVideo as error:
                self.skipped.skip(error)
            if len(found) == self.part:
                return _stacked(found) | {"broken": torch.tensor(self.skipped.broken - broken)}
        raise ValueError(f"only {len(found)} videos can be read, too few for a batch of {self.part}.")

    def _candidates(self, place: int) -> Iterator[int]:
        """The rows of a place; then, for the broken among them, those of later places."""
        rank, processes, _ = self.portion
        order = np.roll(self.order, -place * self.part * processes)
        yield from order[rank * self.part : (rank + 1) * self.part].tolist()
        yield from order[processes * self.part :][rank::processes].tolist()

    def _read(self, row: int) -> Batch:
        begin, crop, further = (int(word) for word in self.words[:, row])
        stride = self.strides[0] + further % (self.strides[1] - self.strides[0] + 1)
        augmented = Augmented(self.crops, crop, mirrored=bool(self.crops.flip and further >> 32 & 1))
        choose = partial(at_random, shown=self.frames, stride=stride, word=begin)
        found = self.clips.read(row, choose, augmented)
        if self.crops.auto_augment:
            found["video"] = auto_augmented(found["video"], seed=further >> 33)
        return found


class Members(Dataset):
    """Training batches of several members side by side, each with its own order; `broken` is that of all."""

    def __init__(self, members: Sequence[TrainingClips]):
        self.members = members

    def __len__(self) -> int:
        return len(self.members[0])

    def __getitem__(self, at: tuple[int, int]) -> Batch:
        found = [member[at] for member in self.members]
        batch = {name: torch.stack([each[name] for each in found]) for name in found[0]}
        return batch | {"broken": batch["broken"].sum()}


class JudgedClips(Dataset):
    """Evaluation batches by their numbers: what could be read (null if nothing), and why the others could not."""

    def __init__(self, clips: Clips, batch_size: int, frames: int, stride: int, short_side: int, size: int):
        self.clips, self.batch_size = clips, batch_size
        self.choose = partial(in_the_middle, shown=frames, stride=stride)
        self.show = partial(central_square, short_side=short_side, size=size)

    def __len__(self) -> int:
        return math.ceil(len(self.clips.files) / self.batch_size)

    def __getitem__(self, number: int) -> tuple[Batch | None, list[str]]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        found, errors, start = [], [], number * self.batch_size
        for row in range(start, min(start + self.batch_size, len(self.clips.files))):
            try:
                found.append(self.clips.read(row, self.choose, self.show))
            except BrokenVideo as error:
                errors.append(str(error))
        if not found:
            return None, errors
        return _stacked(found), errors


def _stacked(clips: list[Batch]) -> Batch:
    batch = {name: torch.stack([clip[name] for clip in clips]) for name in clips[0]}
    return batch | {"video": batch["video"].permute(0, 4, 1, 2, 3).contiguous()}


def _as_it_is(item: object) -> object:
    return item


def random_box(
    width: int,
    height: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    uniforms: Float[np.ndarray, " numbers"],
) -> Box:
    """Left, top, width and height of a random part of a frame, in pixels.

    The first of the drawn boxes that fits and has at least a tenth of the frame (`sample_distorted_bounding_box` of
    TensorFlow); the whole frame if there is none.

    Args:
        width: of the frame, in pixels.
        height: of the frame.
        area: least and greatest share of the frame.
        aspect: least and greatest width of the box, divided by its height.
        uniforms: numbers from 0 to below 1, four for each try: aspect, height, place across and down.
    """
    least, most = (share * width * height for share in area)
    for ratio, tall, across, down in np.reshape(uniforms, (-1, 4)).tolist():
        ratio = aspect[0] + ratio * (aspect[1] - aspect[0])
        highest = min(round(math.sqrt(most / ratio)), height, int((width + 0.5 - 1e-7) / ratio))
        lowest = min(round(math.sqrt(least / ratio)), highest)
        high = lowest + int(tall * (highest - lowest + 1))
        high += high * round(high * ratio) < least  # rounding may make it too small, or too large
        high -= high * round(high * ratio) > most
        wide = round(high * ratio)
        fits = 0 < wide <= width and 0 < high <= height and least <= wide * high <= most
        if fits and wide * high >= COVERED * width * height:
            return int(across * (width - wide)), int(down * (height - high)), wide, high
    return 0, 0, width, height


class Augmented:
    """Cuts all frames of one clip alike: a random box, scaled to a square, perhaps mirrored.

    Args:
        crops: how.
        word: a large random integer that decides the box.
        mirrored: left and right.
    """

    def __init__(self, crops: Crops, word: int, *, mirrored: bool):
        self.crops, self.word, self.mirrored, self.box = crops, word, mirrored, None

    def __call__(self, picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "side side 3"]:
        """A frame as the network gets it; the first one decides how large the box is."""
        if self.box is None:
            words = np.random.Philox(key=self.word).random_raw(4 * TRIES)
            height, width = picture.shape[:2]
            self.box = random_box(width, height, self.crops.area, self.crops.aspect, (words >> np.uint64(11)) / 2.0**53)
        left, top, wide, high = self.box
        shown = resized(picture[top : top + high, left : left + wide], self.crops.size, self.crops.size)
        return np.ascontiguousarray(shown[:, ::-1]) if self.mirrored else shown


def auto_augmented(clip: UInt8[Tensor, "frames height width 3"], seed: int) -> UInt8[Tensor, "frames height width 3"]:
    """A clip after one of AutoAugment's 25 sub-policies for ImageNet (Cubuk et al. 2019), every frame with the same.

    kornia draws once, for the first frame, and does the same to the others. Global random numbers are as they were.
    """
    from kornia.augmentation.auto import AutoAugment  # takes a second

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        augment = AutoAugment("imagenet")
        frames = clip.permute(0, 3, 1, 2).float() / 255
        first = augment(frames[:1])
        done = [first] + [augment(frame[None], params=augment._params) for frame in frames[1:]]
    return (255 * torch.cat(done)).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()
