"""Answers about a user's videos: their tokens, what comes back from these, and how a generator goes on from a part."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lightning_modules.datasets.video.files import BrokenVideo, evenly, read_frames
from lightning_modules.files import read_array
from lightning_modules.metrics.tokens import bits_per_pixel
from lightning_modules.metrics.video import psnr
from lightning_modules.predictors import Predictor
from lightning_modules.video_tokens.generator import Generator
from lightning_modules.video_tokens.tasks import TASKS
from lightning_modules.video_tokens.tokenizer import VideoTokenizer
from lightning_modules.video_tokens.training import TokenizerTraining, stored


class Compressor(Predictor):
    """Videos to tokens, and token files (.npy) to videos.

    Args:
        module: a trained tokenizer.
        record: not needed.
    """

    def __init__(self, module: TokenizerTraining, record: dict | None = None):
        self.tokenizer = module.eval().tokenizer

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """A video as tokens, and as it comes back from them; of a token file the video.

        An answer has `tokens` (t, h, w), `video` and its `frames` side by side, `bits_per_pixel` of tokens written with
        equally many bits each, and `psnr`; of a token file `video` and `frames` alone.

        Raises:
            ValueError: the file cannot be read, or holds no tokens of this tokenizer.
        """
        path, tokenizer = Path(path), self.tokenizer
        given = path.suffix == ".npy"
        with torch.inference_mode():
            truth = None if given else clip_of(path, tokenizer)
            tokens = read_tokens(path, tokenizer) if given else tokenizer.encode(truth)
            video = tokenizer.decode(tokens).clamp(0, 1)
            found = shown(video)
            if not given:
                bits = bits_per_pixel(tokens.numel(), tokenizer.vocabulary, truth[0, 0].numel())
                found |= {"bits_per_pixel": round(bits, 6), "psnr": round(float(psnr(video, truth)), 2)}
                found["tokens"] = tokens[0].numpy()
        yield found


class Continuer(Predictor):
    """What a generator makes of the part of a video that each task gives: it continues, fills in, or draws around.

    Args:
        module: a trained generator.
        record: not needed.
    """

    def __init__(self, module: Generator, record: dict | None = None):
        self.module = module.eval()

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """What the generator makes of what each of its tasks gives; of tasks that tell the class, for each class.

        An answer has `task`, `tokens` (t, h, w), `video` and its `frames` side by side. Of a file with tokens (.npy)
        there are `video` and `frames` alone: what they draw.

        Raises:
            ValueError: the file cannot be read, or holds no tokens of this generator.
        """
        path, module = Path(path), self.module
        if path.suffix == ".npy":
            with torch.inference_mode():
                yield shown(module.tokenizer.decode(read_tokens(path, module.tokenizer)).clamp(0, 1))
            return
        truth = clip_of(path, module.tokenizer)
        for name in module.tasks:
            task = TASKS[name]
            for label in range(module.classes if task.with_class else 1):
                with torch.inference_mode():
                    tokens = module.generate(truth, torch.tensor([label]), name)
                    drawn = shown(module.drawn(tokens))
                row = f"{name}-{label}" if task.with_class else name
                yield {"row": row, "task": task.title, "tokens": tokens.view(module.tokenizer.grid).numpy(), **drawn}


def read_tokens(path: Path, tokenizer: VideoTokenizer) -> Int[Tensor, "1 t h w"]:
    """The tokens of a file (.npy).

    Raises:
        ValueError: the file cannot be read, or holds no tokens of this tokenizer.
    """
    array = read_array(path)
    if array.dtype.kind not in "iu" or array.ndim != 3 or not array.size:
        raise ValueError(
            f"{path} holds {array.dtype} of shape {array.shape}, expected whole numbers (t, h, w), such as "
            f"{tokenizer.grid}, as predict writes them."
        )
    if array.min() < 0 or array.max() >= tokenizer.vocabulary:  # before uint64 becomes a signed number
        raise ValueError(
            f"{path} holds tokens from {array.min()} to {array.max()}, expected 0 to {tokenizer.vocabulary - 1}: take "
            "the tokenizer that wrote them."
        )
    return torch.from_numpy(array.astype(np.int64))[None]


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Says what is expected where FFmpeg finds no format that it knows, as in a text file.

    Raises:
        ValueError: see above.
    """
    import av

    try:
        yield
    except BrokenVideo as error:
        if isinstance(error.__cause__, av.error.InvalidDataError):
            raise ValueError(
                f"{path} is no video that can be decoded: expected a video, such as .mp4, or an array that predict "
                "wrote (.npy)."
            ) from error
        raise


def clip_of(path: Path, tokenizer: VideoTokenizer) -> Float[Tensor, "1 3 frames size size"]:
    """As many frames of a video file as the tokenizer reads, spread evenly, each squeezed into a square.

    Raises:
        ValueError: the file is not there or cannot be decoded.
    """
    with named(path):
        frames = read_frames(path, partial(evenly, shown=tokenizer.frames), tokenizer.size, antialias=True)
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 255


def shown(video: Float[Tensor, "1 3 frames h w"]) -> dict[str, Any]:
    """A clip as an array, and its frames side by side as a picture."""
    from PIL import Image

    frames: UInt8[np.ndarray, "frames h w 3"] = stored(video)[0].numpy()
    return {"video": frames, "frames": Image.fromarray(np.concatenate(list(frames), axis=1))}
