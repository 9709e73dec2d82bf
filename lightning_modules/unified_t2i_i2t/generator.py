"""Captions for picture files, and pictures for captions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from einops import rearrange

from lightning_modules.datasets.pictures import stored
from lightning_modules.datasets.tokenizers import tokenizer_called
from lightning_modules.predictors import Predictor
from lightning_modules.unified_t2i_i2t.module import UnifiedGenerator


class Generator(Predictor):
    """A generator that was trained on images with captions.

    Args:
        module: the generator.
        record: `data` of what it was trained on, see `predictors.load`.
    """

    def __init__(self, module: UnifiedGenerator, record: dict):
        self.module, self.data = module, record["data"]
        self.tokenizer = tokenizer_called(self.data["tokenizer"])

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """A caption for each picture of a file, or a picture for each line of a text file (.txt).

        Raises:
            ValueError: the file is no picture, array or text, or the model was not trained for this task.
        """
        path = Path(path)
        yield from self.draw(path) if path.suffix == ".txt" else self.describe(path)

    @torch.inference_mode()
    def describe(self, path: Path) -> Iterator[dict[str, Any]]:
        """A caption for each picture of a file."""
        if self.module.images.reader is None:
            raise ValueError("this model reads grid features, which another network computes, and no pictures")
        self._trained_for("i2t", "captions for pictures")
        side = self.module.images.image_size
        images = torch.from_numpy(stored(path, (3, side, side), 255.0)).round().to(torch.uint8)
        for row, caption in enumerate(self.tokenizer.decode(self.module(images).numpy())):
            yield {"row": row, "caption": caption}

    @torch.inference_mode()
    def draw(self, path: Path) -> Iterator[dict[str, Any]]:
        """A picture for each line of a text file."""
        from PIL import Image

        self._trained_for("t2i", "pictures for captions")
        try:
            lines = path.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read as text: {error}") from error
        captions = [line.strip() for line in lines if line.strip()]
        if not captions:
            raise ValueError(f"{path} has no caption, expected one on each line")
        stop = "." if self.data.get("full_stop") else ""
        token_ids, _ = self.tokenizer([f"{caption}{stop}" for caption in captions], self.data["text_length"])
        codes, _ = self.module.draw(torch.from_numpy(token_ids))
        drawn = (255 * self.module.paint(codes)).round().to(torch.uint8)
        for row, (caption, picture) in enumerate(zip(captions, rearrange(drawn, "b c h w -> b h w c"), strict=True)):
            yield {"row": row, "caption": caption, "picture": Image.fromarray(picture.numpy())}

    def _trained_for(self, task: str, what: str) -> None:
        if not any(name.endswith(task) for name in self.module.tasks):
            raise ValueError(f"this model was trained for {', '.join(self.module.tasks)}, not to give {what}")
