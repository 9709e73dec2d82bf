"""Labelled images read from disk while training: for data larger than memory, such as ImageNet.

The batches are those of `LabelledImages` in form. Pictures are decoded and cropped in worker processes, from the whole
picture; which rows and which crops a step gets depends on seed and epoch alone, whatever the number of workers.
"""

import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_modules.datamodules.labelled import centre_square, portion
from lightning_modules.datasets import storage
from lightning_modules.datasets.pictures import decode
from lightning_modules.datasets.splits import AUGMENTATION, Part, check_splits, draw_splits
from lightning_modules.datasets.streaming import RowGroups, WindowBatches, hold_out
from lightning_modules.processes import loader_workers, outlive_signals
from lightning_modules.settings import Count

TRIES = 10  # boxes drawn before the whole picture is taken (torchvision's RandomResizedCrop, which official codes use)
Overhang = Literal["redraw", "clip"]
Range = Annotated[list[float], Field(min_length=2, max_length=2)]


class StreamedImages(LightningDataModule):
    """Stored splits for one network, read by the row group.

    Args:
        folder: a prepared data set with integer labels, its images encoded.
        seed: decides the rows of the splits and, with the epoch, order and crops.
        splits: for each split (train, val, test) its source and number of rows, see `datasets.splits.draw_splits` and
            `datasets.streaming.hold_out`.
        batch_size: rows of one optimiser step, over all processes and accumulated batches, see `labelled.portion`.
        image_size: side of the pictures that the network gets, in pixels.
        crop_scale: least and greatest share of the area that a training picture is cut to (aspect 3/4 to 4/3), see
            `random_box`; `Preprocess` should then not crop again.
        crop_overhang: what happens to a cut that is larger than the picture: `redraw` or `clip`, see `random_box`.
        centre_share: side of the central square that an evaluation picture is cut to, as a share of its shorter edge.

    Raises:
        ValueError: a split or a range is none, or the stored images are not encoded.
    """

    copies = None  # one network, as `LabelledImages` says it

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        batch_size: Count,
        evaluation_batch_size: Count,
        image_size: Count,
        crop_scale: Range,
        crop_overhang: Overhang = "redraw",
        centre_share: Annotated[float, Field(gt=0, le=1)] = 0.875,
    ):
        super().__init__()
        check_splits(splits, batch_size)
        if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise ValueError(f"crop_scale ({crop_scale}) must be two shares of the area, above 0 and at most 1.")
        self.folder, self.seed, self.splits = folder, seed, splits
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.image_size, self.centre_share = image_size, centre_share
        self.crop_scale, self.crop_overhang = tuple(crop_scale), crop_overhang

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images that a network gets.

        Raises:
            ValueError: the images are stored raw.
        """
        codec = storage.card(self.folder)["codec"]
        if codec == "raw":
            raise ValueError(f"the images in {self.folder} are stored raw, all of one size: use LabelledImages.")
        return self.image_size, self.image_size, 3

    @cached_property
    def rows(self) -> dict[str, tuple[str, np.ndarray]]:
        """The source and the row numbers of each split."""
        ends = {part["source"]: self._groups(part["source"]).ends for part in self.splits.values()}
        counts = {source: int(of[-1]) for source, of in ends.items()}
        return draw_splits(
            counts, self.splits, self.seed, lambda source, sizes: hold_out(ends[source], sizes, self.seed)
        )

    @property
    def num_classes(self) -> int:
        """Number of classes of the data set."""
        return storage.card(self.folder)["num_classes"]

    def train_dataloader(self) -> DataLoader:
        """The training batches, the epoch set by Lightning.

        Raises:
            ValueError: there is no split to train on, or the batch cannot be cut into equal parts.
        """
        if "train" not in self.splits:
            raise ValueError(f"there is no split 'train' in data.splits ({list(self.splits)}), so epochs must be 0.")
        source, rows = self.rows["train"]
        groups, mine = self._groups(source), portion(self)
        batches = EpochBatches(groups.ends, batch_size=self.batch_size, seed=self.seed, portion=mine, rows=rows)
        workers = loader_workers(mine.processes, mine.rows(self.batch_size) * math.prod(self.image_shape))
        crops = RandomCrops(groups, self.seed, self.image_size, self.crop_scale, self.crop_overhang)
        return DataLoader(
            crops,
            sampler=batches,
            batch_size=None,
            num_workers=workers,
            worker_init_fn=outlive_signals,
            pin_memory=torch.cuda.is_available(),
        )

    def evaluation_batches(self, split: str) -> Iterator[dict[str, Tensor]]:
        """One pass over a split in the order of its rows."""
        source, rows = self.rows[split]
        groups = self._groups(source)
        for start in range(0, len(rows), self.evaluation_batch_size):
            columns = groups[rows[start : start + self.evaluation_batch_size]]
            pictures = (decode(image) for image in columns["image"])
            images = [centre_square(picture, self.image_size, self.centre_share) for picture in pictures]
            yield batch(images, columns["label"])

    def _groups(self, source: str) -> RowGroups:
        return RowGroups(self.folder, source, ["image", "label"])


class EpochBatches(WindowBatches):
    """`WindowBatches` that says which epoch each batch is of: crops depend on it."""

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        return ((self.epoch, rows) for rows in super().__iter__())


class RandomCrops(Dataset):
    """Item `(epoch, rows)`: these pictures, each decoded and cropped as seed, epoch and row decide."""

    def __init__(
        self, groups: RowGroups, seed: int, image_size: int, scale: tuple[float, float], overhang: Overhang = "redraw"
    ):
        self.groups, self.seed, self.image_size = groups, seed, image_size
        self.scale, self.overhang = scale, overhang

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, at: tuple[int, np.ndarray]) -> dict[str, Tensor]:
        epoch, rows = at
        columns = self.groups[rows]
        images = [self._cropped(image, epoch, row) for image, row in zip(columns["image"], rows.tolist(), strict=True)]
        return batch(images, columns["label"])

    def _cropped(self, image: bytes, epoch: int, row: int) -> UInt8[np.ndarray, "side side 3"]:
        from PIL import Image

        picture = Image.fromarray(decode(image))
        key, counter = np.array([self.seed, AUGMENTATION], np.uint64), np.array([0, row, 0, epoch], np.uint64)
        words = np.random.Philox(key=key, counter=counter).random_raw(4 * TRIES).reshape(TRIES, 4)
        box = random_box(*picture.size, self.scale, (words >> np.uint64(11)) / 2.0**53, self.overhang)
        return np.array(picture.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC, box=box))


def random_box(
    width: int,
    height: int,
    scale: tuple[float, float],
    uniforms: Float[np.ndarray, "tries 4"],
    overhang: Overhang = "redraw",
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random part of a picture, in pixels.

    Area uniform in `scale`, aspect log-uniform from 3/4 to 4/3. `uniforms` are numbers from 0 to below 1: area, aspect,
    place across and down. `redraw`: the first of the drawn boxes that lies inside, or, if none does, the largest
    central one of such an aspect (RandomResizedCrop of torchvision). `clip`: the first one, its sides cut to those of
    the picture (MAE's `util/crop.py`, for linear probes), so that large areas are as likely as `scale` says.
    """
    for area, aspect, across, down in uniforms.tolist():
        pixels = width * height * (scale[0] + area * (scale[1] - scale[0]))
        ratio = math.exp((2 * aspect - 1) * math.log(4 / 3))
        cut = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if overhang == "clip":
            cut = min(cut[0], width), min(cut[1], height)
        if 0 < cut[0] <= width and 0 < cut[1] <= height:
            left, top = int(across * (width - cut[0] + 1)), int(down * (height - cut[1] + 1))
            return left, top, left + cut[0], top + cut[1]
    cut = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - cut[0]) // 2, (height - cut[1]) // 2
    return left, top, left + cut[0], top + cut[1]


def batch(images: list[UInt8[np.ndarray, "side side 3"]], labels: np.ndarray) -> dict[str, Tensor]:
    """Pictures and labels as `LabelledImages` gives them."""
    stacked = np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))
    return {"images": torch.from_numpy(stacked), "labels": torch.from_numpy(labels)}
