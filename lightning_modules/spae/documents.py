"""Texts that teach a small language model to learn in context, and held-out tasks that show whether it does.

Three kinds, all of single words. Captions of pictures, one after another. Repetitions: a few random words again and
again, some of them exchanged at first and fewer later, or an input with its output in the same way. Few-shot texts:
inputs of some words with a label each, drawn anew for each text, so that a label can be known from the pairs before
only; inputs of one class have some words in common. No text has anything to do with a picture that is classified later,
and the labels of the held-out tasks (`lexicon.HELD_OUT`) are labels in no text that is learnt from.

Random words come from raw Philox words, as everywhere: the stream of these is promised.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.datamodules.labelled import EpochSteps, portion
from lightning_modules.datasets import storage
from lightning_modules.datasets.splits import Part, Portion, draw_splits
from lightning_modules.settings import STRICT, Count, Share
from lightning_modules.spae import lexicon
from lightning_modules.spae.prompts import Prompts
from lightning_modules.vision_language.causal import Language

TEXTS, VALIDATION, HELD_OUT = 100, 101, 102  # purposes of random words, none of which `datasets.splits` has
IGNORED = 0  # id of the padding, which is not learnt


class Shares(TypedDict):
    """Shares of the kinds of texts; the rest are few-shot texts."""

    __pydantic_config__ = STRICT
    captions: Share
    repetitions: Share


class FewShot(TypedDict):
    """What few-shot texts are drawn from.

    `input_words`: numbers of words of an input; `ways`: numbers of classes; `kept`: fewest words that an input has in
    common with its class, of five or more, all of them being the most; `in_common`: share of texts whose classes have
    words in common with each other; `induced`: share of texts that begin by naming their labels.
    """

    __pydantic_config__ = STRICT
    input_words: Annotated[list[Count], Field(min_length=1)]
    ways: Annotated[list[Count], Field(min_length=1)]
    kept: Count
    in_common: Share
    induced: Share


class Draws:
    """Random numbers of one stream.

    Args:
        key: seed and purpose.
        counter: further numbers that tell streams apart.
    """

    def __init__(self, key: tuple[int, int], counter: tuple[int, int] = (0, 0)):
        self.generator = np.random.Philox(
            key=np.array(key, dtype=np.uint64), counter=np.array([0, 0, *counter], dtype=np.uint64)
        )

    def integers(self, stop: int, size: int) -> np.ndarray:
        """Numbers below `stop`."""
        return (self.generator.random_raw(size) % np.uint64(stop)).astype(np.int64)

    def one_of(self, values: Sequence[int]) -> int:
        """One of some values."""
        return values[int(self.integers(len(values), 1)[0])]

    def between(self, first: int, last: int) -> int:
        """A number from `first` to `last`."""
        return first + int(self.integers(last - first + 1, 1)[0])

    def shares(self, size: int) -> np.ndarray:
        """Numbers from 0 to 1, 1 excluded."""
        return (self.generator.random_raw(size) >> np.uint64(11)) * 2.0**-53

    def order(self, count: int) -> np.ndarray:
        """A random order of `range(count)`."""
        return np.argsort(self.generator.random_raw(count), kind="stable")

    def distinct(self, values: np.ndarray, count: int) -> np.ndarray:
        """So many different ones of some values."""
        return values[self.order(len(values))[:count]]


def check_drawn(language: Language, *, ways: int, input_words: int, where: str) -> None:
    """Refuse few-shot texts of more labels or words than a language model has.

    Args:
        language: the model.
        ways: most classes of a text.
        input_words: most words of an input.
        where: the name of these settings.

    Raises:
        ValueError: see above.
    """
    words = language.whole_words()[1]
    if (held_out := int(np.isin(words, lexicon.HELD_OUT).sum())) < ways:
        raise ValueError(
            f"{where}.ways asks for {ways} labels, but {held_out} of the words kept out of training are whole words of "
            "this language model: ask for fewer, or train a model with the words of `lexicon`."
        )
    if ways * input_words > len(words):
        raise ValueError(
            f"{where} asks for {ways} classes of {input_words} words, but the language model has {len(words)} whole "
            f"words: set {where}.input_words to {len(words) // ways} at most."
        )


class Writer:
    """Writes texts as ids of a language model.

    Args:
        prompts: the form of prompts, and the model whose ids they have.
        few_shot: see `FewShot`.
        captions: sentences to quote; none for texts without captions.

    Raises:
        ValueError: the vocabulary has too few words to draw labels and inputs from.
    """

    def __init__(self, prompts: Prompts, few_shot: FewShot, captions: Sequence[str] = ()):
        self.prompts, self.settings, self.captions = prompts, few_shot, captions
        ids, words = prompts.language.whole_words()
        held_out = np.isin(words, lexicon.HELD_OUT)
        self.words = ids.numpy()
        self.labels, self.held_out = self.words[~held_out], self.words[held_out]
        check_drawn(
            prompts.language, ways=max(few_shot["ways"]), input_words=max(few_shot["input_words"]), where="few_shot"
        )

    def document(self, draws: Draws, kind: str, length: int) -> tuple[list[int], list[bool]]:
        """A text of at most `length` ids, and which of them follow from what stands before: labels and copies."""
        token_ids, answers = getattr(self, f"_{kind}")(draws, length)
        return token_ids[:length], answers[:length]

    def _captions(self, draws: Draws, length: int) -> tuple[list[int], list[bool]]:
        found: list[int] = []
        while len(found) < length:
            sentence = self.captions[int(draws.integers(len(self.captions), 1)[0])]
            found += [*self.prompts.language.encode(sentence), *self.prompts.pieces["after"]]
        return found, [False] * len(found)

    def _repetitions(self, draws: Draws, length: int) -> tuple[list[int], list[bool]]:
        """Copies of one sequence, in which fewer and fewer words are exchanged for others."""
        words = self._any_words(draws, draws.between(3, 16))
        cut = draws.between(1, len(words) - 1)
        framed = draws.shares(1)[0] < 0.5
        first_share = draws.one_of([0, 0, 25, 50]) / 100
        copies = 1 + length // len(words)
        found, answers, seen = [], [], np.zeros(len(words), bool)
        for copy in range(copies):
            changed = draws.shares(len(words)) < first_share * (1 - copy / copies)
            row = np.where(changed, self._any_words(draws, len(words)), words).tolist()
            known = (seen & ~changed).tolist()
            seen |= ~changed
            found += self.prompts.pair(row[:cut], row[cut:]) if framed else row
            answers += self._framed(known[:cut], known[cut:]) if framed else known
        return found, answers

    def _framed(self, input_: list[bool], output: list[bool]) -> list[bool]:
        """What can be known of a pair, between the pieces of a prompt."""
        before, between, end = ([False] * len(self.prompts.pieces[name]) for name in ("input", "output", "end"))
        return [*before, *input_, *between, *output, *end]

    def _few_shot(self, draws: Draws, length: int) -> tuple[list[int], list[bool]]:
        """Pairs of inputs and labels until the text is full."""
        settings = self.settings
        ways, size = draws.one_of(settings["ways"]), draws.one_of(settings["input_words"])
        labels = draws.distinct(self.labels, ways)
        lowest = min(settings["kept"], size)
        kept = draws.between(lowest, size)
        classes = self._classes(draws, ways, size)
        found = list(self.prompts.language.start)
        if draws.shares(1)[0] < settings["induced"]:
            found += self.prompts.induction([[label] for label in draws.distinct(labels, ways).tolist()])
        answers = [False] * len(found)
        while len(found) < length:
            for number in draws.order(ways):
                found += self.prompts.pair(self._member(draws, classes[number], kept), [int(labels[number])])
                answers += self._framed([False] * size, [True])
        return found, answers

    def _classes(self, draws: Draws, ways: int, size: int) -> np.ndarray:
        """The words of each class; in some texts, classes have some of them in common, but never all."""
        classes = draws.distinct(self.words, ways * size).reshape(ways, size)
        if size > 1 and draws.shares(1)[0] < self.settings["in_common"]:
            common = draws.order(size)[: draws.between(1, max(1, size // 2))]
            classes[:, common] = classes[0, common]
        return classes

    def _member(self, draws: Draws, words: np.ndarray, kept: int) -> list[int]:
        """An input of a class: `kept` of its words in their places, any words in the others."""
        row = self._any_words(draws, len(words))
        places = draws.order(len(words))[:kept]
        row[places] = words[places]
        return row.tolist()

    def _any_words(self, draws: Draws, count: int) -> np.ndarray:
        return self.words[draws.integers(len(self.words), count)]

    def episode(self, draws: Draws, ways: int, shots: int, size: int, kept: int, *, induced: bool) -> "Episode":
        """A task with labels that were kept out of training; the query's input is a fresh one."""
        labels = draws.distinct(self.held_out, ways).tolist()
        classes = draws.distinct(self.words, ways * size).reshape(ways, size)
        order = np.repeat(np.arange(ways), shots)[draws.order(ways * shots)]
        pairs = [(self._member(draws, classes[number], kept), [labels[number]]) for number in order]
        answer = draws.between(0, ways - 1)
        query = self._member(draws, classes[answer], kept)
        named = [[label] for label in labels] if induced else []
        return Episode(self.prompts.few_shot(pairs, query, named), labels, answer)


