"""Pictures with texts as ids of a language model: prompts, and answers that are learnt.

Read `IllustratedTexts.batch` first. A batch depends on its place in the epochs alone.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, NotRequired, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.datamodules.labelled import EpochSteps, portion
from lightning_modules.datamodules.streamed import EpochBatches
from lightning_modules.datasets import storage
from lightning_modules.datasets.pictures import decode
from lightning_modules.datasets.splits import ORDER, Part, Portion, check_splits, draw_splits, permutation, random_words
from lightning_modules.datasets.squares import Fit, on_square, square
from lightning_modules.datasets.streaming import RowGroups, hold_out
from lightning_modules.processes import loader_workers, outlive_signals
from lightning_modules.settings import STRICT, Count, Share

Kind = Literal["caption", "question", "region"]
Side = Literal["left", "right"]
Columns = dict[str, Tensor | np.ndarray]
IGNORED = -100  # label of what is not learnt, as `torch` and `transformers` have it
PURPOSES = KINDS, CHOICES, TEXT_ONLY = 110, 111, 112  # of random words; `datasets.splits` has none of them
WORDS = 4  # of a step of Philox
UPRIGHT = 4  # EXIF's orientations up to this one keep width and height apart from turns by 180 degrees
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

    `caption`: before a caption; `question`: before an answer; `sampled`: any of the captions, not the first one;
    `turn`: before each further answer of a conversation, all of whose answers are then learnt in one text, as LLaVA
    does; without it, or null, one question of each picture is drawn.
    """

    __pydantic_config__ = STRICT
    caption: str
    question: str
    sampled: bool
    turn: NotRequired[str | None]


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
        streamed: whether the training rows are read by the row group, for data larger than memory; their order is then
            that of `WindowBatches`, and rows of other splits of the same source are drawn by `hold_out`.

    Raises:
        ValueError: a split is unknown, or `form` has no place for the question.
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
        streamed: bool = False,
    ):
        super().__init__()
        check_splits(splits, batch_size)
        self.folder, self.seed, self.splits, self.length = folder, seed, splits, length
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        if questions + regions > 1:
            raise ValueError(
                f"questions ({questions}) and regions ({regions}) are more than 1 together: they are shares."
            )
        self.questions, self.regions, self.text_only = questions, regions, text_only
        check_form(form)
        self.padding, self.form, self.image_size, self.streamed = padding, form, image_size, streamed
        self.language: Speaker | None = None
        self.fit: Fit = "squash"

    def for_models(self, language: Speaker, fit: Fit = "squash") -> None:
        """Whose ids the texts consist of, and how encoded pictures become squares; called before the first batch.

        Raises:
            ValueError: there are regions, and pictures are cut, so that some of them would be lost; or `length` leaves
                no place for an answer.
        """
        if self.regions and fit == "crop":
            raise ValueError("data.regions need whole pictures, but the tower's fit is crop: set it to pad or squash.")
        used = ["question"] * bool(self.questions) + ["caption"] * (self.questions < 1)
        longest = max(len(prompt_ids(language, self.form[name].replace("{}", ""))) for name in used)
        if self.length <= longest:
            raise ValueError(
                f"data.length is {self.length}, but what stands before an answer takes {longest} tokens: set it to a "
                "length with room for the answer."
            )
        self.language, self.fit = language, fit

    @cached_property
    def rows(self) -> dict[str, tuple[str, np.ndarray]]:
        """The source and the row numbers of each split."""
        if not self.streamed:
            return draw_splits(storage.card(self.folder)["splits"], self.splits, self.seed)
        ends = {part["source"]: RowGroups(self.folder, part["source"]).ends for part in self.splits.values()}
        counts = {source: int(of[-1]) for source, of in ends.items()}
        return draw_splits(
            counts, self.splits, self.seed, lambda source, sizes: hold_out(ends[source], sizes, self.seed)
        )

    @cached_property
    def columns(self) -> dict[str, Columns]:
        """The rows of each split: `images` (uint8 rows 3 h w, or encoded), texts, and the world's labels as tensors.

        Rows of `train` that are streamed are not among them, nor rows without a picture but for `train`.

        Raises:
            ValueError: the data set has no captions, or no questions that were asked for, or `image_size` does not fit.
        """
        self._check_columns()
        found = {}
        for split, (source, index) in self.rows.items():
            if not self.streamed:
                stored = {name: x[index] for name, x in storage.read(self.folder, source).items()}
            elif split != "train":
                stored = RowGroups(self.folder, source)[index]
            else:
                continue
            if split != "train" and self.image_size is not None:
                seen = np.array([len(image) > 0 for image in stored["image"]])
                stored = {name: x[seen] for name, x in stored.items()}
            found[split] = self._as_tensors(stored)
        return found

    def _check_columns(self) -> None:
        card = storage.card(self.folder)
        there = card["columns"]
        wanted = [("caption",) if "caption" in there else ("captions",)] * (self.questions + self.regions < 1)
        wanted += [("questions", "answers")] * bool(self.questions) + [("regions", "boxes")] * bool(self.regions)
        if missing := [name for names in wanted for name in names if name not in there]:
            raise ValueError(
                f"{self.folder} has the columns {', '.join(there)}, but {', '.join(missing)} are missing for data."
                f"questions ({self.questions}), data.regions ({self.regions}) and captions."
            )
        if (card["codec"] == "raw") != (self.image_size is None):
            raise ValueError(f"data.image_size is {self.image_size}: raw images take null, encoded ones a size.")

    def _as_tensors(self, stored: Mapping[str, np.ndarray]) -> Columns:
        rows: Columns = {"images" if name == "image" else name: x for name, x in stored.items()}
        if self.image_size is None:
            rows["images"] = torch.from_numpy(np.ascontiguousarray(rows["images"].transpose(0, 3, 1, 2)))
        return rows | {name: torch.from_numpy(rows[name]) for name in WORLD if name in rows}

    def text(self, split: str, row: int, kind: Kind, choice: int) -> Text:
        """A text about a row: a caption, an answer, or a phrase of a region, of which `choice` picks one."""
        return self._text(self.columns[split], row, kind, choice)

    def _text(self, columns: Columns, row: int, kind: Kind, choice: int) -> Text:
        if kind == "question":
            number = choice % len(columns["questions"][row])
            return Text(
                self.form["question"].format(columns["questions"][row][number]), columns["answers"][row][number]
            )
        if kind == "region":
            return Text(self.form["caption"], columns["regions"][row][choice % len(columns["regions"][row])])
        told = columns["captions"][row] if "captions" in columns else [columns["caption"][row]]
        return Text(self.form["caption"], told[choice % len(told) if self.form["sampled"] else 0])

    def _turns(self, columns: Columns, row: int, kind: Kind, choice: int) -> list[Text]:
        """What is said one after another: all turns of a conversation, or one text."""
        turn = self.form.get("turn")
        if kind != "question" or turn is None:
            return [self._text(columns, row, kind, choice)]
        forms = [self.form["question"]] + [turn] * (len(columns["questions"][row]) - 1)
        said = zip(forms, columns["questions"][row], columns["answers"][row], strict=True)
        return [Text(form.format(question), answer) for form, question, answer in said]

    def batch(
        self, split: str, rows: Sequence[int], kinds: Sequence[Kind], choices: Sequence[int], seen: Sequence[bool]
    ) -> dict[str, Tensor]:
        """Texts about some rows, with their pictures where they are seen; a row without one is not seen."""
        numbers, places = torch.tensor(list(rows)), list(rows)
        if self.streamed and split == "train":
            columns, places = self._as_tensors(self._groups[numbers.numpy()]), range(len(numbers))
        else:
            columns = self.columns[split]
        told = list(zip(places, kinds, choices, strict=True))
        at = torch.tensor(list(places))
        found = {"rows": numbers, "images": self._images(columns, at)}
        there = [self.image_size is None or len(columns["images"][place]) > 0 for place in places]
        found["has_image"] = torch.tensor([bool(each) and own for each, own in zip(seen, there, strict=True)])
        found["images"] = found["images"] * found["has_image"][:, None, None, None]
        found |= {f"scene/{name}": columns[name][at] for name in WORLD if name in columns}
        found["box"] = torch.tensor([self._box(columns, *each) for each in told])
        return found | self.ids([self._turns(columns, *each) for each in told])

    @cached_property
    def _groups(self) -> RowGroups:
        """The stored rows that the split train is of."""
        return RowGroups(self.folder, self.splits["train"]["source"])

    def _box(self, columns: Columns, row: int, kind: Kind, choice: int) -> list[float]:
        """What part of its picture a text is about."""
        if kind != "region":
            return [0.0, 0.0, 1.0, 1.0]
        return self._on_square(columns, row, columns["boxes"][row][choice % len(columns["regions"][row])])

    def on_square(self, split: str, row: int, box: Float[Tensor, "4"]) -> list[float]:
        """A box of a picture, in shares of it, as shares of its square."""
        return self._on_square(self.columns[split], row, box)

    def _on_square(self, columns: Columns, row: int, box: Float[Tensor, "4"]) -> list[float]:
        if self.image_size is None or self.fit == "squash":
            return box.tolist()
        size = picture_size(columns["images"][row])
        return on_square((box * box.new_tensor([*size] * 2)).tolist(), size, self.fit).tolist()

    def images(self, split: str, rows: Int[Tensor, " rows"]) -> UInt8[Tensor, "rows 3 height width"]:
        """Pictures of some rows; encoded ones are decoded now."""
        return self._images(self.columns[split], rows)

    def _images(self, columns: Columns, rows: Int[Tensor, " rows"]) -> UInt8[Tensor, "rows 3 height width"]:
        if self.image_size is None:
            return columns["images"][rows]
        squares = np.zeros((len(rows), self.image_size, self.image_size, 3), np.uint8)  # black where there is none
        for place, row in enumerate(rows.tolist()):
            if content := columns["images"][row]:
                squares[place] = square(decode(content), self.image_size, self.fit)
        return torch.from_numpy(squares.transpose(0, 3, 1, 2).copy())

    def ids(self, texts: Sequence[Sequence[Text]]) -> dict[str, Tensor]:
        """`token_ids`, `attention_mask` and `labels` of some texts, as long as the longest.

        Args:
            texts: of each the turns, which stand one behind another; answers are learnt with the end token of each.

        Raises:
            ValueError: no language model was named.
        """
        if self.language is None:
            raise ValueError("texts have no ids before a language model is named: call `for_models` first.")
        tokenizer = self.language.tokenizer
        pieces = [self._pieces(turns) for turns in texts]
        width = max(len(ids) for ids, _ in pieces)
        padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        token_ids = torch.full((len(texts), width), padding)
        labels, there = torch.full_like(token_ids, IGNORED), torch.zeros_like(token_ids, dtype=torch.bool)
        for row, (ids, learnt) in enumerate(pieces):
            part = slice(width - len(ids), width) if self.padding == "left" else slice(len(ids))
            token_ids[row, part] = torch.tensor(ids)
            labels[row, part] = torch.tensor(learnt)
            there[row, part] = True
        return {"token_ids": token_ids, "attention_mask": there, "labels": labels}

    def _pieces(self, turns: Sequence[Text]) -> tuple[list[int], list[int]]:
        """Ids of a text, cut at its end, and their labels."""
        ids, labels = list(self.language.start), [IGNORED] * len(self.language.start)
        for turn in turns:
            prompt = self.language.encode(turn.prompt)
            answer = [*self.language.encode(turn.answer), self.language.tokenizer.eos_token_id]
            ids += prompt + answer
            labels += [IGNORED] * len(prompt) + answer
        return ids[: self.length], labels[: self.length]

    def train_dataloader(self) -> DataLoader:
        """The training batches, the epoch set by Lightning.

        Raises:
            ValueError: there is no split to train on.
        """
        if "train" not in self.splits:
            raise ValueError(f"there is no split 'train' in data.splits ({list(self.splits)}), so epochs must be 0.")
        mine = portion(self)
        if not self.streamed:
            batches = IllustratedBatches(self, mine)
            return DataLoader(batches, sampler=EpochSteps(len(batches)), batch_size=None)
        self._check_columns()
        ends, (_, rows) = self._groups.ends, self.rows["train"]
        order = EpochBatches(ends, batch_size=self.batch_size, seed=self.seed, portion=mine, rows=rows)
        floats = mine.rows(self.batch_size) * math.prod((3, self.image_size or 1, self.image_size or 1))
        return DataLoader(
            StreamedBatches(self), sampler=order, batch_size=None, worker_init_fn=outlive_signals,
            num_workers=loader_workers(mine.processes, floats),
        )  # fmt: skip

    @property
    def told(self) -> bool:
        """Whether there are captions of whole pictures."""
        return not {"caption", "captions"}.isdisjoint(storage.card(self.folder)["columns"])

    def evaluation_batches(self, split: str, kind: Kind | None = None, choice: int = 0) -> Iterator[dict[str, Tensor]]:
        """One pass over a split in the order of its rows, with texts of one kind, all with their pictures.

        Args:
            split: one of the splits.
            kind: of texts; None for questions where nothing else is learnt, else for captions, or regions where there
                are none.
            choice: which text of each picture.
        """
        kind = kind or ("question" if self.questions == 1 else "caption" if self.told else "region")
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
        rows = order_of(self.rows, self.data.seed, epoch)[window]
        words = [words_of(self.rows, self.data.seed, purpose, epoch)[rows] for purpose in PURPOSES]
        return drawn_batch(self.data, rows, words)


