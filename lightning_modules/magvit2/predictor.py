"""Answers about a user's videos: as few bits, what comes back from these, what a generator makes of parts, actions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lightning_modules.files import read_array
from lightning_modules.magvit2.compression import WORD
from lightning_modules.magvit2.understanding import ActionClassifier
from lightning_modules.metrics.video import psnr
from lightning_modules.predictors import Predictor
from lightning_modules.video_tokens import predictor
from lightning_modules.video_tokens.predictor import clip_of, pixels_of, seen, spread_clip


class Continuer(predictor.Continuer):
    """Writes videos as bits, reads them again, and makes of them what each task of the generator says."""

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """A video as bits, then what each task makes of it; of a file with such bits (.npy) the video.

        The first answer has `code`, words of 32 bits of which the first checks the others, its `bits_per_pixel`, and
        `film`, `frames` and `psnr` of what comes back: one clip, spread over the whole file (`read` says which frames).
        The others are those of `video_tokens.predictor.Continuer`, which also draws files with tokens.

        Raises:
            ValueError: the file cannot be read, or its bits were not written with this generator.
        """
        path, module = Path(path), self.module
        with torch.inference_mode():
            if path.suffix == ".npy":
                if read_array(path).ndim == 3:
                    yield from super().answer(path, top)  # tokens
                else:
                    yield seen(pixels_of(module.drawn(self._read_again(path))), module.tokenizer)
                return
            truth, read = spread_clip(path, module.tokenizer)
            tokens = module.encoded(truth)
            words, video = np.append(check_word(tokens), module.written(tokens)), module.drawn(tokens)
            yield {
                "row": "code",
                "read": read,
                "code": words,
                "bits_per_pixel": round(WORD * len(words) / truth[0, 0].numel(), 6),
                "psnr": round(float(psnr(video, truth)), 2),
                **seen(pixels_of(video), module.tokenizer),
            }
        yield from super().answer(path, top)

    def _read_again(self, path: Path) -> Int[Tensor, "1 tokens"]:
        check, *words = _words(path)
        try:
            tokens = self.module.read_again(np.array(words, np.uint32))
        except (AssertionError, ValueError):  # the coder's own is the former
            tokens = None
        if tokens is None or check_word(tokens) != check:
            raise ValueError(
                f"{path} cannot be read with this generator: its {len(words) + 1} words are no code that it wrote, or "
                "were cut off or changed. Take the whole file, and the generator that wrote it, on a machine of the "
                "same kind."
            )
        return tokens


class Recogniser(Predictor):
    """Says what happens in a video, and whether it runs forward.

    Args:
        module: a trained classifier.
        record: not needed.
    """

    def __init__(self, module: ActionClassifier, record: dict | None = None):
        self.module = module.eval()

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """The most probable actions: `class`, its number in the data set, `direction` if it was learnt, `probability`.

        Raises:
            ValueError: the file cannot be read, or `top` is less than 1.
        """
        if top < 1:
            raise ValueError(f"top is {top}, expected at least 1.")
        module, reader = self.module, self.module.reader
        with torch.inference_mode():
            video = clip_of(Path(path), reader.tokenizer) * reader.pixel_scale
            found = module(video)[0].softmax(0).topk(min(top, (1 + reader.reverse) * module.classes))
        for rank, (chance, action) in enumerate(zip(found.values.tolist(), found.indices.tolist(), strict=True), 1):
            direction = {"direction": "backward" if action >= module.classes else "forward"} if reader.reverse else {}
            yield {"rank": rank, "class": action % module.classes, **direction, "probability": round(chance, 6)}


def check_word(tokens: Int[Tensor, "1 tokens"]) -> np.uint32:
    """CRC-32 of a clip's tokens: a code that is cut off, or read by another generator, gives others."""
    return np.uint32(crc32(tokens.cpu().numpy().astype("<i8").tobytes()))


def _words(path: Path) -> np.ndarray:
    array = read_array(path)
    if array.dtype != np.uint32 or array.ndim != 1 or len(array) < 2:
        raise ValueError(
            f"{path} holds {array.dtype} of shape {array.shape}, expected one row of uint32, as predict writes `code`, "
            "or tokens (t, h, w)."
        )
    return array
