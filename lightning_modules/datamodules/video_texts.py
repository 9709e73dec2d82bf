"""Resident clips with sentences from several sources of language, as batches for one network."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int
from pydantic import Field
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_modules.datamodules.labelled import EpochSteps, portion
from lightning_modules.datasets import storage
from lightning_modules.datasets.splits import (
    ORDER,
    SPLITS,
    WHOLE,
    Part,
    Portion,
    check_splits,
    draw_splits,
    permutation,
    split_indices,
)
from lightning_modules.datasets.tokenizers import TextTokenizer, tokenizer_called
from lightning_modules.settings import Count

COLUMNS = {
    "subtitle": ("subtitle",),
    "auxiliary": ("auxiliary_caption",),
    "caption": ("caption",),
    "joined": ("auxiliary_caption", "subtitle"),
}
BETWEEN = ". with subtitle: "  # what joins them, as in CLIP-ViP's official code (caption_subtitle_concat)
Source = Literal["subtitle", "auxiliary", "caption", "joined"]
Batch = dict[str, Tensor]


class VideoTexts(LightningDataModule):
    """Batches of `video`, uint8 (batch channels frames height width), and of each source its ids and attention mask.

    A batch has `<source>_token_ids` and `<source>_attention_mask` (batch length) for each of `sources`; `images`, the
    middle frames, if one source is `auxiliary`; and `labels` where the data set has classes. A video of one frame is a
    picture.

    Args:
        folder: a prepared data set of raw clips with text columns.
        seed: decides the rows of the splits and, with the epoch, every order.
        splits: for each split (train, val, test) its source and number of rows, see `datasets.splits.draw_splits`. Of a
            data set with classes a number of rows has all classes as often as one another, give or take one.
        sources: `subtitle`, `auxiliary` (caption of the middle frame), `caption`, or `joined`, auxiliary caption and
            subtitle as one sentence.
        tokenizer: null for the captioned world's words, else see `published_tokenizer`.
        text_length: tokens of a sentence, start and end included; longer ones are cut.
        frames: of a clip that are shown, see `shown_frames`; null for all.
        batches: `shuffled`: an epoch shows every row once. `classes`: every batch has each class once, so that no row
            is a false negative of another.
        batch_size: rows of one optimiser step, over all processes and accumulated batches, see `labelled.portion`;
            null where nothing is trained.

    Raises:
        ValueError: a split or source is unknown or named twice.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        sources: Annotated[list[Source], Field(min_length=1)],
        tokenizer: str | None = None,
        text_length: Annotated[Count, Field(ge=3)],
        frames: Count | None,
        batches: Literal["shuffled", "classes"] = "shuffled",
        batch_size: Count | None = None,
        evaluation_batch_size: Count,
    ):
        super().__init__()
        check_splits(splits, batch_size)
        check_sources(sources)
        self.folder, self.seed, self.splits, self.sources = folder, seed, splits, sources
        self.tokenizer_name, self.text_length, self.frames = tokenizer, text_length, frames
        self.batches, self.batch_size, self.evaluation_batch_size = batches, batch_size, evaluation_batch_size

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """What cuts the sentences; `len` of it is the number of ids that a text tower has to know."""
        return tokenizer_called(self.tokenizer_name)

    @cached_property
    def rows(self) -> dict[str, tuple[str, np.ndarray]]:
        """Stored split and row numbers of each split."""
        counts = storage.card(self.folder)["splits"]

        def draw(stored: str, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
            drawn = split_indices(counts[stored], sizes, self.seed)
            return drawn if self.num_classes is None else {name: self._evenly(stored, x) for name, x in drawn.items()}

        return draw_splits(counts, self.splits, self.seed, draw)

    @cached_property
    def stored(self) -> dict[str, dict[str, np.ndarray]]:
        """The stored splits that are drawn from, whole."""
        names = sorted({part["source"] for part in self.splits.values()})
        return {name: storage.read(self.folder, name) for name in names}

    @property
    def num_classes(self) -> int | None:
        """Number of captions, where each caption is a class."""
        return storage.card(self.folder)["num_classes"]

    @cached_property
    def video_shape(self) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of the clips that a network gets.

        Raises:
            ValueError: the data set has no raw clips, or fewer frames than asked for.
        """
        shape = storage.card(self.folder)["image_shape"]
        if shape is None or len(shape) != 4:
            raise ValueError(f"{self.folder} has pictures of shape {shape}, expected raw clips (frames, h, w, c).")
        frames, height, width, channels = shape
        return channels, len(shown_frames(frames, self.frames)), height, width

    def train_dataloader(self) -> DataLoader:
        """The training batches, the epoch set by Lightning.

        Raises:
            ValueError: there is no split to train on.
        """
        if "train" not in self.rows:
            raise ValueError(f"there is no split 'train' in data.splits ({list(self.rows)}), so epochs must be 0.")
        batches = VideoTextBatches(
            self._columns("train"),
            seed=self.seed,
            batches=self.batches,
            batch_size=self.batch_size,
            portion=portion(self),
        )
        return DataLoader(batches, sampler=EpochSteps(len(batches)), batch_size=None)

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        """One pass over a split in the order of its rows."""
        columns = self._columns(split)
        for start in range(0, len(columns["video"]), self.evaluation_batch_size):
            yield _batch(columns, slice(start, start + self.evaluation_batch_size))

    def _columns(self, split: str) -> dict[str, Tensor]:
        """All that batches of a split are cut from; the clips as they are stored, colours last."""
        stored, rows = self.rows[split]
        columns = self.stored[stored]
        shown = shown_frames(columns["video"].shape[1], self.frames)
        video = columns["video"][rows] if self.frames is None else columns["video"][rows[:, None], shown]
        found = {"video": torch.from_numpy(video)}
        if "auxiliary" in self.sources:
            middle = columns["video"].shape[1] // 2
            found["images"] = torch.from_numpy(columns["video"][rows, middle])
        for source in self.sources:
            if missing := [name for name in COLUMNS[source] if name not in columns]:
                raise ValueError(f"{self.folder} has no column {missing[0]!r}, so {source!r} is no source here.")
            said = map(BETWEEN.join, zip(*(columns[name][rows] for name in COLUMNS[source]), strict=True))
            sentences, place = np.unique(list(said), return_inverse=True)
            token_ids, attention_mask = self.tokenizer(sentences.tolist(), self.text_length)
            found[f"{source}_token_ids"] = torch.from_numpy(token_ids[place])
            found[f"{source}_attention_mask"] = torch.from_numpy(attention_mask[place])
        if "label" in columns:
            found["labels"] = torch.from_numpy(columns["label"][rows])
        return found

    def _evenly(self, stored: str, rows: np.ndarray) -> np.ndarray:
        """As many rows, at the same places of the seed's order, after that order has been dealt out class by class."""
        labels = self.stored[stored]["label"]
        order = permutation(len(labels), self.seed, SPLITS)
        return deal(order, labels)[np.argsort(order)[rows]]


def check_sources(sources: Sequence[str]) -> None:
    """Refuse what there is not.

    Raises:
        ValueError: a source is unknown or named twice.
    """
    if len(set(sources)) < len(sources) or not set(sources) <= set(COLUMNS):
        raise ValueError(f"sources ({', '.join(sources)}) must be some of {', '.join(COLUMNS)}, each once.")


def shown_frames(stored: int, shown: int | None) -> Int[np.ndarray, " shown"]:
    """Which frames of a clip are shown: all, the middle one, or the first, the last and others evenly between.

    The middle one is number `stored // 2`, as in CLIP-ViP's official code; see also `video.files.evenly`.

    Raises:
        ValueError: there are not that many.
    """
    if shown is None:
        return np.arange(stored)
    if not 1 <= shown <= stored:
        raise ValueError(f"frames ({shown}) must be between 1 and {stored}, the frames of a stored clip, or null.")
    return np.array([stored // 2]) if shown == 1 else np.linspace(0, stored - 1, shown).astype(np.int64)


def deal(order: Int[np.ndarray, " rows"], labels: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    """Rows in an order that has every class once before any twice: the first n are balanced, whatever n is."""
    of_class = np.argsort(labels[order], kind="stable")  # places in the order, class by class
    counts = np.unique(labels, return_counts=True)[1]
    turn = np.empty(len(order), np.int64)
    turn[of_class] = np.concatenate([np.arange(count) for count in counts])
    return order[np.argsort(turn, kind="stable")]


class VideoTextBatches(Dataset):
    """Training batches; item `(epoch, place)` depends on the seed and on that pair only. A last part is left out.

    Args:
        columns: of all rows, with `labels` if batches are of classes.
        seed: of the order.
        batches: see `VideoTexts`. Of `classes`, an epoch has rows // classes batches; a class with fewer rows than that
            shows them again, one with more keeps some for another epoch.
        batch_size: rows of a step.
        portion: what this process takes of each step, which has one place for each accumulated batch.

    Raises:
        ValueError: the batch is larger than the data, or is not of as many rows as there are classes.
    """

    def __init__(
        self, columns: dict[str, Tensor], *, seed: int, batches: str, batch_size: int, portion: Portion = WHOLE
    ):
        self.columns, self.seed, self.batches, self.batch_size = columns, seed, batches, batch_size
        self.portion, self.places = portion, portion.places(len(columns["video"]), batch_size)
        self.epoch, self.order = -1, torch.empty(0)
        if batches == "classes" and (found := len(self._classes())) != batch_size:
            raise ValueError(f"batch_size ({batch_size}) must be {found}: each of the classes once, as batches says.")

    def __len__(self) -> int:
        return self.places

    @property
    def _steps(self) -> int:
        return len(self.columns["video"]) // self.batch_size

    def __getitem__(self, at: tuple[int, int]) -> Batch:
        epoch, place = at
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self.epoch_order(epoch).flatten()
        return _batch(self.columns, self.order[self.portion.window(place, self.batch_size)])

    def epoch_order(self, epoch: int) -> Int[Tensor, "steps batch"]:
        """The rows of each step of an epoch."""
        order = permutation(len(self.columns["video"]), self.seed, ORDER, epoch=epoch)
        if self.batches == "shuffled":
            return torch.from_numpy(order[: self._steps * self.batch_size].reshape(-1, self.batch_size))
        labels = self.columns["labels"].numpy()[order]
        rows = [np.resize(order[labels == label], self._steps) for label in self._classes()]
        return torch.from_numpy(np.stack(rows, axis=1))

    def _classes(self) -> Int[np.ndarray, " classes"]:
        if "labels" not in self.columns:
            raise ValueError("batches is 'classes', but the data set has no column 'label': take 'shuffled'.")
        return np.unique(self.columns["labels"].numpy())


def _batch(columns: dict[str, Tensor], rows: Tensor | slice) -> Batch:
    batch = {name: values[rows] for name, values in columns.items()}
    batch["video"] = rearrange(batch["video"], "b t h w c -> b c t h w").contiguous()
    if "images" in batch:
        batch["images"] = rearrange(batch["images"], "b h w c -> b c h w").contiguous()
    return batch
