"""The captioned world's pictures with captions, questions, statements, or statements about two pictures.

One task at a time; a batch depends on its place in the epochs alone. Read `AskedPictures` first. The official data sets
give the same batches (`official.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from pydantic import Field
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.datamodules.labelled import EpochSteps, portion
from lightning_modules.datasets import storage
from lightning_modules.datasets.splits import ORDER, Part, Portion, check_splits, draw_splits, permutation
from lightning_modules.datasets.tokenizers import TextTokenizer, tokenizer_called
from lightning_modules.datasets.world import asked
from lightning_modules.settings import Count, Natural

FIRST = (0,)  # the first caption alone
Task = Literal["caption", "question", "entailment", "pair"]
Batch = dict[str, Tensor]


class Retrieval(TypedDict):
    """Pictures and all their captions: `images` gives the pixels of some pictures by their numbers."""

    images: Callable[[Int[np.ndarray, " some"]], UInt8[Tensor, "some 3 height width"]]
    token_ids: Int[Tensor, "captions length"]
    attention_mask: Tensor
    picture_of: Int[Tensor, " captions"]


class Items(NamedTuple):
    """What a split has: pictures, texts and their columns; `picture` is the place of each text's picture, or pictures.

    Of captions, an item is a picture, and `texts` has as many of its captions as there are; elsewhere there is one.
    """

    images: UInt8[Tensor, "pictures 3 height width"]
    picture: Int[Tensor, "..."]
    texts: list[tuple[Tensor, Tensor]]
    columns: Batch

    def batch(self, rows: Int[Tensor, " batch"], numbers: Int[Tensor, " batch"] | None = None) -> Batch:
        """Some items, each with the text of its number, or the first."""
        if numbers is None:
            numbers = torch.zeros_like(rows)
        token_ids, attention_mask = (torch.stack([texts[part][rows] for texts in self.texts]) for part in (0, 1))
        place = torch.arange(len(rows))
        found = {"images": self.images[self.picture[rows]], "token_ids": token_ids[numbers, place]}
        return found | {
            "attention_mask": attention_mask[numbers, place], "rows": rows,
            **{name: x[rows] for name, x in self.columns.items()},
        }  # fmt: skip


class AskedPictures(LightningDataModule):
    """Pictures in memory with the texts of one task.

    Batches have `images`, uint8 (batch 3 height width), of pairs (batch 2 3 height width); `token_ids` and
    `attention_mask` (batch length); `rows`; of questions `targets` (batch answers) and `kinds`, an index into `kinds`;
    of statements `labels`: contradiction 0, neutral 1, entailment 2; of pairs `labels`: 1 if what is said is true.

    Args:
        folder: a data set that `asked.prepare` has written.
        seed: decides rows and, with the epoch, their order.
        splits: for each split (train, val, test) its source and number of pictures, see `datasets.splits.draw_splits`.
        task: what the texts are.
        tokenizer: `asked` for the words of these texts, or see `tokenizer_called`.
        text_length: tokens of a text, special ones included.
        batch_size: rows of one optimiser step, over all processes and accumulated batches; null where nothing is
            trained.
        evaluation_batch_size: rows that are judged at a time.
        turns: which caption of a picture is learnt from, epoch by epoch, over and over, each picture beginning with
            another one: 0 lists all quadrants, 1 tells relations, and 2 the places of two things.

    Raises:
        ValueError: a split is missing or unknown, there is no such caption, or a text is too long.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        task: Task,
        tokenizer: str,
        text_length: Count,
        batch_size: Count | None = None,
        evaluation_batch_size: Count,
        turns: Annotated[list[Natural], Field(min_length=1)] = FIRST,
    ):
        super().__init__()
        check_splits(splits, batch_size)
        self.folder, self.seed, self.splits, self.task = folder, seed, splits, task
        self.tokenizer_name, self.text_length = tokenizer, text_length
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.answers, self.kinds = asked.answers(), list(asked.KINDS)
        self.turns = list(turns)

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """What makes ids of texts."""
        return asked.asked_tokenizer() if self.tokenizer_name == "asked" else tokenizer_called(self.tokenizer_name)

    @cached_property
    def rows(self) -> dict[str, tuple[str, np.ndarray]]:
        """Source and picture numbers of each split."""
        return draw_splits(storage.card(self.folder)["splits"], self.splits, self.seed)

    @cached_property
    def _sources(self) -> dict[str, dict[str, np.ndarray]]:
        return {source: storage.read(self.folder, source) for source in sorted({s for s, _ in self.rows.values()})}

    @cached_property
    def _items(self) -> dict[str, Items]:
        makers = {"caption": self._captions, "question": self._questions, "entailment": self._statements,
                  "pair": self._pairs}  # fmt: skip
        return {split: makers[self.task](self._sources[source], index) for split, (source, index) in self.rows.items()}

    def items(self, split: str) -> Items:
        """All of a split.

        Raises:
            ValueError: there is no such split.
        """
        if split not in self._items:
            raise ValueError(f"there is no split {split!r} in data.splits ({', '.join(self.splits)}).")
        return self._items[split]

    def train_dataloader(self) -> DataLoader:
        """The training batches, the epoch set by Lightning."""
        items = self.items("train")
        if max(self.turns) >= len(items.texts):
            raise ValueError(
                f"data.turns is {self.turns}, but there are {len(items.texts)} texts of each picture (0 to "
                f"{len(items.texts) - 1})."
            )
        batches = Batches(items, self.batch_size, self.seed, portion(self), self.turns)
        return DataLoader(batches, sampler=EpochSteps(len(batches)), batch_size=None)

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        """One pass over a split in the order of its rows; of captions, the first of each picture."""
        items = self.items(split)
        for rows in torch.arange(len(items.picture)).split(self.evaluation_batch_size):
            yield items.batch(rows)

    def retrieval(self, split: str) -> Retrieval:
        """Pictures and captions that are to find one another: those that are learnt from.

        Raises:
            ValueError: the task has no captions.
        """
        if self.task != "caption":
            raise ValueError(f"data.task is {self.task!r}, but only the task caption has captions to be found.")
        items = self.items(split)
        texts = [items.texts[number] for number in sorted(set(self.turns))]
        ids, masks = (torch.cat(parts) for parts in zip(*texts, strict=True))
        return {
            "images": lambda rows: items.images[torch.as_tensor(rows)],
            "token_ids": ids,
            "attention_mask": masks,
            "picture_of": torch.arange(len(items.picture)).repeat(len(texts)),
        }

    def _text(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        longest = max(self.tokenizer.backend.encode_batch(list(sentences)), key=len)
        if len(longest) > self.text_length:
            raise ValueError(
                f"data.text_length is {self.text_length}, but {self.tokenizer.backend.decode(longest.ids)!r} takes "
                f"{len(longest)} tokens: raise it, so that no text is cut."
            )
        token_ids, attention_mask = self.tokenizer(sentences, self.text_length)
        return torch.from_numpy(token_ids), torch.from_numpy(attention_mask)

    def _captions(self, stored: dict[str, np.ndarray], index: np.ndarray) -> Items:
        said = stored["captions"][index]
        texts = [self._text([captions[number] for captions in said]) for number in range(min(map(len, said)))]
        return Items(_pixels(stored["image"][index]), torch.arange(len(index)), texts, {})

    def _questions(self, stored: dict[str, np.ndarray], index: np.ndarray) -> Items:
        answer, kind = ({word: number for number, word in enumerate(words)} for words in (self.answers, self.kinds))
        columns = [stored[name][index] for name in ("questions", "answers", "kinds")]
        rows = [
            (place, *each) for place, said in enumerate(zip(*columns, strict=True)) for each in zip(*said, strict=True)
        ]
        picture, questions, answers, kinds = zip(*rows, strict=True)
        right = torch.tensor([answer[word] for word in answers])
        columns = {"targets": F.one_hot(right, len(answer)).float(), "kinds": torch.tensor([kind[x] for x in kinds])}
        return Items(_pixels(stored["image"][index]), torch.tensor(picture), [self._text(questions)], columns)

    def _statements(self, stored: dict[str, np.ndarray], index: np.ndarray) -> Items:
        said = [text for statements in stored["statements"][index] for text in statements]
        labels = torch.from_numpy(stored["labels"][index])
        picture = torch.arange(len(index)).repeat_interleave(labels.shape[1])
        return Items(_pixels(stored["image"][index]), picture, [self._text(said)], {"labels": labels.flatten()})

    def _pairs(self, stored: dict[str, np.ndarray], index: np.ndarray) -> Items:
        """Statements of the rows of a split; the partner may be a picture that no row of it is."""
        ids = stored["id"]
        order = np.argsort(ids)
        partner = order[np.searchsorted(ids, stored["partner"][index], sorter=order)]
        used, place = np.unique(np.stack([index, partner], axis=1), return_inverse=True)
        labels = torch.from_numpy(stored["pair_label"][index])
        texts = [self._text(stored["pair_statement"][index].tolist())]
        return Items(_pixels(stored["image"][used]), torch.from_numpy(place.reshape(-1, 2)), texts, {"labels": labels})


class Batches(Dataset):
    """Training batches; item `(epoch, place)` depends on the seed and on that pair only.

    Captions take `turns` from epoch to epoch, and from picture to picture: a network that reads one form of caption for
    a whole epoch forgets the others. Rows that do not fill a batch are left out of an epoch.
    """

    def __init__(self, items: Items, batch_size: int, seed: int, part: Portion, turns: Sequence[int] = FIRST):
        self.items, self.batch_size, self.seed, self.portion = items, batch_size, seed, part
        self.turns = torch.tensor(turns)
        self.places = part.places(len(items.picture), batch_size)
        self.epoch, self.order = -1, torch.empty(0)

    def __len__(self) -> int:
        return self.places

    def __getitem__(self, at: tuple[int, int]) -> Batch:
        epoch, place = at
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = torch.from_numpy(permutation(len(self.items.picture), self.seed, ORDER, 0, epoch))
        rows = self.order[self.portion.window(place, self.batch_size)]
        return self.items.batch(rows, self.turns[(epoch + rows) % len(self.turns)])


def _pixels(stored: UInt8[np.ndarray, "rows height width 3"]) -> UInt8[Tensor, "rows 3 height width"]:
    return torch.from_numpy(np.ascontiguousarray(stored.transpose(0, 3, 1, 2)))
