"""Frames of video files: which ones a network sees, and how they are decoded (PyAV).

Read `read_frames` first. A file that cannot be decoded is a `BrokenVideo`, which a reader of many files leaves out and
counts (`skipped`). Missing frames are never invented: a file with an error in a frame is broken (FFmpeg's
`err_detect=explode` finds most damage, but not all of it in H.264). A rotation in the file's metadata is applied, as
players do.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, UInt8

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

READABLE = 0.9  # share of a file's announced length; what is shorter was cut off or damaged
ANNOUNCED = ("mov", "avi", "matroska", "flv", "asf")  # formats whose header says how long the video is


class BrokenVideo(ValueError):
    """A video file that is not there or cannot be decoded."""


def evenly(total: int, shown: int) -> Int[np.ndarray, " shown"]:
    """The first, the last, and others evenly between, rounded down: CLIP-ViP's rule for evaluation."""
    return np.linspace(0, total - 1, shown).astype(np.int64)


def jittered(total: int, shown: int, words: Sequence[int]) -> Int[np.ndarray, " shown"]:
    """Evenly between a first and a last frame that are drawn within one interval of the ends: its rule for training.

    With n shown of F, an interval is int(F / (n - 1)) frames; the first is at 0 to interval, the last at
    F - 1 - interval to F - 1. (Here an interval is at most half of the clip, so that of two or three frames the first
    never comes after the last; the official code has no such limit.)

    Args:
        total: frames of the file.
        shown: how many of them are chosen; a file with fewer shows some again.
        words: two large random integers, for the first and the last frame.
    """
    interval = min(total // max(shown - 1, 1), (total - 1) // 2)
    first, last = (int(word) % (interval + 1) for word in words)
    return np.linspace(first, total - 1 - interval + last, shown).astype(np.int64)


def strided(total: int, shown: int, rate: int, words: tuple[int, int] | None = None) -> Int[np.ndarray, " shown"]:
    """One frame out of each `rate` in a row, from the first again where a file ends: CLIP-ViP's `sample_rate`.

    Args:
        total: frames of the file.
        shown: how many of them are chosen.
        rate: frames between two of them.
        words: two large random integers, for where it begins and which frame of each `rate` is taken; by default the
            middle both times. (The official code draws for evaluation too.)
    """
    spare = max(total - shown * rate, 0)
    if words is None:
        first, within = spare // 2, np.full(shown, rate // 2)
    else:
        first, within = words[0] % (spare + 1), np.random.Philox(key=words[1]).random_raw(shown) % np.uint64(rate)
    return (first + rate * np.arange(shown) + within.astype(np.int64)) % total


def read_frames(
    path: Path, choose: Callable[[int], Int[np.ndarray, " shown"]], size: int, *, antialias: bool = False
) -> UInt8[np.ndarray, "shown size size 3"]:
    """The chosen frames of a file's best video stream, RGB, brought to a square without regard to their aspect ratio.

    CLIP-ViP resizes to both sides and crops nothing.

    Args:
        path: of the file.
        choose: from the number of its frames, which are wanted, in any order; the same may come again.
        size: side in pixels.
        antialias: see `resized`.

    Raises:
        BrokenVideo: it is not there, holds no video, is shorter than `READABLE` of what its header says, or a frame
            that has to be decoded for the chosen ones is damaged.
    """
    with opened(path) as container:
        times, keys, packets = timetable(container)
        if times:
            wanted = [times[number] for number in choose(len(times))]
            frames = _seek(container, wanted, keys, size, antialias)
            if set(frames) == set(wanted):
                return np.stack([frames[time] for time in wanted])
    return _from_the_start(path, choose, size, antialias, packets)


@contextmanager
def opened(path: Path) -> Iterator["InputContainer"]:
    """The file, decoded in one thread: many files are read side by side."""
    import av
    from av.stream import Disposition

    try:
        with av.open(f"file:{path}") as container:  # so that `12:30.mp4` is no protocol
            stream = container.streams.best("video")
            if stream is None or container.format.name == "tty":  # of text, FFmpeg makes pictures
                raise BrokenVideo(f"{path} holds no video")
            if stream.disposition & Disposition.attached_pic or container.format.name.endswith(("_pipe", "image2")):
                raise BrokenVideo(f"{path} holds no video, only a picture")
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"err_detect": "explode"}
            yield container
    except (av.FFmpegError, OSError) as error:
        raise BrokenVideo(f"{path} cannot be decoded: {error}") from error


