"""Pictures with texts as ids of a language model: a prompt, and an answer that is learnt.

Read `IllustratedTexts.batch` first. A batch depends on its place in the epochs alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.datamodules.labelled import EpochSteps, portion
from lightning_modules.datasets import storage
from lightning_modules.datasets.pictures import decode
from lightning_modules.datasets.splits import ORDER, Part, Portion, draw_splits, permutation, random_words
from lightning_modules.datasets.squares import Fit, on_square, square
from lightning_modules.settings import STRICT, Count, Share

Kind = Literal["caption", "question", "region"]
Side = Literal["left", "right"]
Columns = dict[str, Tensor | np.ndarray]
IGNORED = -100  # label of what is not learnt, as `torch` and `transformers` have it
KINDS, CHOICES, TEXT_ONLY = 110, 111, 112  # purposes of random words, none of which `datasets.splits` has
WORLD = ("color", "shape", "size", "cell", "boxes")  # columns that a batch has where the data set has them


@runtime_checkable
class Speaker(Protocol):
    """What is asked of a language model here: how it writes texts as ids."""

    tokenizer: object
    start: list[int]

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without start and end tokens."""


class Form(TypedDict):
    """What stands around a text: `{}` is the question, and `<image>` where the model has such a token.

    `caption`: before a caption; `question`: before an answer; `sampled`: any of the captions, not the first one.
    """

    __pydantic_config__ = STRICT
    caption: str
    question: str
    sampled: bool


WORLD_FORM: Form = {"caption": "", "question": "user : {} assistant :", "sampled": False}


class Text(NamedTuple):
    """What is read, and what is to be written."""

    prompt: str
    answer: str


