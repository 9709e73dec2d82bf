"""Captioned pictures read from disk while training: crops as those of `streamed`, each with one of its captions."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_modules.datamodules.labelled import centre_square, portion
from lightning_modules.datamodules.streamed import EpochBatches, RandomCrops, Range, StreamedImages
from lightning_modules.datasets.pictures import decode
from lightning_modules.datasets.sentence_pieces import SentencePieces, caption_tokenizer
from lightning_modules.datasets.splits import Part
from lightning_modules.datasets.storage import card
from lightning_modules.datasets.streaming import RowGroups
from lightning_modules.datasets.tokenizers import TextTokenizer
from lightning_modules.processes import loader_workers, outlive_signals
from lightning_modules.settings import Count

CAPTION = 160  # purpose of random words, which `datasets.splits` has not


class StreamedCaptions(StreamedImages):
    """Batches of `images`, uint8 (batch 3 h w), and `token_ids` and `attention_mask` (batch length) of a caption.

    A picture with several captions shows one of them in each epoch, and the first one in evaluation.

    Args:
        folder: a prepared data set with encoded images and the column `captions` or `caption`.
        seed: decides the rows of the splits and, with the epoch, order, crops and captions.
        splits: see `StreamedImages`, also for the other arguments.
        tokenizer: null for the captioned world's words, else see `sentence_pieces.caption_tokenizer`.
        text_length: tokens of a caption, special ones included; longer ones are cut.

    Raises:
        ValueError: a split or a range is none.
    """

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
        centre_share: Annotated[float, Field(gt=0, le=1)] = 0.875,
        tokenizer: str | None = None,
        text_length: Annotated[Count, Field(ge=3)],
    ):
        super().__init__(
            folder=folder, seed=seed, splits=splits, batch_size=batch_size,
            evaluation_batch_size=evaluation_batch_size, image_size=image_size, crop_scale=crop_scale,
            centre_share=centre_share,
        )  # fmt: skip
        self.tokenizer_name, self.text_length = tokenizer, text_length

    @cached_property
    def tokenizer(self) -> TextTokenizer | SentencePieces:
        """What cuts the captions."""
        return caption_tokenizer(self.tokenizer_name)

    @cached_property
    def told(self) -> str:
        """The column of captions.

        Raises:
            ValueError: there is none.
        """
        there = card(self.folder)["columns"]
        if not (found := [name for name in ("captions", "caption") if name in there]):
            raise ValueError(f"{self.folder} has the columns {', '.join(there)}, expected `captions` or `caption`.")
        return found[0]

    def train_dataloader(self) -> DataLoader:
        """The training batches, the epoch set by Lightning.

        Raises:
            ValueError: there is no split to train on, or the batch cannot be cut into equal parts.
        """
        if "train" not in self.splits:
            raise ValueError(f"there is no split 'train' in data.splits ({list(self.splits)}), so epochs must be 0.")
        source, rows = self.rows["train"]
        groups, mine = self._groups(source), portion(self)
        return DataLoader(
            CaptionedCrops(self, groups),
            sampler=EpochBatches(groups.ends, batch_size=self.batch_size, seed=self.seed, portion=mine, rows=rows),
            batch_size=None,
            num_workers=loader_workers(mine.processes, mine.rows(self.batch_size) * 3 * self.image_size**2),
            worker_init_fn=outlive_signals,
            pin_memory=torch.cuda.is_available(),
        )

    def evaluation_batches(self, split: str) -> Iterator[dict[str, Tensor]]:
        """One pass over a split in the order of its rows."""
        source, rows = self.rows[split]
        groups = self._groups(source)
        for start in range(0, len(rows), self.evaluation_batch_size):
            columns = groups[rows[start : start + self.evaluation_batch_size]]
            images = [centre_square(decode(image), self.image_size, self.centre_share) for image in columns["image"]]
            yield self.batch(images, [self.caption(said, 0) for said in columns[self.told]])

    def caption(self, said: str | list[str], word: int) -> str:
        """One of the captions of a picture."""
        return said if isinstance(said, str) else said[word % len(said)]

    def batch(self, images: list[np.ndarray], captions: list[str]) -> dict[str, Tensor]:
        """Pictures and captions as tensors."""
        stacked = np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))
        token_ids, mask = self.tokenizer(captions, self.text_length)
        return {
            "images": torch.from_numpy(stacked),
            "token_ids": torch.from_numpy(token_ids),
            "attention_mask": torch.from_numpy(mask),
        }

    def _groups(self, source: str) -> RowGroups:
        return RowGroups(self.folder, source, ["image", self.told])


class CaptionedCrops(RandomCrops):
    """Item `(epoch, rows)`: these pictures, each cropped and with the caption that seed, epoch and row decide."""

    def __init__(self, data: StreamedCaptions, groups: RowGroups):
        super().__init__(groups, data.seed, data.image_size, data.crop_scale, data.crop_overhang)
        self.data = data

    def __getitem__(self, at: tuple[int, np.ndarray]) -> dict[str, Tensor]:
        epoch, rows = at
        columns = self.groups[rows]
        images = [self._cropped(image, epoch, row) for image, row in zip(columns["image"], rows.tolist(), strict=True)]
        words = [self._word(epoch, row) for row in rows.tolist()]
        said = zip(columns[self.data.told], words, strict=True)
        return self.data.batch(images, [self.data.caption(*each) for each in said])

    def _word(self, epoch: int, row: int) -> int:
        key, counter = np.array([self.seed, CAPTION], np.uint64), np.array([0, row, 0, epoch], np.uint64)
        return int(np.random.Philox(key=key, counter=counter).random_raw(1)[0] >> np.uint64(33))
