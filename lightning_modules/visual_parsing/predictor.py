"""Answers about a user's pictures: questions, statements about one picture or two, and which texts belong to a picture.

Read `Answers` for tasks, `Captions` for a pre-trained model.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_modules import settings
from lightning_modules.datasets.pictures import read
from lightning_modules.datasets.snli_ve import LABELS
from lightning_modules.datasets.tokenizers import TextTokenizer, tokenizer_called
from lightning_modules.datasets.world import asked
from lightning_modules.files import ROOT
from lightning_modules.predictors import Predictor, lines_among
from lightning_modules.runs import Run
from lightning_modules.visual_parsing.answering import Answering
from lightning_modules.visual_parsing.module import UNMATCHED, Reader, VisualParsing
from lightning_modules.visual_parsing.official import framed, scaled

FILE = "answering.json"  # of the results of tasks: where the trained network of each protocol lies
DIGITS = 6
SHOWN = 60  # letters of a text in a message
TOGETHER = 64  # texts that are read with a picture at a time
QUESTION = "?"  # a text that ends so is a question, any other one a statement
WANTED = {"question": "questions, which end in `?`", "entailment": "statements about a picture",
          "pair": "statements about two pictures"}  # fmt: skip


class Reading:
    """Brings pictures and texts of a user into the form that a network was trained on.

    Args:
        module: the network.
        model: the block that builds it.
        data: the settings of its data: `tokenizer`, `text_length`, and `short` and `long` where pictures keep their
            aspect ratio; otherwise they become squares of the size that Swin is made for.
    """

    def __init__(self, module: Reader, model: Mapping[str, Any], data: Mapping[str, Any]):
        self.module, self.length = module, data["text_length"]
        self.short, self.long = data.get("short"), data.get("long")
        self.side = None if self.long is not None else model["visual"]["swin"]["sizes"]["image_size"]
        name = data["tokenizer"]
        self.tokenizer: TextTokenizer = asked.asked_tokenizer() if name == "asked" else tokenizer_called(name)

    def pictures(self, paths: Sequence[str | Path]) -> dict[str, Tensor]:
        """`images`, and `sizes` where pictures keep their aspect ratio.

        Raises:
            ValueError: one cannot be read.
        """
        if self.side is not None:
            pixels = np.stack([np.array(read(Path(path), size=(self.side, self.side))) for path in paths])
            return {"images": torch.from_numpy(pixels).permute(0, 3, 1, 2)}
        pixels = [scaled(np.array(read(Path(path))), self.short, self.long) for path in paths]
        images, sizes = framed(pixels, self.long)
        return {"images": images, "sizes": sizes}

    def fits(self, text: str) -> bool:
        """Whether a text is not too long."""
        return len(self.tokenizer.backend.encode(text).ids) <= self.length

    def texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """`token_ids` and `attention_mask`.

        Raises:
            ValueError: a text has no word that the model knows, or is too long.
        """
        for text in texts:
            ids = self.tokenizer.backend.encode(text).ids
            words = ids[1:-1]
            if len(ids) > self.length:
                raise ValueError(
                    f"{text[:SHOWN]!r} takes {len(ids)} tokens, more than the {self.length} of the model: "
                    "make it shorter."
                )
            if not words or all(word == self.tokenizer.unknown_id for word in words):
                raise ValueError(
                    f"{text[:SHOWN]!r} has no word that the model knows: use those of the texts it was trained on."
                )
        token_ids, attention_mask = self.tokenizer(list(texts), self.length)
        return {"token_ids": torch.from_numpy(token_ids), "attention_mask": torch.from_numpy(attention_mask)}


class Captions(Predictor):
    """Which texts belong to a picture, and how much attention flows between them.

    Args:
        module: a pre-trained network.
        record: the content of `predictor.json`; its blocks `model` and `data` are read.
    """

    def __init__(self, module: VisualParsing, record: Mapping[str, Any]):
        self.module, self.reading = module, Reading(module, record["model"], record["data"])
        self._texts: list[str] = []

    def begin(self, inputs: Sequence[Path], among: Path | None = None) -> list[Path]:
        """Take the texts from the one text file among the inputs, or `among`.

        Raises:
            ValueError: there is not exactly one text file, or no picture; a text is too long, or of unknown words; or
                the model has not learnt what belongs together.
        """
        pictures, self._texts = lines_among(inputs, among, "texts", "pictures")
        self._check()
        self.reading.texts(self._texts)
        return pictures

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """The `top` texts that belong to a picture most surely.

        Raises:
            ValueError: the picture cannot be read.
        """
        for rank, (text, share) in enumerate(self.rank(path, self._texts)[:top], start=1):
            yield {"rank": rank, "matches": round(share, DIGITS), "text": text}

    @torch.inference_mode()
    def rank(self, path: str | Path, texts: Sequence[str]) -> list[tuple[str, float]]:
        """The texts with the probability that each belongs to a picture, the most probable first.

        Raises:
            ValueError: see `begin` and `answer`.
        """
        self._check()
        if not texts:
            return []
        parsed, there = self.module.parsed(self.reading.pictures([path]))
        written, shares = self.reading.texts(texts), []
        for rows in torch.arange(len(texts)).split(TOGETHER):
            some = parsed._replace(features=parsed.features.expand(len(rows), -1, -1), weights=None)
            fused = self.module.network.fuse(
                written["token_ids"][rows], written["attention_mask"][rows], some, there.expand(len(rows), -1)
            )
            shares += self.module.network.matching(fused).float().softmax(-1)[:, 1 - UNMATCHED].tolist()
        return sorted(zip(texts, shares, strict=True), key=lambda pair: -pair[1])

    @torch.inference_mode()
    def flow(self, path: str | Path, text: str) -> Float[np.ndarray, " layers"]:
        """Inter-modality flow of a picture with a text, by layer, over that of equal attention (1).

        Raises:
            ValueError: see `begin` and `answer`.
        """
        return self.module.flow(self.reading.pictures([path]) | self.reading.texts([text]))["relative"][0].numpy()

    def _check(self) -> None:
        if not self.module.losses["matching"]:
            raise ValueError(
                "the model has not learnt what belongs together (model.losses.matching is 0): take another arm, such "
                "as visual_parsing."
            )


class Answers(Predictor):
    """Questions, and statements about one picture or two.

    Args:
        trained: of each task a network and its facts: the blocks `model` and `data`, and of questions the `answers`.
    """

    def __init__(self, trained: Mapping[str, tuple[Answering, Mapping[str, Any]]]):
        self.modules = {task: module for task, (module, _) in trained.items()}
        self.readings = {
            task: Reading(module, facts["model"], facts["data"]) for task, (module, facts) in trained.items()
        }
        self.names = {task: facts.get("answers", []) for task, (_, facts) in trained.items()}
        self._questions: list[str] = []
        self._statements: list[str] = []
        self._compared: list[str] = []
        self._pair: list[Path] = []

    def begin(self, inputs: Sequence[Path], among: Path | None = None) -> list[Path]:
        """Take questions and statements from the one text file among the inputs, or `among`.

        Two pictures, or a folder of two, are judged together, too, where the model has learnt that. A statement that is
        too long to be judged of one picture is then judged of both alone.

        Raises:
            ValueError: there is not exactly one text file, or no picture; a text is too long or of unknown words; or
                the model has not learnt to answer what is asked.
        """
        pictures, texts = lines_among(inputs, among, "questions or statements", "pictures")
        self._questions = [text for text in texts if text.endswith(QUESTION)]
        statements = [text for text in texts if not text.endswith(QUESTION)]
        files = [path for given in pictures for path in (sorted(given.iterdir()) if given.is_dir() else [given])]
        self._pair = files if len(files) == 2 and "pair" in self.modules else []
        self._compared = statements if self._pair else []
        if self._questions:
            self._reading("question").texts(self._questions)
        if self._compared:
            self._reading("pair").texts(self._compared)
        self._statements = statements
        if self._pair:
            alone = self.readings.get("entailment")
            self._statements = [text for text in statements if alone is not None and alone.fits(text)]
        if self._statements:
            self._reading("entailment").texts(self._statements)
        return pictures

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """The `top` answers to each question, and what each statement is; of the second of two pictures, also of both.

        Raises:
            ValueError: the picture cannot be read.
        """
        for question in self._questions:
            for rank, (said, share) in enumerate(self.ask(path, question)[:top], start=1):
                yield {"question": question, "rank": rank, "score": round(share, DIGITS), "answer": said}
        for statement in self._statements:
            found = self.judge(path, statement)
            label = max(found, key=found.__getitem__)
            yield {"statement": statement, "label": label, "probability": round(found[label], DIGITS)}
        for statement in self._compared if self._pair and Path(path) == self._pair[1] else []:
            share = self.compare(*self._pair, statement)
            yield {"pictures": " ".join(each.name for each in self._pair), "statement": statement,
                   "true": round(share, DIGITS)}  # fmt: skip

    def ask(self, path: str | Path, question: str) -> list[tuple[str, float]]:
        """All answers to a question about a picture, the best first, with scores between 0 and 1.

        Raises:
            ValueError: the picture cannot be read, the question has unknown words only or is too long, or the model has
                not learnt to answer questions.
        """
        scores = self._logits("question", [path], question).sigmoid().tolist()
        return sorted(zip(self.names["question"], scores, strict=True), key=lambda pair: -pair[1])

    def judge(self, path: str | Path, statement: str) -> dict[str, float]:
        """How probable it is that a statement contradicts a picture, that it is neutral, and that it follows from it.

        Raises:
            ValueError: see `ask`.
        """
        shares = self._logits("entailment", [path], statement).softmax(-1).tolist()
        return dict(zip(LABELS, shares, strict=True))

    def compare(self, left: str | Path, right: str | Path, statement: str) -> float:
        """How probable it is that a statement is true of two pictures.

        Raises:
            ValueError: see `ask`.
        """
        return float(self._logits("pair", [left, right], statement).softmax(-1)[1])

    @torch.inference_mode()
    def _logits(self, task: str, paths: Sequence[str | Path], text: str) -> Float[Tensor, " outputs"]:
        reading = self._reading(task)
        shown = reading.pictures(paths)
        if task == "pair":
            shown = {name: x[None] for name, x in shown.items()}
        return self.modules[task].logits(shown | reading.texts([text]))[0].float()

    def _reading(self, task: str) -> Reading:
        if task not in self.readings:
            learnt = " and ".join(WANTED[each] for each in self.modules)
            raise ValueError(
                f"the model has learnt {learnt}, but not {WANTED[task]}: take the results of another arm, such as "
                f"{'visual_parsing-questions' if task == 'question' else 'visual_parsing-statements'}."
            )
        return self.readings[task]


def load_answers(folder: Path) -> Answers:
    """What answers with the results of fine-tuned arms.

    Raises:
        ValueError: the trained networks are not there.
    """
    found = {}
    for place in json.loads((folder / FILE).read_text()).values():
        path = ROOT / place
        if not (path / "facts.json").is_file():
            raise ValueError(f"{path} has no trained network, of which {folder / FILE} speaks; run `make repro`.")
        run = Run(path, int(path.name.removeprefix("seed-")))
        module = settings.bind(run.facts["model"], f"the model of {path}")()
        module.load_export({name: torch.from_numpy(x) for name, x in run.weights().items()})
        module.eval()
        found[module.task] = module, run.facts
    return Answers(found)