class StreamedBatches(Dataset):
    """Batches of a split train that is read by the row group; item `(epoch, rows)`: these rows, with drawn texts."""

    def __init__(self, data: IllustratedTexts):
        self.data = data

    def __len__(self) -> int:
        return len(self.data._groups)

    def __getitem__(self, at: tuple[int, np.ndarray]) -> dict[str, Tensor]:
        epoch, rows = at
        return drawn_batch(self.data, rows, [words_at(rows, self.data.seed, purpose, epoch) for purpose in PURPOSES])


def drawn_batch(data: IllustratedTexts, rows: np.ndarray, words: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """Rows of the split train with texts that random words choose: their kind, which one, and whether they are seen."""
    kinds, choices, seen = words
    ends = np.cumsum([data.questions, data.regions])
    places = np.searchsorted(ends, shares(kinds), side="right")
    return data.batch(
        "train", rows.tolist(), [("question", "region", "caption")[place] for place in places],
        (choices >> np.uint64(33)).astype(np.int64).tolist(), (shares(seen) >= data.text_only).tolist(),
    )  # fmt: skip


def shares(words: np.ndarray) -> np.ndarray:
    """Random words as numbers from 0 to below 1."""
    return (words >> np.uint64(11)) * 2.0**-53


@lru_cache(maxsize=2)  # the epoch that is read, and one that begins
def order_of(rows: int, seed: int, epoch: int) -> np.ndarray:
    """The order of all rows in an epoch."""
    return permutation(rows, seed, ORDER, 0, epoch)


@lru_cache(maxsize=2 * len(PURPOSES))
def words_of(rows: int, seed: int, purpose: int, epoch: int) -> np.ndarray:
    """The random words of all rows in an epoch."""
    return random_words(rows, seed, purpose, 0, epoch)


def words_at(rows: np.ndarray, seed: int, purpose: int, epoch: int) -> np.ndarray:
    """The same of a few rows, without those of the others: Philox gives four words for each value of its counter."""
    key, found = np.array([seed, purpose], np.uint64), []
    for row in rows.tolist():
        counter = np.array([row // WORDS, 0, 0, epoch], np.uint64)
        found.append(np.random.Philox(key=key, counter=counter).random_raw(WORDS)[row % WORDS])
    return np.array(found, np.uint64)


def check_form(form: Form) -> None:
    """Refuse a form that has no place for the question, or braces that mean nothing.

    Raises:
        ValueError: see above.
    """
    for name, count in (("caption", 0), ("question", 1), ("turn", 1)):
        text = form.get(name)
        if text is None:
            continue
        rest = text.replace("{}", "")
        if text.count("{}") != count or "{" in rest or "}" in rest:
            told = "with one {} where the question stands, and no other braces" if count else "without braces"
            raise ValueError(f"data.form.{name} is {text!r}, expected a text {told}.")


def picture_size(content: bytes) -> tuple[int, int]:
    """Width and height of an encoded picture, upright, from its header: its pixels are not decoded."""
    from PIL import ExifTags, Image

    with Image.open(io.BytesIO(content)) as opened:
        turned = opened.getexif().get(ExifTags.Base.Orientation, 1) > UPRIGHT
        return opened.size[::-1] if turned else opened.size


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
