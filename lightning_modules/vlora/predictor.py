"""Answers about a user's pictures: captions, and answers to questions."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from lightning_modules.datasets.pictures import BrokenPicture, read
from lightning_modules.predictors import Predictor, is_text, lines_among

SHOWN = 60  # letters of a question in a message


@runtime_checkable
class Writes(Protocol):
    """What is asked of the trained model."""

    def prompt(self, question: str | None = None) -> list[int]:
        """Ids of what stands before an answer, or before a caption."""

    def answers(self, images: UInt8[Tensor, "batch 3 h w"], prompts: Sequence[Sequence[int]]) -> list[str]:
        """A text for each picture and prompt."""


class Teller(Predictor):
    """Pictures of a user, and questions about them.

    Args:
        module: a trained model.
        record: not needed.
    """

    def __init__(self, module: Writes, record: dict | None = None):
        self.module, self.questions = module.eval(), []

    def begin(self, inputs: Sequence[Path], among: Path | None = None) -> list[Path]:
        """Take the questions from the one text file (.txt) among the inputs; without one, pictures are captioned.

        Raises:
            ValueError: there are several text files, one is empty or no text, or there is no picture.
        """
        super().begin([], among)
        self.questions = []
        inputs = list(inputs)
        if any(map(is_text, inputs)):
            inputs, self.questions = lines_among(inputs, None, "questions", "pictures")
        if not inputs:
            raise ValueError("there is no picture among the inputs: give one, or a folder of them.")
        return inputs

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """A picture's `caption`, or each `question` with its `answer`.

        Raises:
            ValueError: the picture cannot be read, or, after the other answers, questions could not be answered.
        """
        if not self.questions:
            yield {"caption": self.caption(path)}
        failed = []
        for row, question in enumerate(self.questions):
            try:
                answer = self.ask(path, question)
            except BrokenPicture:
                raise
            except ValueError as error:
                failed.append(error)
            else:
                yield {"row": row, "question": question, "answer": answer}
        if failed:
            raise ValueError("; ".join(map(str, failed)))

    def caption(self, path: str | Path) -> str:
        """What the model writes about a picture.

        Raises:
            ValueError: the picture cannot be read.
        """
        return self._written(path, self.module.prompt())

    def ask(self, path: str | Path, question: str) -> str:
        """The answer to a question about a picture.

        Raises:
            ValueError: the picture cannot be read, or the question is too long for the language model.
        """
        try:
            return self._written(path, self.module.prompt(question))
        except BrokenPicture:
            raise
        except ValueError as error:
            raise ValueError(f"the question {shorten(question, SHOWN)!r}: {error}") from error

    @torch.inference_mode()
    def _written(self, path: str | Path, prompt: Sequence[int]) -> str:
        pixels = torch.from_numpy(np.array(read(Path(path), "RGB"))).permute(2, 0, 1)[None]
        return self.module.answers(pixels, [prompt])[0]
