"""Answers about a user's pictures: captions, captions of regions, and which of the user's texts fit them best."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lightning_modules.datasets.pictures import BrokenPicture, read
from lightning_modules.datasets.squares import Box, Fit, on_square
from lightning_modules.mm_gem.boxes import check_box, read_boxes
from lightning_modules.predictors import Predictor, is_text, lines_among

SHOWN = 60  # letters of a text in a message
OTHERWISE = {  # what to do where a model was not trained on an objective
    "embedding": "was not trained to embed: leave the texts out, so that it writes a caption",
    "generation": "was not trained to write: give it a file of texts to compare with, so that it embeds",
}


@runtime_checkable
class EmbedsAndWrites(Protocol):
    """What is asked of the trained model. Boxes are shares of the square picture; none stands for the whole.

    `losses`: weights of the objectives `embedding` and `generation`; 0 for one that was not trained.
    """

    fit: Fit
    losses: Mapping[str, float]

    def embed_pictures(
        self, images: UInt8[Tensor, "batch 3 h w"], boxes: Float[Tensor, "batch 4"] | None = None
    ) -> Float[Tensor, "batch dim"]:
        """Vectors of length 1."""

    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """Vectors of length 1."""

    def caption(self, images: UInt8[Tensor, "batch 3 h w"], boxes: Float[Tensor, "batch 4"] | None = None) -> list[str]:
        """A text for each picture."""


class Describer(Predictor):
    """Pictures and texts of a user.

    Args:
        module: a trained model.
        record: not needed.
    """

    def __init__(self, module: EmbedsAndWrites, record: dict | None = None):
        self.module = module
        self.texts: list[str] = []
        self.boxes: list[Box] = []
        self._kept: tuple[list[str], Tensor] | None = None

    def begin(self, inputs: Sequence[Path], among: Path | None = None) -> list[Path]:
        """Take the texts that pictures are compared with from the one text file (.txt) among the inputs, or `among`.

        Boxes come from a table (.csv), see `boxes.read_boxes`; then answers are about these regions of each picture.
        Without a text file answers are captions.

        Raises:
            ValueError: there is more than one file of a kind, one is not as expected, there is no picture, a text is
                too long, or the model was not trained for what is asked.
        """
        tables = [path for path in inputs if path.suffix.lower() == ".csv"]
        if len(tables) > 1:
            raise ValueError(f"got {len(tables)} tables of boxes, expected one: they are those of every picture.")
        self.boxes = read_boxes(tables[0]) if tables else []
        others = [path for path in inputs if path not in tables]
        self.texts = []
        if among is not None or any(map(is_text, others)):
            others, self.texts = lines_among(others, among, "texts", "pictures")
        if not others:
            raise ValueError("there is no picture among the inputs: give one, or a folder of them.")
        self._check("embedding" if self.texts else "generation")
        if self.texts:
            self._vectors(self.texts)
        return others

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """A caption of the picture, or of each of its boxes; with texts the `top` ones that fit it best.

        Raises:
            ValueError: the picture cannot be read, or, after the other answers, boxes are none or lie outside it.
        """
        if not self.boxes:
            yield from self._answers(path, None, top)
        failed = []
        for row, box in enumerate(self.boxes):
            try:
                found = list(self._answers(path, box, top))
            except BrokenPicture:
                raise
            except ValueError as error:
                failed.append(f"row {row}: {error}".rstrip("."))
            else:
                yield from ({"row": row, "box": list(box)} | answer for answer in found)
        if failed:
            raise ValueError(f"{path}, {'; '.join(failed)}.")

    def _answers(self, path: str | Path, box: Box | None, top: int) -> Iterator[dict[str, Any]]:
        if not self.texts:
            yield {"caption": self.caption(path, box)}
        for rank, (text, similarity) in enumerate(self.rank(path, self.texts, box)[:top], start=1):
            yield {"rank": rank, "similarity": round(similarity, 6), "text": text}

    @torch.inference_mode()
    def caption(self, path: str | Path, box: Box | None = None) -> str:
        """What the model writes about a picture, or about a box of it: left, top, right, bottom in pixels.

        Raises:
            ValueError: see `answer`; or the model was not trained to write.
        """
        self._check("generation")
        return self.module.caption(*self._shown(path, box))[0]

    @torch.inference_mode()
    def rank(self, path: str | Path, texts: Sequence[str], box: Box | None = None) -> list[tuple[str, float]]:
        """The texts with their cosine similarity to a picture, or to a box of it, the most similar first.

        Raises:
            ValueError: see `answer`; or the model was not trained to embed, a text is too long, or there is one
                and no list.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts are {shorten(texts, SHOWN)!r}, expected a list of texts: put it in brackets.")
        if not texts:
            return []
        self._check("embedding")
        similarity = (self._vectors(texts) @ self.module.embed_pictures(*self._shown(path, box))[0]).tolist()
        return sorted(zip(texts, similarity, strict=True), key=lambda pair: -pair[1])

    def _check(self, objective: str) -> None:
        """Refuse what the model has not learnt, and would answer all the same."""
        if not self.module.losses[objective]:
            raise ValueError(f"the model {OTHERWISE[objective]}, or take an arm that was, such as mm_gem.")

    @torch.inference_mode()
    def _vectors(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """Those of the texts of before are kept, for the next picture or box."""
        if self._kept is None or self._kept[0] != list(texts):
            try:
                self._kept = list(texts), self.module.embed_texts(texts)
            except ValueError:
                for number, text in enumerate(texts, start=1):
                    try:
                        self.module.embed_texts([text])
                    except ValueError as error:
                        raise ValueError(f"text {number}, {shorten(text, SHOWN)!r}: {error}") from error
                raise
        return self._kept[1]

    def _shown(self, path: str | Path, box: Box | None) -> tuple[UInt8[Tensor, "1 3 h w"], Float[Tensor, "1 4"] | None]:
        if box is not None:
            check_box(box)
        image = read(Path(path))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        if box is None:
            return pixels, None
        return pixels, torch.from_numpy(on_square(box, image.size, self.module.fit))[None]
