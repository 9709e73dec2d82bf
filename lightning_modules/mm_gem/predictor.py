"""Answers about a user's pictures: captions, captions of regions, and which of the user's texts fit them best."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lightning_modules.datasets.pictures import read
from lightning_modules.datasets.squares import Box, Fit, on_square
from lightning_modules.mm_gem.boxes import read_boxes
from lightning_modules.predictors import Predictor, lines_among


@runtime_checkable
class EmbedsAndWrites(Protocol):
    """What is asked of the trained model. Boxes are shares of the square picture; none stands for the whole."""

    fit: Fit

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

    def begin(self, inputs: Sequence[Path], among: Path | None = None) -> list[Path]:
        """Take the texts that pictures are compared with from the one text file (.txt) among the inputs, or `among`.

        Boxes come from a table (.csv), see `boxes.read_boxes`; then answers are about these regions of each picture.
        Without a text file answers are captions.

        Raises:
            ValueError: there is more than one file of a kind, one is not as expected, or there is no picture.
        """
        tables = [path for path in inputs if path.suffix == ".csv"]
        if len(tables) > 1:
            raise ValueError(f"got {len(tables)} tables of boxes, expected one: they are those of every picture.")
        self.boxes = read_boxes(tables[0]) if tables else []
        others = [path for path in inputs if path.suffix != ".csv"]
        self.texts = []
        if among is not None or any(path.suffix == ".txt" for path in others):
            others, self.texts = lines_among(others, among, "texts")
        if not others:
            raise ValueError("there is no picture among the inputs: give one, or a folder of them.")
        return others

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """A caption of the picture, or of each of its boxes; with texts the `top` ones that fit it best.

        Raises:
            ValueError: the picture cannot be read, or a box lies outside it.
        """
        for row, box in enumerate(self.boxes or [None]):
            about = {} if box is None else {"row": row, "box": list(box)}
            if not self.texts:
                yield about | {"caption": self.caption(path, box)}
            for rank, (text, similarity) in enumerate(self.rank(path, self.texts, box)[:top], start=1):
                yield about | {"rank": rank, "similarity": round(similarity, 6), "text": text}

    @torch.inference_mode()
    def caption(self, path: str | Path, box: Box | None = None) -> str:
        """What the model writes about a picture, or about a box of it: left, top, right, bottom in pixels.

        Raises:
            ValueError: see `answer`.
        """
        return self.module.caption(*self._shown(path, box))[0]

    @torch.inference_mode()
    def rank(self, path: str | Path, texts: Sequence[str], box: Box | None = None) -> list[tuple[str, float]]:
        """The texts with their cosine similarity to a picture, or to a box of it, the most similar first.

        Raises:
            ValueError: see `answer`.
        """
        if not texts:
            return []
        similarity = (self.module.embed_texts(texts) @ self.module.embed_pictures(*self._shown(path, box))[0]).tolist()
        return sorted(zip(texts, similarity, strict=True), key=lambda pair: -pair[1])

    def _shown(self, path: str | Path, box: Box | None) -> tuple[UInt8[Tensor, "1 3 h w"], Float[Tensor, "1 4"] | None]:
        image = read(Path(path))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        if box is None:
            return pixels, None
        return pixels, torch.from_numpy(on_square(box, image.size, self.module.fit))[None]
