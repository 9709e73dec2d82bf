"""Answers about a user's videos: their tokens, what comes back from these, and how a generator goes on from a part."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import log10
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lightning_modules.datasets.pictures import read as read_picture
from lightning_modules.datasets.video.files import (
    READABLE,
    BrokenVideo,
    evenly,
    opened,
    read_frames,
    sound_frames,
    timetable,
)
from lightning_modules.datasets.video.films import Film
from lightning_modules.files import read_array
from lightning_modules.metrics.tokens import bits_per_pixel
from lightning_modules.metrics.video import SMALLEST_MSE, masked_mse
from lightning_modules.predictors import Predictor
from lightning_modules.video_tokens.causal_tokenizer import CausalTokenizer
from lightning_modules.video_tokens.generator import Generator
from lightning_modules.video_tokens.tasks import TASKS, first_frames
from lightning_modules.video_tokens.tokenizer import VideoTokenizer
from lightning_modules.video_tokens.training import TokenizerTraining, stored

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
RATE = 8.0  # frames a second of a film, where no file says it
MOST = 2**31  # bytes of the frames of one answer
Video = Float[Tensor, "1 3 frames h w"]


class Compressor(Predictor):
    """Videos of any size and length to tokens, and token files (.npy) to videos.

    Args:
        module: a trained tokenizer.
        record: not needed.
    """

    def __init__(self, module: TokenizerTraining, record: dict | None = None):
        self.tokenizer = module.eval().tokenizer

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """A video as tokens, and as it comes back from them; of a token file the video.

        All frames are read in their own size, a few at a time, see `pieces`. An answer has `tokens` (t, h, w), `film`,
        `bits_per_pixel` of tokens written with equally many bits each, `psnr` over all pixels, and `read`, which
        frames that is about; of a token file `film` alone, as large as its tokens, which stand for whole squares of
        pixels. A tokenizer that reads single frames takes pictures too, and answers with a `picture` instead of a film.

        Raises:
            ValueError: the file cannot be read, holds no tokens of this tokenizer, or is a picture and the tokenizer
                reads clips alone; or there are too many frames, see `MOST`.
        """
        path = Path(path)
        with torch.inference_mode():
            if path.suffix == ".npy":
                yield seen(self._drawn(read_tokens(path, self.tokenizer), path), self.tokenizer)
            elif path.suffix.lower() in PICTURES:
                if not reads_pictures(self.tokenizer):
                    raise ValueError(
                        f"{path} is a picture, but this tokenizer reads {self._least} frames at a time: give a video."
                    )
                yield self._there_and_back([np.array(read_picture(path))], RATE, path)
            else:
                rate, packets = timing(path)
                yield self._there_and_back(upright(path, packets), rate, path)

    @property
    def _least(self) -> int:
        return self.tokenizer.frames // self.tokenizer.grid[0]

    def _there_and_back(self, frames: Iterable[UInt8[np.ndarray, "h w 3"]], rate: float, path: Path) -> dict[str, Any]:
        tokenizer, waiting, tokens, drawn, error, pixels = self.tokenizer, deque(), [], [], 0.0, 0

        def given() -> Iterator[Video]:
            for piece in pieces(limited(frames, path), tokenizer):
                waiting.append(piece)
                yield filled_up(piece, tokenizer, first=not tokens)

        def encoded() -> Iterator[Tensor]:
            each = tokenizer.encode_parts(given()) if goes_on(tokenizer) else map(tokenizer.encode, given())
            for part in each:
                tokens.append(part)
                yield part

        for video in decoded(encoded(), tokenizer):
            truth = waiting.popleft()
            again = video[:, :, : truth.shape[2], : truth.shape[3], : truth.shape[4]].clamp(0, 1)
            drawn.append(pixels_of(again))
            count = truth[0, 0].numel()
            error, pixels = error + float(masked_mse(again, truth)) * count, pixels + count
        found = torch.cat(tokens, 1)
        clip = np.concatenate(drawn)
        bits = bits_per_pixel(found.numel(), tokenizer.vocabulary, pixels)
        return {
            "read": f"all {len(clip)} frames of {clip.shape[2]} x {clip.shape[1]}",
            "bits_per_pixel": round(bits, 6),
            "psnr": round(-10 * log10(max(error / pixels, SMALLEST_MSE)), 2),
            "tokens": found[0].numpy(),
        } | seen(clip, tokenizer, rate)

    def _drawn(self, tokens: Int[Tensor, "1 t h w"], path: Path) -> UInt8[np.ndarray, "frames tall wide 3"]:
        parts = tokens.split(1 if goes_on(self.tokenizer) else self.tokenizer.grid[0], 1)
        videos = map(pixels_of, decoded(iter(parts), self.tokenizer))
        return np.stack(list(limited((frame for video in videos for frame in video), path)))


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

        A generator knows clips of one length and size. Frame prediction goes on after the end of the file: it is given
        the last frames. Other tasks are given parts of a clip that is spread over the whole file.

        An answer has `task`, `tokens` (t, h, w), `film` and its `frames` side by side (a generator of pictures:
        `picture`), and `read`, which frames of the file it saw, if any. Of a file with tokens (.npy) there is what they
        draw alone.

        Raises:
            ValueError: the file cannot be read, or holds no tokens of this generator.
        """
        path, module = Path(path), self.module
        tokenizer = module.tokenizer
        if path.suffix == ".npy":
            with torch.inference_mode():
                yield seen(pixels_of(tokenizer.decode(read_tokens(path, tokenizer))), tokenizer)
            return
        spread, read = spread_clip(path, tokenizer)
        last = None
        for name in module.tasks:
            task, truth, about = TASKS[name], spread, {"read": read}
            if task.condition is first_frames:
                last = last or last_clip(path, tokenizer, module.given_frames)
                truth, about = last[0], {"read": last[1]}
            elif task.condition is None:
                about = {}
            for label in range(module.classes if task.with_class else 1):
                with torch.inference_mode():
                    tokens = module.generate(truth, torch.tensor([label]), name)
                    drawn = seen(pixels_of(module.drawn(tokens)), tokenizer)
                row = f"{name}-{label}" if task.with_class else name
                told = {"row": row, "task": task.title, **about}
                yield told | {"tokens": tokens.view(tokenizer.grid).numpy(), **drawn}