class Episode(NamedTuple):
    """A prompt, the ids of all labels, and the place of the right one among them."""

    prompt: list[int]
    labels: list[int]
    answer: int


def held_out_episodes(writer: Writer, count: int, *, seed: int, ways: int, shots: int, size: int, kept: int,
                      induced: bool) -> list[Episode]:  # fmt: skip
    """So many tasks on texts: held-out labels, fresh words.

    Args:
        writer: of the model.
        count: number of tasks.
        seed: of the tasks.
        ways: classes of a task.
        shots: inputs of each class in the context.
        size: words of an input.
        kept: words that an input has in common with its class.
        induced: whether the labels are named first.
    """
    draws = Draws((seed, HELD_OUT), (ways * 1000 + shots, size * 1000 + kept))
    return [writer.episode(draws, ways, shots, size, kept, induced=induced) for _ in range(count)]


class Texts(LightningDataModule):
    """Batches of texts: `token_ids`, padded with 0, and `answers`, which of them follow from what stands before.

    A batch is a pure function of seed, epoch and place. Of the prepared data set captions alone are read.

    Args:
        folder: a prepared data set with the column `captions` or `caption`.
        seed: decides rows and texts.
        splits: for each split its source and rows, see `datasets.splits.draw_splits`; `val` gives as many texts as
            rows.
        steps: of an epoch.
        batch_size: texts of a step.
        evaluation_batch_size: texts that are looked at at a time.
        length: ids of a text.
        shares: see `Shares`.
        few_shot: see `FewShot`.

    Raises:
        ValueError: the shares are more than all, or a split is unknown.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        steps: Count,
        batch_size: Count,
        evaluation_batch_size: Count,
        length: Count,
        shares: Shares,
        few_shot: FewShot,
    ):
        super().__init__()
        if "train" not in splits or not set(splits) <= {"train", "val"}:
            raise ValueError(f"splits has {list(splits)}, expected train and possibly val.")
        if sum(shares.values()) > 1:
            raise ValueError(f"shares {dict(shares)} are more than 1 together: they are parts of all texts.")
        self.folder, self.seed, self.splits, self.steps, self.length = folder, seed, splits, steps, length
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.shares, self.few_shot = shares, few_shot
        self.language: Language | None = None

    def for_language(self, language: Language) -> None:
        """Whose ids the texts consist of; called before the first batch is asked for."""
        self.language = language

    @cached_property
    def writers(self) -> dict[str, Writer]:
        """What writes the texts of each split, with captions of its rows.

        Raises:
            ValueError: the data set has no captions, or no language model was named.
        """
        if self.language is None:
            raise ValueError("texts have no ids before a language model is named: call `for_language` first.")
        rows = draw_splits(storage.card(self.folder)["splits"], self.splits, self.seed)
        prompts, found = Prompts(self.language), {}
        for split, (source, index) in rows.items():
            columns = storage.read(self.folder, source)
            found[split] = Writer(prompts, self.few_shot, sentences(columns, index, self.folder))
        return found

    def batch(self, split: str, draws: Draws, count: int) -> dict[str, Tensor]:
        """So many texts, each kind with its share, the kinds in turns."""
        token_ids = np.full((count, self.length), IGNORED)
        answers = np.zeros((count, self.length), bool)
        places = draws.order(count)  # so that equal parts of a batch are alike
        for number, row in enumerate(places):
            ids, labels = self.writers[split].document(draws, self._kind((number + 0.5) / count), self.length)
            token_ids[row, : len(ids)], answers[row, : len(ids)] = ids, labels
        return {"token_ids": torch.from_numpy(token_ids), "answers": torch.from_numpy(answers)}

    def _kind(self, place: float) -> str:
        if place < self.shares["captions"]:
            return "captions"
        return "repetitions" if place < self.shares["captions"] + self.shares["repetitions"] else "few_shot"

    def train_dataloader(self) -> DataLoader:
        """The training batches, the epoch set by Lightning."""
        batches = TextBatches(self, portion(self))
        return DataLoader(batches, sampler=EpochSteps(len(batches)), batch_size=None)

    def evaluation_batches(self, split: str) -> Iterator[dict[str, Tensor]]:
        """Texts with captions of a split, as many as it has rows, the same each time."""
        rows = self.splits[split]["rows"] or storage.card(self.folder)["splits"][self.splits[split]["source"]]
        for number, start in enumerate(range(0, rows, self.evaluation_batch_size)):
            count = min(self.evaluation_batch_size, rows - start)
            yield self.batch(split, Draws((self.seed, VALIDATION), (number, 0)), count)


class TextBatches(Dataset):
    """Batches of texts; item `(epoch, place)` depends on the seed and that pair only."""

    def __init__(self, texts: Texts, portion: Portion):
        self.texts, self.portion = texts, portion
        self.places = portion.places(texts.steps * texts.batch_size, texts.batch_size)

    def __len__(self) -> int:
        return self.places

    def __getitem__(self, at: tuple[int, int]) -> dict[str, Tensor]:
        epoch, place = at
        size = self.texts.batch_size
        step, window = place // self.portion.accumulated, self.portion.window(place, size)
        whole = self.texts.batch("train", Draws((self.texts.seed, TEXTS), (step, epoch)), size)
        mine = slice(window.start - step * size, window.stop - step * size)
        return {name: x[mine] for name, x in whole.items()}


def sentences(columns: Mapping[str, np.ndarray], rows: np.ndarray, folder: Path) -> list[str]:
    """All captions of some rows.

    Raises:
        ValueError: there are no captions.
    """
    if "captions" in columns:
        return [text for captions in columns["captions"][rows] for text in captions]
    if "caption" in columns:
        return [str(text) for text in columns["caption"][rows]]
    raise ValueError(f"{folder} has the columns {', '.join(columns)}, expected `captions` or `caption` among them.")
