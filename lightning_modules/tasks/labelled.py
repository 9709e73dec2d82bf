"""Labelled images for a pool of members: every copy in its own order, every batch a pure function of its place."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_modules.datasets.splits import AUGMENTATION, ORDER, draw_splits, permutation, random_words

AUGMENTATIONS = ("none", "crop_flip")
CROP_PADDING = 4  # pixels of zeros on each side before the random crop (WRN paper, section 3)


class LabelledImages(LightningDataModule):
    """Resident uint8 images; training batches for K copies, evaluation batches shared by all.

    Args:
        sources: the stored splits, each with `image` (rows height width channels) and `label`.
        splits: for each split (train, val, test) its source and number of rows, see `datasets.splits.draw_splits`.
        seed: decides the rows of the splits and, with copy and epoch, every order and augmentation.
        copies: number of members of one width, K; each has its own order.
        augmentation: `none`, or `crop_flip`: random crop after padding by 4, and horizontal flip.
    """

    def __init__(
        self,
        *,
        sources: Mapping[str, Mapping[str, np.ndarray]],
        splits: Mapping[str, Mapping],
        seed: int,
        copies: int,
        batch_size: int,
        evaluation_batch_size: int,
        augmentation: str = "none",
    ):
        super().__init__()
        rows = {name: len(columns["label"]) for name, columns in sources.items()}
        self.rows = draw_splits(rows, splits, seed)
        self.sources, self.seed, self.copies = sources, seed, copies
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.augmentation = augmentation

    def train_dataloader(self) -> DataLoader:
        batches = MemberBatches(
            *self._tensors("train"),
            seed=self.seed,
            copies=self.copies,
            batch_size=self.batch_size,
            augmentation=self.augmentation,
        )
        return DataLoader(batches, sampler=EpochSteps(len(batches)), batch_size=None)

    def evaluation_batches(self) -> dict[str, list[dict[str, Tensor]]]:
        """All splits but `train`, in the order of their rows, as batches shared by all members."""
        return {split: self._batches(split) for split in self.rows if split != "train"}

    def _batches(self, split: str) -> list[dict[str, Tensor]]:
        parts = (x.split(self.evaluation_batch_size) for x in self._tensors(split))
        return [{"images": images, "labels": labels} for images, labels in zip(*parts, strict=True)]

    def _tensors(self, split: str) -> tuple[UInt8[Tensor, "rows channels height width"], Int[Tensor, " rows"]]:
        source, rows = self.rows[split]
        images = np.ascontiguousarray(self.sources[source]["image"][rows].transpose(0, 3, 1, 2))
        return torch.from_numpy(images), torch.from_numpy(self.sources[source]["label"][rows].astype(np.int64))


class MemberBatches(Dataset):
    """Training batches of K copies; item `(epoch, step)` depends on the seed and on that pair only.

    So a resumed run sees what the unbroken one would have seen, and no two copies see the same order. The rows that do
    not fill a batch are left out of that epoch.

    Raises:
        ValueError: the augmentation is unknown, or the batch is larger than the data.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "rows channels height width"],
        labels: Int[Tensor, " rows"],
        *,
        seed: int,
        copies: int,
        batch_size: int,
        augmentation: str = "none",
    ):
        if augmentation not in AUGMENTATIONS:
            raise ValueError(f"augmentation ({augmentation!r}) must be one of {', '.join(AUGMENTATIONS)}.")
        if not 0 < batch_size <= len(images):
            raise ValueError(f"batch_size ({batch_size}) must be between 1 and the number of images ({len(images)}).")
        self.images, self.labels = images, labels
        self.seed, self.copies, self.batch_size, self.augmentation = seed, copies, batch_size, augmentation
        self.epoch, self.order = -1, torch.empty(0)

    def __len__(self) -> int:
        return len(self.images) // self.batch_size

    def __getitem__(self, at: tuple[int, int]) -> dict[str, Tensor]:
        epoch, step = at
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self.epoch_order(epoch)
        window = slice(step * self.batch_size, (step + 1) * self.batch_size)
        rows = self.order[:, window]
        images = self.images[rows]
        if self.augmentation == "crop_flip":
            images = self._crop_flip(images, epoch, window)
        return {"images": images, "labels": self.labels[rows]}

    def epoch_order(self, epoch: int) -> Int[Tensor, "copies rows"]:
        """The order in which each copy sees the rows in an epoch."""
        orders = [permutation(len(self.images), self.seed, ORDER, k, epoch) for k in range(self.copies)]
        return torch.from_numpy(np.stack(orders))

    def _crop_flip(self, images: Tensor, epoch: int, window: slice) -> Tensor:
        words = [random_words(len(self.images), self.seed, AUGMENTATION, k, epoch)[window] for k in range(self.copies)]
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
    """The places `(epoch, step)` of one epoch, in order; Lightning sets the epoch, also when it resumes."""

    def __init__(self, steps: int):
        self.steps, self.epoch = steps, 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration is about."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, step) for step in range(self.steps))
