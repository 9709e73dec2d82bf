"""Labelled pictures whose stored values end below 255, such as those of scikit-learn's digits (0 to 16)."""

from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import UInt8
from pydantic import Field
from torch import Tensor

from lightning_modules.datamodules.labelled import LabelledImages
from lightning_modules.datasets.splits import Part
from lightning_modules.settings import Count

WHITE = 255  # where the pixels end that `tokens.centred` expects


class FullRangeImages(LabelledImages):
    """`LabelledImages` with their values stretched to 0 to 255; nothing is augmented.

    Args:
        folder: a prepared data set of raw images with integer labels.
        seed: decides the rows of the splits and, with the epoch, their order.
        splits: for each split (train, val, test) its source and number of rows, see `datasets.splits.draw_splits`.
        brightest: the stored value of white, 1 to 255.
        batch_size: rows of one optimiser step, over all processes and accumulated batches; null where nothing is
            trained.
        evaluation_batch_size: rows that are judged at a time.
        fit_to: (channels, height, width) that smaller or grey images are brought to; null to leave them.

    Raises:
        ValueError: a split is missing or unknown, `brightest` is above 255, or, when they are read, an image is
            brighter.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        brightest: Count,
        batch_size: Count | None = None,
        evaluation_batch_size: Count,
        fit_to: Annotated[list[Count], Field(min_length=3, max_length=3)] | None = None,
    ):
        super().__init__(
            folder=folder, seed=seed, splits=splits, batch_size=batch_size,
            evaluation_batch_size=evaluation_batch_size, fit_to=fit_to,
        )  # fmt: skip
        if brightest > WHITE:
            raise ValueError(f"brightest ({brightest}) must be at most {WHITE}: pixels are stored in 8 bits.")
        self.brightest = brightest

    def _images(self, stored: np.ndarray) -> UInt8[Tensor, "rows channels height width"]:
        if (found := int(stored.max(initial=0))) > self.brightest:
            raise ValueError(f"a pixel of {self.folder.name} is {found}, but data.brightest is {self.brightest}.")
        return super()._images((stored.astype(np.uint16) * WHITE // self.brightest).astype(np.uint8))