def goes_on(tokenizer: VideoTokenizer) -> bool:
    """Whether a tokenizer reads a video in parts that give what the whole video gives."""
    return isinstance(tokenizer, CausalTokenizer) and not tokenizer.pooled


def reads_pictures(tokenizer: VideoTokenizer) -> bool:
    """Whether one frame alone becomes tokens."""
    return isinstance(tokenizer, CausalTokenizer) or tokenizer.dims == 2


def pieces(frames: Iterable[UInt8[np.ndarray, "h w 3"]], tokenizer: VideoTokenizer) -> Iterator[Video]:
    """Frames as pieces of a video, pixels from 0 to 1.

    Where the tokenizer goes on from piece to piece, these are as short as it can read them: one frame, and then as many
    as a token stands for. Other tokenizers read clips as long as those that they were trained on, each by itself.
    """
    size, later = (1, tokenizer.time) if goes_on(tokenizer) else (tokenizer.frames, tokenizer.frames)
    found: list[np.ndarray] = []
    for frame in frames:
        found.append(frame)
        if len(found) == size:
            yield as_clip(np.stack(found))
            found, size = [], later
    if found:
        yield as_clip(np.stack(found))


def filled_up(piece: Video, tokenizer: VideoTokenizer, *, first: bool) -> Float[Tensor, "1 3 _ tall wide"]:
    """The last frame, row and column again, until a piece can be divided into tokens.

    Args:
        piece: of a video.
        tokenizer: that reads it.
        first: whether the video begins with it, or pieces do not go on from one another.
    """
    frames, height, width = piece.shape[2:]
    space = tokenizer.size // tokenizer.grid[1]
    alone = 1 if isinstance(tokenizer, CausalTokenizer) and (first or not goes_on(tokenizer)) else 0
    time = tokenizer.time if isinstance(tokenizer, CausalTokenizer) else tokenizer.frames // tokenizer.grid[0]
    return F.pad(piece, (0, -width % space, 0, -height % space, 0, (alone - frames) % time), mode="replicate")


def decoded(parts: Iterator[Int[Tensor, "1 _ h w"]], tokenizer: VideoTokenizer) -> Iterator[Video]:
    """The pieces of a video, of tokens of its pieces."""
    return tokenizer.decode_parts(parts) if goes_on(tokenizer) else map(tokenizer.decode, parts)


