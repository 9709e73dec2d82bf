"""Labelled images for one network or a pool of members, each in its own order; a batch depends on its place alone."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from pydantic import Field
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_modules.datasets import storage
from lightning_modules.datasets.pictures import decode
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
from lightning_modules.settings import Count

AUGMENTATIONS = ("none", "crop_flip")
CROP_PADDING = 4  # pixels of zeros on each side before the random crop (WRN paper, section 3)


class Labelled(LightningDataModule):
    """Rows with labels in memory, for one network or for members that each have their own order.

    Args: see `LabelledImages`.

    Raises:
        ValueError: a split is missing or unknown.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        copies: Count | None = None,
        batch_size: Count | None = None,
        evaluation_batch_size: Count,
    ):
        super().__init__()
        check_splits(splits, batch_size)
        self.folder, self.seed, self.splits, self.copies = folder, seed, splits, copies
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size

    @cached_property
    def rows(self) -> dict[str, tuple[str, np.ndarray]]:
        """Source and row numbers of each split."""
        return draw_splits(storage.card(self.folder)["splits"], self.splits, self.seed)

    @cached_property
    def sources(self) -> dict[str, dict[str, np.ndarray]]:
        """The stored splits that this seed draws from, whole."""
        return {source: storage.read(self.folder, source) for source in sorted({s for s, _ in self.rows.values()})}

    @property
    def num_classes(self) -> int:
        """Number of classes of the data set."""
        return storage.card(self.folder)["num_classes"]

    def trained_rows(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The stored columns of the split `train`, and its row numbers in them.

        Raises:
            ValueError: there is no split to train on.
        """
        if "train" not in self.rows:
            raise ValueError(f"there is no split 'train' in data.splits ({list(self.rows)}), so epochs must be 0.")
        source, rows = self.rows["train"]
        return self.sources[source], rows

    def parts(self, split: str) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """The stored columns of a split and some of its row numbers in them, one evaluation batch after another."""
        source, rows = self.rows[split]
        for start in range(0, len(rows), self.evaluation_batch_size):
            yield self.sources[source], rows[start : start + self.evaluation_batch_size]


class LabelledImages(Labelled):
    """Resident uint8 images; training batches for one network or K copies, evaluation batches shared by all members.

    Args:
        folder: a prepared data set with integer labels.
        seed: decides the rows of the splits and, with copy and epoch, every order and augmentation.
        splits: for each split (train, val, test) its source and number of rows, see `datasets.splits.draw_splits`.
        copies: number of members of one width, K; each has its own order, and training batches a leading axis K. Null
            for one network, whose batches have no such axis.
        batch_size: rows of one optimiser step, over all processes and accumulated batches, see `portion`; null where
            nothing is trained.
        augmentation: `none`, or `crop_flip`: random crop after padding by 4, and horizontal flip.
        centre_crop: side and share of the central square that encoded images are cut and scaled to, `[600, 0.875]`;
            null for images stored raw.
        fit_to: (channels, height, width) that smaller or grey images are brought to, see `fit`; null to leave them.

    Raises:
        ValueError: a split is missing or unknown, or the augmentation or crop is none.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        copies: Count | None = None,
        batch_size: Count | None = None,
        evaluation_batch_size: Count,
        augmentation: str = "none",
        centre_crop: Annotated[list[int | float], Field(min_length=2, max_length=2)] | None = None,
        fit_to: Annotated[list[Count], Field(min_length=3, max_length=3)] | None = None,
    ):
        super().__init__(
            folder=folder, seed=seed, splits=splits, copies=copies, batch_size=batch_size,
            evaluation_batch_size=evaluation_batch_size,
        )  # fmt: skip
        _check(augmentation, centre_crop)
        self.augmentation, self.centre_crop, self.fit_to = augmentation, centre_crop, fit_to

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images that a network gets.

        Raises:
            ValueError: encoded images without a crop, or raw ones with one.
        """
        card = storage.card(self.folder)
        if (self.centre_crop is None) != (card["codec"] == "raw"):
            raise ValueError(
                f"centre_crop is {self.centre_crop}, but the images are stored as {card['codec']}: raw ones take null, "
                "encoded ones a side and a share such as [600, 0.875]."
            )
        if self.fit_to is not None:
            channels, height, width = self.fit_to
            return height, width, channels
        return tuple(card["image_shape"]) if self.centre_crop is None else (int(self.centre_crop[0]),) * 2 + (3,)

    def train_dataloader(self) -> DataLoader:
        """The training batches, the epoch set by Lightning.

        Raises:
            ValueError: there is no split to train on.
        """
        columns, rows = self.trained_rows()
        batches = MemberBatches(
            self._images(columns["image"][rows]),
            torch.from_numpy(columns["label"][rows]),
            seed=self.seed,
            copies=self.copies,
            batch_size=self.batch_size,
            augmentation=self.augmentation,
            portion=portion(self),
        )
        return DataLoader(batches, sampler=EpochSteps(len(batches)), batch_size=None)

    def evaluation_batches(self, split: str) -> Iterator[dict[str, Tensor]]:
        """One pass over a split in the order of its rows; images are decoded as they are needed."""
        for columns, part in self.parts(split):
            yield {"images": self._images(columns["image"][part]), "labels": torch.from_numpy(columns["label"][part])}

    def _images(self, stored: np.ndarray) -> UInt8[Tensor, "rows channels height width"]:
        if self.centre_crop is not None:
            side, share = self.centre_crop
            stored = np.stack([centre_square(decode(image), int(side), share) for image in stored])
        images = torch.from_numpy(np.ascontiguousarray(stored.transpose(0, 3, 1, 2)))
        return images if self.fit_to is None else fit(images, self.fit_to)


def portion(data: LightningDataModule) -> Portion:
    """That of the process that trains on `data`: one step takes the same rows on any number of devices."""
    trainer = data.trainer
    if trainer is None:
        return WHOLE
    return Portion(trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches)


def fit(
    images: UInt8[Tensor, "rows c height width"], shape: Sequence[int]
) -> UInt8[Tensor, "rows channels new_height new_width"]:
    """Images in the centre of larger black ones, grey repeated in every channel: what an encoder of `shape` can read.

    Raises:
        ValueError: the images are larger, or have other colours.
    """
    channels, height, width = shape
    rows, own, *size = images.shape
    if own not in (1, channels) or size[0] > height or size[1] > width:
        raise ValueError(f"images of shape {(own, *size)} cannot be brought to fit_to ({channels}, {height}, {width}).")
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    padded = F.pad(images, [left, width - size[1] - left, top, height - size[0] - top])
    return padded.expand(rows, channels, height, width)


def _check(augmentation: str, centre_crop: list[int | float] | None) -> None:
    if augmentation not in AUGMENTATIONS:
        raise ValueError(f"augmentation ({augmentation!r}) must be one of {', '.join(AUGMENTATIONS)}.")
    if centre_crop is not None and not (float(centre_crop[0]).is_integer() and centre_crop[0] >= 1):
        raise ValueError(f"centre_crop ({centre_crop}) must begin with a whole number of pixels.")
    if centre_crop is not None and not 0 < centre_crop[1] <= 1:
        raise ValueError(f"centre_crop ({centre_crop}) must end with a share of the shorter edge, above 0, at most 1.")


@runtime_checkable
class ImageData(Protocol):
    """Labelled images for one network: `LabelledImages` without copies, or `streamed.StreamedImages`."""

    copies: int | None
    rows: Mapping[str, object]
    image_shape: tuple[int, int, int]
    num_classes: int

    def evaluation_batches(self, split: str) -> Iterator[dict[str, Tensor]]:
        """One pass over a split in the order of its rows."""
        ...


def check_images(data: ImageData, encoder: nn.Module) -> None:
    """Refuse data whose batches a vision transformer cannot read.

    Raises:
        ValueError: batches of several copies, or images of another shape.
    """
    if data.copies is not None:
        raise ValueError(f"data.copies is {data.copies}, but this is one network: it must be null.")
    height, width, channels = data.image_shape
    expected = (encoder.channels, encoder.image_size, encoder.image_size)
    if (channels, height, width) != expected:
        raise ValueError(f"the encoder reads images of shape {expected}, but the data has {channels, height, width}.")


def centre_square(image: UInt8[np.ndarray, "h w 3"], side: int, share: float) -> UInt8[np.ndarray, "side side 3"]:
    """The central square, `share` of the shorter edge wide, scaled to `side` pixels (bicubic, antialiased)."""
    from PIL import Image

    height, width = image.shape[:2]
    cut = share * min(height, width)
    box = ((width - cut) / 2, (height - cut) / 2, (width + cut) / 2, (height + cut) / 2)
    return np.array(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC, box=box))


class MemberBatches(Dataset):
    """Training batches of one network or K copies; item `(epoch, place)` depends on the seed and on that pair only.

    So a resumed run sees what the unbroken one would have seen, and no two copies see the same order. The rows that do
    not fill a batch are left out of that epoch. A step has one place for each accumulated batch.

    Raises:
        ValueError: the augmentation is unknown, or the batch is larger than the data.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "rows channels height width"],
        labels: Int[Tensor, " rows"],
        *,
        seed: int,
        copies: int | None,
        batch_size: int,
        augmentation: str = "none",
        portion: Portion = WHOLE,
    ):
        if augmentation not in AUGMENTATIONS:
            raise ValueError(f"augmentation ({augmentation!r}) must be one of {', '.join(AUGMENTATIONS)}.")
        self.images, self.labels = images, labels
        self.seed, self.copies, self.batch_size, self.augmentation = seed, copies, batch_size, augmentation
        self.portion, self.places = portion, portion.places(len(images), batch_size)
        self.epoch, self.order = -1, torch.empty(0)

    def __len__(self) -> int:
        return self.places

    def __getitem__(self, at: tuple[int, int]) -> dict[str, Tensor]:
        epoch, place = at
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self.epoch_order(epoch)
        window = self.portion.window(place, self.batch_size)
        rows = self.order[:, window]
        images = self.images[rows]
        if self.augmentation == "crop_flip":
            images = self._crop_flip(images, epoch, window)
        batch = {"images": images, "labels": self.labels[rows]}
        return {name: x[0] for name, x in batch.items()} if self.copies is None else batch

    def epoch_order(self, epoch: int) -> Int[Tensor, "copies rows"]:
        """The order in which each copy sees the rows in an epoch."""
        orders = [permutation(len(self.images), self.seed, ORDER, k, epoch) for k in range(self.copies or 1)]
        return torch.from_numpy(np.stack(orders))

    def _crop_flip(self, images: Tensor, epoch: int, window: slice) -> Tensor:
        words = [
            random_words(len(self.images), self.seed, AUGMENTATION, k, epoch)[window] for k in range(self.copies or 1)
        ]
        words = np.stack(words)
        places = 2 * CROP_PADDING + 1
        top, left, flip = (torch.from_numpy((words >> shift) % n) for shift, n in ((0, places), (20, places), (40, 2)))
        return crop_flip(images.flatten(0, 1), *(x.long().flatten() for x in (top, left, flip))).view_as(images)