def timetable(container: "InputContainer") -> tuple[list[int], list[int], int]:
    """Times of all frames and of the key frames, in ascending order, and the number of packets.

    There are no times where the packets do not say them.

    Raises:
        BrokenVideo: the packets end before the length that the header announces.
    """
    stream = container.streams.best("video")
    packets = [packet for packet in container.demux() if packet.size]
    ends = [(packet.pts + (packet.duration or 0)) * packet.time_base for packet in packets if packet.pts is not None]
    announced = (container.duration or 0) / 1e6 if container.format.name.startswith(ANNOUNCED) else 0.0
    if container.format.name == "avi":  # its duration is made up from what is there, its number of frames is not
        announced = float(stream.frames * stream.time_base)
    length = float(max(ends, default=0)) - (container.start_time or 0) / 1e6
    if length < READABLE * announced:
        raise BrokenVideo(
            f"{container.name.removeprefix('file:')} was cut off: it holds {length:.1f} of {announced:.1f} seconds"
        )
    packets = [packet for packet in packets if packet.stream == stream]
    shown = [packet for packet in packets if not packet.is_discard]
    times = {packet.pts for packet in shown}
    keys = sorted(packet.pts for packet in shown if packet.is_keyframe and packet.pts is not None)
    if None in times or len(times) < len(shown) or not keys or keys[0] > min(times):
        return [], [], len(packets)
    return sorted(times), keys, len(packets)


def _seek(
    container: "InputContainer", wanted: Sequence[int], keys: Sequence[int], size: int, antialias: bool
) -> dict[int, np.ndarray]:
    """Frames by their times, decoding from the key frame before each; those that do not come are left out."""
    stream, found = container.streams.best("video"), {}
    for key, times in groupby(sorted(set(wanted)), lambda time: keys[bisect_right(keys, time) - 1]):
        container.seek(key, stream=stream)
        missing = set(times)
        for frame in container.decode(stream):
            if frame.pts in missing and not frame.is_corrupt:
                found[frame.pts] = _picture(frame, size, antialias)
            missing = {time for time in missing if frame.pts is None or time > frame.pts}
            if not missing:
                break
    return found


def _from_the_start(
    path: Path, choose: Callable[[int], Int[np.ndarray, " shown"]], size: int, antialias: bool, packets: int
) -> UInt8[np.ndarray, "shown size size 3"]:
    """The chosen frames by number, for files whose packets say no times or whose frames are not where these say.

    Decoded twice, as only the first pass tells how many there are.
    """
    with opened(path) as container:
        total = sum(1 for _ in sound_frames(container))
    if not total or total < READABLE * packets:
        raise BrokenVideo(f"{path} is damaged: {total} of {packets} frames can be decoded")
    wanted = choose(total).tolist()
    with opened(path) as container:
        frames = {n: _picture(frame, size, antialias) for n, frame in enumerate(sound_frames(container)) if n in wanted}
    return np.stack([frames[number] for number in wanted])


def sound_frames(container: "InputContainer") -> Iterator["VideoFrame"]:
    """The frames of the video in the order of display, without those that the decoder marks as damaged."""
    return (frame for frame in container.decode(container.streams.best("video")) if not frame.is_corrupt)


def _picture(frame: "VideoFrame", size: int, antialias: bool) -> UInt8[np.ndarray, "size size 3"]:
    upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))  # both are counterclockwise
    return resized(np.ascontiguousarray(upright), size, antialias=antialias)


def resized(
    picture: UInt8[np.ndarray, "height width 3"], size: int, *, antialias: bool = False
) -> UInt8[np.ndarray, "size size 3"]:
    """A picture brought to a square, bicubic.

    Without `antialias`, pixels between those that are read have no weight, however much the picture shrinks. So
    torchvision 0.9 resizes tensors, and with it CLIP-ViP's official weights were trained (its `docker/Dockerfile` and
    `datasets/dataloader.py`). With it, the filter widens as the picture shrinks, as Pillow does it.
    """
    if antialias:
        from PIL import Image

        return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))
    import torch
    import torch.nn.functional as F

    pixels = torch.tensor(picture).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, size=(size, size), mode="bicubic", align_corners=False)
    return pixels[0].round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
