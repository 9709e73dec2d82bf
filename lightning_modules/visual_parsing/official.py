"""Official data sets of captions, questions, statements, and statements about two pictures, read while training.

The batches are those of `pictures.AskedPictures`, with `sizes`: pictures keep their aspect ratio and lie at the upper
left of a square. Its side is the same in all batches, so that what a picture becomes depends on no other one. Read
`OfficialPictures` first. Pictures are decoded in worker processes; a batch depends on seed and epoch alone.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_modules.datamodules.labelled import portion
from lightning_modules.datamodules.streamed import EpochBatches
from lightning_modules.datasets import snli_ve, storage, vqa2
from lightning_modules.datasets.pictures import decode
from lightning_modules.datasets.splits import Part, check_splits, draw_splits
from lightning_modules.datasets.streaming import RowGroups, hold_out
from lightning_modules.datasets.tokenizers import TextTokenizer, tokenizer_called
from lightning_modules.metrics.picture_questions import credits_of
from lightning_modules.processes import loader_workers, outlive_signals
from lightning_modules.settings import Count
from lightning_modules.visual_parsing.pictures import Retrieval, Task

FILL = (124, 116, 104)  # ImageNet's mean colour, which is zero once normalised
CAPTIONS = 5  # of a picture that are searched, as papers report it
TEXTS = {"caption": "captions", "question": "questions", "entailment": "statements", "pair": "statements"}
NEEDED = {
    "caption": (),
    "question": ("answers", "kinds", "question_ids"),
    "entailment": ("labels",),
    "pair": ("labels", "groups"),
}
UNANSWERED = "{}"  # what people said about a question of a test set
TRUTH = ("false", "true")


@dataclass(frozen=True)
class Source:
    """What is stored of a source, its pictures aside.

    Attributes:
        groups: reads pictures.
        columns: lists of texts of each row.
        rows: which rows the pictures of a unit are: one, or two of a pair.
        unit: of each item, which is one text with its picture or pictures; of captions there is one item of a unit.
        number: of each item, which text of its unit.
        unit_ends: where each row group ends, counted in units.
    """

    groups: RowGroups
    columns: dict[str, np.ndarray]
    rows: int
    unit: np.ndarray
    number: np.ndarray
    unit_ends: np.ndarray

    @property
    def ends(self) -> np.ndarray:
        """Where each row group ends, counted in items."""
        return np.searchsorted(self.unit, self.unit_ends, side="left")


class OfficialPictures(LightningDataModule):
    """Pictures with the texts of one task, from disk.

    Args:
        folder: a prepared data set: `captioned_pictures`, `coco_captions` or `flickr30k` for captions, `vqa2`,
            `snli_ve`, `nlvr2`.
        seed: decides rows and, with the epoch, their order.
        splits: for each split its source and number of pictures, of pairs where there are two, see
            `datasets.splits.draw_splits` and `streaming.hold_out`.
        also: sources that are judged besides the split test, whole.
        task: what the texts are.
        part: the part of a mixture that is read; null for a data set of its own.
        tokenizer: see `tokenizer_called`.
        text_length: tokens of a text, special ones included.
        batch_size: texts of one optimiser step, over all processes and accumulated batches; null where nothing is
            trained.
        evaluation_batch_size: texts that are judged at a time.
        short: side that the shorter edge of a picture is brought to, in pixels, unless the longer one then exceeds
            `long`.
        long: side of the square that all pictures lie in.

    Raises:
        ValueError: a split is missing or unknown, a source is judged besides that rows are learnt from or watched, or
            the longer side is to be the shorter one.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        task: Task,
        part: str | None,
        tokenizer: str,
        text_length: Count,
        batch_size: Count | None = None,
        evaluation_batch_size: Count,
        short: Count,
        long: Count,
        also: Sequence[str] = (),
    ):
        super().__init__()
        check_splits(splits, batch_size)
        if long < short:
            raise ValueError(f"data.long is {long} and data.short {short}: the longer side cannot be the shorter one.")
        if twice := sorted(set(also) & {part["source"] for part in splits.values()}):
            raise ValueError(
                f"data.also has {', '.join(twice)}, of which data.splits takes rows: what is judged besides is neither "
                "learnt from nor watched."
            )
        self.also = tuple(also)
        self.folder = folder if part is None else folder / part
        self.seed, self.splits, self.task = seed, splits, task
        self.tokenizer_name, self.text_length = tokenizer, text_length
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.short, self.long = short, long
        self.kinds = list(vqa2.KINDS)

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """What makes ids of texts."""
        return tokenizer_called(self.tokenizer_name)

    @cached_property
    def answers(self) -> list[str]:
        """The answers to questions that can be given; none in other tasks."""
        return vqa2.read_answers(self.folder) if self.task == "question" else []

    @cached_property
    def _sources(self) -> dict[str, Source]:
        names = {*self.also, *(part["source"] for part in self.splits.values())}
        return {name: self._source(name) for name in sorted(names)}

    def _source(self, name: str) -> Source:
        there = storage.card(self.folder)["columns"]
        wanted = [TEXTS[self.task], *NEEDED[self.task]]
        if missing := [column for column in ("image", *wanted) if column not in there]:
            raise ValueError(
                f"{self.folder} has the columns {', '.join(there)}, but the task {self.task} needs "
                f"{', '.join(missing)}: prepare the data set of that task, or set data.task or data.part."
            )
        texts = RowGroups(self.folder, name, wanted)
        columns = texts[np.arange(len(texts))]
        rows = 2 if self.task == "pair" else 1
        units = len(texts) // rows  # a rehearsal may cut the last pair in two
        counts = np.array([len(said) for said in columns[TEXTS[self.task]][::rows][:units]])
        if self.task == "caption":
            counts = np.minimum(counts, 1)
        unit = np.repeat(np.arange(units), counts)
        number = np.arange(len(unit)) - np.repeat(np.cumsum(counts) - counts, counts)
        ends = np.minimum(texts.ends // rows, units)
        return Source(RowGroups(self.folder, name, ["image"]), columns, rows, unit, number, ends)

    @cached_property
    def rows(self) -> dict[str, tuple[str, np.ndarray]]:
        """Source and numbers of the pictures, or pairs, of each split."""
        ends = {name: source.unit_ends for name, source in self._sources.items()}
        counts = {name: int(of[-1]) for name, of in ends.items() if name not in self.also}
        return draw_splits(counts, self.splits, self.seed, lambda name, sizes: hold_out(ends[name], sizes, self.seed))

    def items(self, split: str) -> tuple[Source, Int[np.ndarray, " items"]]:
        """The source of a split, or one of `also`, and the numbers of its items there.

        Raises:
            ValueError: there is no such split.
        """
        if split in self.also:
            source = self._sources[split]
            return source, np.arange(len(source.unit))
        if split not in self.rows:
            raise ValueError(f"there is no split {split!r} in data.splits ({', '.join(self.splits)}).")
        name, units = self.rows[split]
        source = self._sources[name]
        return source, np.flatnonzero(np.isin(source.unit, units))

    def train_dataloader(self) -> DataLoader:
        """The training batches, the epoch set by Lightning.

        Raises:
            ValueError: nobody answered some of the questions.
        """
        source, items = self.items("train")
        self._check_answered(source, items, "train")
        mine = portion(self)
        order = EpochBatches(source.ends, batch_size=self.batch_size, seed=self.seed, portion=mine, rows=items)
        values = mine.rows(self.batch_size) * source.rows * 3 * self.long**2
        return DataLoader(
            Texts(self, source), sampler=order, batch_size=None, num_workers=loader_workers(mine.processes, values),
            worker_init_fn=outlive_signals, pin_memory=torch.cuda.is_available(),
        )  # fmt: skip

    def evaluation_batches(self, split: str) -> Iterator[dict[str, Tensor]]:
        """One pass over a split in the order of its rows; of captions, the first of each picture.

        Raises:
            ValueError: nobody answered some of the questions, and the split is another one than `test`.
        """
        source, items = self.items(split)
        if split != "test":
            self._check_answered(source, items, split)
        for start in range(0, len(items), self.evaluation_batch_size):
            yield self.batch(source, items[start : start + self.evaluation_batch_size])

    def _check_answered(self, source: Source, items: Int[np.ndarray, " items"], split: str) -> None:
        if self.task == "question" and any(
            UNANSWERED in source.columns["answers"][unit] for unit in np.unique(source.unit[items])
        ):
            raise ValueError(
                f"data.splits.{split} has questions of {self.folder} without answers, from which nothing can be "
                "learnt: take a source that has them; only data.splits.test may have none."
            )

    def batch(self, source: Source, items: Int[np.ndarray, " batch"], turn: int | None = None) -> dict[str, Tensor]:
        """Some items. Captions take turns from epoch to epoch; without a turn, the first is given.

        `rows` are numbers of items, of questions the official ids.
        """
        units, numbers = source.unit[items], source.number[items].tolist()
        said = source.columns[TEXTS[self.task]]
        if self.task == "caption" and turn is not None:
            numbers = [(turn + unit) % len(said[unit]) for unit in units.tolist()]
        at = list(zip((units * source.rows).tolist(), numbers, strict=True))
        token_ids, attention_mask = self.tokenizer([said[row][number] for row, number in at], self.text_length)
        found = {"token_ids": torch.from_numpy(token_ids), "attention_mask": torch.from_numpy(attention_mask)}
        found |= {"rows": torch.from_numpy(items), **self._labels(source, at)}
        images, sizes = self._pictures(source.groups, units[:, None] * source.rows + np.arange(source.rows))
        if source.rows == 1:
            images, sizes = images[:, 0], sizes[:, 0]
        return {"images": images, "sizes": sizes, **found}

    def _labels(self, source: Source, at: list[tuple[int, int]]) -> dict[str, Tensor]:
        """What is right, by the name that the task has for it; of questions that nobody answered, kind -1."""
        told = {name: [source.columns[name][row][number] for row, number in at] for name in NEEDED[self.task]}
        if self.task == "question":
            kinds = [-1 if people == UNANSWERED else vqa2.KINDS.index(kind)
                     for people, kind in zip(told["answers"], told["kinds"], strict=True)]  # fmt: skip
            ids = torch.tensor([int(number) for number in told["question_ids"]])
            return {"targets": self._targets(told["answers"]), "kinds": torch.tensor(kinds), "rows": ids}
        if self.task == "entailment":
            return {"labels": torch.tensor([snli_ve.LABELS.index(label) for label in told["labels"]])}
        if self.task == "pair":
            labels = torch.tensor([TRUTH.index(label) for label in told["labels"]])
            return {"labels": labels, "groups": torch.tensor([int(group) for group in told["groups"]])}
        return {}

    @cached_property
    def _number_of(self) -> dict[str, int]:
        return {answer: number for number, answer in enumerate(self.answers)}

    def _targets(self, given: list[str]) -> Tensor:
        """What each answer would count: the official accuracy of one who gives it."""
        found = torch.zeros(len(given), len(self.answers))
        for row, people in enumerate(given):
            if people == UNANSWERED:
                continue
            for answer, credit in credits_of(json.loads(people)).items():
                if (number := self._number_of.get(answer)) is not None:
                    found[row, number] = credit
        return found

    def _pictures(
        self, groups: RowGroups, rows: Int[np.ndarray, "batch each"]
    ) -> tuple[UInt8[Tensor, "batch each 3 side side"], Int[Tensor, "batch each 2"]]:
        """Pictures of some rows, each decoded once, and the sizes that they have."""
        used, place = np.unique(rows, return_inverse=True)
        pixels = [scaled(decode(each), self.short, self.long) for each in groups[used]["image"]]
        images, sizes = framed(pixels, self.long)
        place = torch.from_numpy(place.reshape(rows.shape))
        return images[place], sizes[place]

    def retrieval(self, split: str) -> Retrieval:
        """Pictures and up to five captions of each that are to find one another.

        Raises:
            ValueError: the task has no captions.
        """
        if self.task != "caption":
            raise ValueError(f"data.task is {self.task!r}, but only the task caption has captions to be found.")
        source, items = self.items(split)
        units = source.unit[items]
        said = [source.columns[TEXTS["caption"]][unit][:CAPTIONS] for unit in units.tolist()]
        token_ids, attention_mask = self.tokenizer([text for texts in said for text in texts], self.text_length)
        return {
            "images": lambda rows: self._pictures(source.groups, units[np.asarray(rows)][:, None])[0][:, 0],
            "sizes": lambda rows: self._pictures(source.groups, units[np.asarray(rows)][:, None])[1][:, 0],
            "token_ids": torch.from_numpy(token_ids),
            "attention_mask": torch.from_numpy(attention_mask),
            "picture_of": torch.from_numpy(np.repeat(np.arange(len(units)), list(map(len, said)))),
        }


class Texts(Dataset):
    """Item `(epoch, items)`: these items of a source."""

    def __init__(self, data: OfficialPictures, source: Source):
        self.data, self.source = data, source

    def __len__(self) -> int:
        return len(self.source.unit)

    def __getitem__(self, at: tuple[int, np.ndarray]) -> dict[str, Tensor]:
        epoch, items = at
        return self.data.batch(self.source, items, epoch)


def scaled(picture: UInt8[np.ndarray, "h w 3"], short: int, long: int) -> UInt8[np.ndarray, "height width 3"]:
    """A picture whose shorter side is `short`, or less if its longer one would exceed `long` (bicubic, antialiased)."""
    from PIL import Image

    height, width = picture.shape[:2]
    factor = min(short / min(height, width), long / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def framed(
    pictures: list[UInt8[np.ndarray, "_ _ 3"]], side: int
) -> tuple[UInt8[Tensor, "rows 3 side side"], Int[Tensor, "rows 2"]]:
    """Pictures at the upper left of squares, and their heights and widths."""
    frames = np.empty((len(pictures), side, side, 3), np.uint8)
    frames[:] = FILL
    for frame, picture in zip(frames, pictures, strict=True):
        frame[: picture.shape[0], : picture.shape[1]] = picture
    sizes = torch.tensor([picture.shape[:2] for picture in pictures])
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2))), sizes