def crop_flip(
    images: UInt8[Tensor, "batch channels height width"],
    top: Int[Tensor, " batch"],
    left: Int[Tensor, " batch"],
    flip: Int[Tensor, " batch"],
) -> UInt8[Tensor, "batch channels height width"]:
    """Pad by `CROP_PADDING` zeros, cut the original size out at (`top`, `left`), mirror where `flip` is 1."""
    height, width = images.shape[-2:]
    padded = F.pad(images, [CROP_PADDING] * 4)
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    columns = torch.where(flip[:, None] == 1, columns.flip(1), columns)
    channels = torch.arange(images.shape[1])
    batch = torch.arange(len(images))
    return padded[batch[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None]]


class EpochSteps(Sampler):
    """The places `(epoch, place)` of one epoch, in order; Lightning sets the epoch.

    Its length is that of a whole epoch, even where a resumed training leaves out what is done.
    """

    def __init__(self, steps: int):
        self.steps, self.epoch, self.begun = steps, 0, (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration is about."""
        self.epoch = epoch

    def resume(self, epoch: int, done: int) -> None:
        """Go on in this epoch, of which so many places are done; later epochs are whole."""
        self.epoch, self.begun = epoch, (epoch, done)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, done = self.begun
        return ((self.epoch, step) for step in range(done if self.epoch == epoch else 0, self.steps))