class IllustratedTexts(LightningDataModule):
    """Pictures and texts; batches have right labels for a causal language model.

    `images` (uint8, batch 3 h w), `has_image` (bool), `box` (float32, batch 4: left, top, right, bottom of what the
    text is about, in fractions; 0 0 1 1 but for regions), `rows`, `token_ids`, `attention_mask` (bool), `labels` (-100
    for the prompt and the padding), and the labels of the world where the data set has them (`scene/<name>`).

    Args:
        folder: a prepared data set with `captions` or `caption`, unless no text is one, with `questions` and `answers`
            for questions, and with `regions` and `boxes` for regions.
        seed: decides rows, orders and texts.
        splits: for each split its source and number of rows, see `datasets.splits.draw_splits`.
        batch_size: texts of one optimiser step.
        evaluation_batch_size: texts that are looked at at a time.
        length: ids of a text at most; a longer one is cut at its end.
        questions: share of the training texts that are answers to questions.
        regions: share of the training texts that are phrases about one region; the rest are captions.
        text_only: share of the training texts that come without their picture.
        padding: side on which shorter texts are filled up.
        form: see `Form`.
        image_size: side of the squares that encoded images become; null for raw ones.

    Raises:
        ValueError: a split is unknown, or there is none to train on.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        batch_size: Count,
        evaluation_batch_size: Count,
        length: Count,
        questions: Share,
        regions: Share = 0.0,
        text_only: Share,
        padding: Side,
        form: Form = WORLD_FORM,
        image_size: Count | None = None,
    ):
        super().__init__()
        if "train" not in splits or not set(splits) <= {"train", "val", "test"}:
            raise ValueError(f"splits has {list(splits)}, expected train and possibly val and test.")
        self.folder, self.seed, self.splits, self.length = folder, seed, splits, length
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        if questions + regions > 1:
            raise ValueError(
                f"questions ({questions}) and regions ({regions}) are more than 1 together: they are shares."
            )
        self.questions, self.regions, self.text_only = questions, regions, text_only
        self.padding, self.form, self.image_size = padding, form, image_size
        self.language: Speaker | None = None
        self.fit: Fit = "squash"

    def for_models(self, language: Speaker, fit: Fit = "squash") -> None:
        """Whose ids the texts consist of, and how encoded pictures become squares; called before the first batch.

        Raises:
            ValueError: there are regions, and pictures are cut, so that some of them would be lost.
        """
        if self.regions and fit == "crop":
            raise ValueError("data.regions need whole pictures, but the tower's fit is crop: set it to pad or squash.")
        self.language, self.fit = language, fit

    @cached_property
    def columns(self) -> dict[str, Columns]:
        """The rows of each split: `images` (uint8 rows 3 h w, or encoded), texts, and the world's labels as tensors.

        Raises:
            ValueError: the data set has no captions, or no questions that were asked for, or `image_size` does not fit.
        """
        rows = draw_splits(storage.card(self.folder)["splits"], self.splits, self.seed)
        found = {}
        for split, (source, index) in rows.items():
            stored = {name: x[index] for name, x in storage.read(self.folder, source).items()}
            found[split] = {"images" if name == "image" else name: x for name, x in stored.items()}
        there = found["train"]
        told = self.questions + self.regions < 1
        wanted = [("caption",) if "caption" in there else ("captions",)] * told
        wanted += [("questions", "answers")] * bool(self.questions) + [("regions", "boxes")] * bool(self.regions)
        if missing := [name for names in wanted for name in names if name not in there]:
            raise ValueError(
                f"{self.folder} has the columns {', '.join(there)}, but {', '.join(missing)} are missing for data."
                f"questions ({self.questions}), data.regions ({self.regions}) and captions."
            )
        raw = there["images"].dtype == np.uint8
        if raw != (self.image_size is None):
            raise ValueError(f"data.image_size is {self.image_size}: raw images take null, encoded ones a size.")
        for rows in found.values():
            if raw:
                rows["images"] = torch.from_numpy(np.ascontiguousarray(rows["images"].transpose(0, 3, 1, 2)))
            rows |= {name: torch.from_numpy(rows[name]) for name in WORLD if name in rows}
        return found

    def text(self, split: str, row: int, kind: Kind, choice: int) -> Text:
        """A text about a row: a caption, an answer, or a phrase of a region, of which `choice` picks one."""
        columns = self.columns[split]
        if kind == "question":
            number = choice % len(columns["questions"][row])
            return Text(
                self.form["question"].format(columns["questions"][row][number]), columns["answers"][row][number]
            )
        if kind == "region":
            return Text(self.form["caption"], columns["regions"][row][choice % len(columns["regions"][row])])
        told = columns["captions"][row] if "captions" in columns else [columns["caption"][row]]
        return Text(self.form["caption"], told[choice % len(told) if self.form["sampled"] else 0])

    def batch(
        self, split: str, rows: Sequence[int], kinds: Sequence[Kind], choices: Sequence[int], seen: Sequence[bool]
    ) -> dict[str, Tensor]:
        """Texts about some rows, with their pictures where they are seen."""
        texts = [self.text(split, *each) for each in zip(rows, kinds, choices, strict=True)]
        columns, numbers = self.columns[split], torch.tensor(list(rows))
        found = {"rows": numbers, "images": self.images(split, numbers)}
        found["has_image"] = torch.tensor([bool(each) for each in seen])
        found["images"] = found["images"] * found["has_image"][:, None, None, None]
        found |= {f"scene/{name}": columns[name][numbers] for name in WORLD if name in columns}
        found["box"] = torch.tensor([self.box(split, *each) for each in zip(rows, kinds, choices, strict=True)])
        return found | self.ids(texts)

    def box(self, split: str, row: int, kind: Kind, choice: int) -> list[float]:
        """What part of its picture a text is about."""
        if kind != "region":
            return [0.0, 0.0, 1.0, 1.0]
        columns = self.columns[split]
        return self.on_square(split, row, columns["boxes"][row][choice % len(columns["regions"][row])])

    def on_square(self, split: str, row: int, box: Float[Tensor, "4"]) -> list[float]:
        """A box of a picture, in shares of it, as shares of its square."""
        if self.image_size is None or self.fit == "squash":
            return box.tolist()
        height, width = decode(self.columns[split]["images"][row]).shape[:2]
        return on_square((box * box.new_tensor([width, height] * 2)).tolist(), (width, height), self.fit).tolist()

    def images(self, split: str, rows: Int[Tensor, " rows"]) -> UInt8[Tensor, "rows 3 height width"]:
        """Pictures of some rows; encoded ones are decoded now."""
        if self.image_size is None:
            return self.columns[split]["images"][rows]
        encoded = self.columns[split]["images"][rows.numpy()]
        squares = [square(decode(image), self.image_size, self.fit) for image in encoded]
        return torch.from_numpy(np.stack(squares).transpose(0, 3, 1, 2).copy())

    def ids(self, texts: Sequence[Text]) -> dict[str, Tensor]:
        """`token_ids`, `attention_mask` and `labels` of some texts, as long as the longest.

        Raises:
            ValueError: no language model was named.
        """
        if self.language is None:
            raise ValueError("texts have no ids before a language model is named: call `for_models` first.")
        tokenizer, pieces = self.language.tokenizer, []
        for text in texts:
            prompt = prompt_ids(self.language, text.prompt)
            answer = [*self.language.encode(text.answer), tokenizer.eos_token_id]
            pieces.append((prompt[: self.length], answer[: max(0, self.length - len(prompt))]))
        width = max(len(prompt) + len(answer) for prompt, answer in pieces)
        padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        token_ids = torch.full((len(texts), width), padding)
        labels, there = torch.full_like(token_ids, IGNORED), torch.zeros_like(token_ids, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(pieces):
            start = width - len(prompt) - len(answer) if self.padding == "left" else 0
            middle, end = start + len(prompt), start + len(prompt) + len(answer)
            token_ids[row, start:end] = torch.tensor(prompt + answer)
            labels[row, middle:end] = torch.tensor(answer, dtype=torch.long)
            there[row, start:end] = True
        return {"token_ids": token_ids, "attention_mask": there, "labels": labels}

    def train_dataloader(self) -> DataLoader:
        """The training batches, the epoch set by Lightning."""
        batches = IllustratedBatches(self, portion(self))
        return DataLoader(batches, sampler=EpochSteps(len(batches)), batch_size=None)

    @property
    def told(self) -> bool:
        """Whether there are captions of whole pictures."""
        return not {"caption", "captions"}.isdisjoint(self.columns["train"])

    def evaluation_batches(self, split: str, kind: Kind | None = None, choice: int = 0) -> Iterator[dict[str, Tensor]]:
        """One pass over a split in the order of its rows, with texts of one kind, all with their pictures.

        Args:
            split: one of the splits.
            kind: of texts; None for captions, or regions where there are none.
            choice: which text of each picture.
        """
        kind = kind or ("caption" if self.told else "region")
        rows = len(self.columns[split]["images"])
        for start in range(0, rows, self.evaluation_batch_size):
            numbers = range(start, min(start + self.evaluation_batch_size, rows))
            count = len(numbers)
            yield self.batch(split, numbers, [kind] * count, [choice] * count, [True] * count)


class IllustratedBatches(Dataset):
    """Batches of the split train; item `(epoch, place)` depends on the seed and that pair only."""

    def __init__(self, data: IllustratedTexts, portion: Portion):
        self.data, self.portion, self.rows = data, portion, len(data.columns["train"]["images"])
        self.places = portion.places(self.rows, data.batch_size)

    def __len__(self) -> int:
        return self.places

    def __getitem__(self, at: tuple[int, int]) -> dict[str, Tensor]:
        epoch, place = at
        window = self.portion.window(place, self.data.batch_size)
        rows = permutation(self.rows, self.data.seed, ORDER, 0, epoch)[window]
        drawn, ends = self._shares(KINDS, epoch)[rows], np.cumsum([self.data.questions, self.data.regions])
        seen = self._shares(TEXT_ONLY, epoch)[rows] >= self.data.text_only
        choices = (self._words(CHOICES, epoch)[rows] >> np.uint64(33)).astype(np.int64)
        kinds = [("question", "region", "caption")[place] for place in np.searchsorted(ends, drawn, side="right")]
        return self.data.batch("train", rows.tolist(), kinds, choices.tolist(), seen.tolist())

    def _words(self, purpose: int, epoch: int) -> np.ndarray:
        return random_words(self.rows, self.data.seed, purpose, 0, epoch)

    def _shares(self, purpose: int, epoch: int) -> np.ndarray:
        return (self._words(purpose, epoch) >> np.uint64(11)) * 2.0**-53


def prompt_ids(language: Speaker, prompt: str) -> list[int]:
    """What a language model reads before it writes: its start token, and the prompt."""
    return [*language.start, *language.encode(prompt)]


def caption_prompt(language: Speaker, form: Form = WORLD_FORM) -> list[int]:
    """Ids after which a caption is written."""
    return prompt_ids(language, form["caption"])


def question_prompt(language: Speaker, question: str, form: Form = WORLD_FORM) -> list[int]:
    """Ids after which the answer to a question is written."""
    return prompt_ids(language, form["question"].format(question))


def scene_columns(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The labels of the world in a batch, by their own names."""
    return {name.removeprefix("scene/"): x for name, x in batch.items() if name.startswith("scene/")}