def limited(frames: Iterable[UInt8[np.ndarray, "h w 3"]], path: Path) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Frames of one size, that fit into `MOST` bytes.

    Raises:
        ValueError: they do not, or a frame has another size.
    """
    shape, total = None, 0
    for frame in frames:
        shape, total = shape or frame.shape, total + frame.nbytes
        if frame.shape != shape:
            raise ValueError(
                f"{path} holds frames of {shape[1]} x {shape[0]} and of {frame.shape[1]} x {frame.shape[0]} pixels, "
                "expected one size: convert the video to one."
            )
        if total > MOST:
            raise ValueError(
                f"{path} has more frames of {shape[1]} x {shape[0]} pixels than fit into {MOST / 2**30:g} GiB: cut the "
                "video into parts, or make it smaller."
            )
        yield frame


def timing(path: Path) -> tuple[float, int]:
    """Frames a second of a video file, and how many it announces.

    Raises:
        ValueError: it is not there, cut off, or no video.
    """
    with named(path), opened(path) as container:
        rate = container.streams.best("video").average_rate
        return float(rate or RATE), timetable(container)[2]


def upright(path: Path, announced: int) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """All frames of a video file, one after another, turned as its metadata say.

    Raises:
        BrokenVideo: it is damaged, or has fewer than `READABLE` of the announced frames.
    """
    count = 0
    with opened(path) as container:
        for frame in sound_frames(container):
            count += 1
            yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))
    if not count or count < READABLE * announced:
        raise BrokenVideo(f"{path} is damaged: {count} of {announced} frames can be decoded")


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
    return spread_clip(path, tokenizer)[0]


def spread_clip(path: Path, tokenizer: VideoTokenizer) -> tuple[Float[Tensor, "1 3 frames size size"], str]:
    """The same, and which frames these are; of a picture, for networks of single frames, itself.

    Raises:
        ValueError: the file is not there or cannot be decoded.
    """
    if tokenizer.frames == 1 and path.suffix.lower() in PICTURES:
        pixels = np.array(read_picture(path, "RGB", (tokenizer.size, tokenizer.size)))
        return as_clip(pixels[None]), f"the picture, squeezed to {tokenizer.size} x {tokenizer.size}"
    return _chosen(path, lambda total: evenly(total, tokenizer.frames), tokenizer)


def last_clip(path: Path, tokenizer: VideoTokenizer, given: int) -> tuple[Float[Tensor, "1 3 frames size size"], str]:
    """The last frames of a video file, the last of them repeated up to a clip, and which frames these are.

    Args:
        path: of the file; one with fewer frames than are to be given shows its first one again.
        tokenizer: that reads the clip.
        given: frames that frame prediction is given.

    Raises:
        ValueError: the file is not there or cannot be decoded.
    """
    found, read = _chosen(path, lambda total: np.arange(total - given, total).clip(0), tokenizer)
    return F.pad(found, (0, 0, 0, 0, 0, tokenizer.frames - given), mode="replicate"), read


def _chosen(path: Path, choose: Callable[[int], np.ndarray], tokenizer: VideoTokenizer) -> tuple[Tensor, str]:
    told = []

    def numbers(total: int) -> np.ndarray:
        found = choose(total)
        told[:] = [f"frames {', '.join(map(str, found.tolist()))} of 0 to {total - 1}"]
        return found

    with named(path):
        frames = read_frames(path, numbers, tokenizer.size, antialias=True)
    return as_clip(frames), f"{told[0]}, squeezed to {tokenizer.size} x {tokenizer.size}"


def as_clip(frames: UInt8[np.ndarray, "frames h w 3"]) -> Video:
    """Frames of a file as a network reads them, pixels from 0 to 1."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 255


def seen(clip: UInt8[np.ndarray, "frames h w 3"], tokenizer: VideoTokenizer, rate: float = RATE) -> dict[str, Any]:
    """A video as a film, or a single frame of a tokenizer of pictures as a picture.

    Of a clip as those that the tokenizer was trained on there are the frames side by side too.
    """
    from PIL import Image

    if len(clip) == 1 and reads_pictures(tokenizer):
        return {"picture": Image.fromarray(clip[0])}
    found: dict[str, Any] = {"film": Film(clip, rate)}
    if clip.shape[:3] == (tokenizer.frames, tokenizer.size, tokenizer.size):
        found["frames"] = Image.fromarray(np.concatenate(list(clip), axis=1))
    return found


def pixels_of(video: Video) -> UInt8[np.ndarray, "frames h w 3"]:
    """A clip as a file holds it; pixels are held within 0 and 1."""
    return stored(video.clamp(0, 1))[0].numpy()
