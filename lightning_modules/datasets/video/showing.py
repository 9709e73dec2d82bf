"""Chosen frames of a video file in any size, each as a function makes it: `read_shown`.

`video.files` brings whole frames to squares. What it knows of damaged files and of their times is used here.
"""

from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from lightning_modules.datasets.video import files
from lightning_modules.datasets.video.files import READABLE, BrokenVideo

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

Choose = Callable[[int], Int[np.ndarray, " shown"]]
Show = Callable[[UInt8[np.ndarray, "height width 3"]], UInt8[np.ndarray, "tall wide 3"]]


class Shown(NamedTuple):
    """Frames that were chosen, the second at which each begins, and how many seconds the file lasts."""

    frames: UInt8[np.ndarray, "shown tall wide 3"]
    times: Float[np.ndarray, " shown"]
    seconds: float


def read_shown(path: Path, choose: Choose, show: Show, *, rate: float | None = None) -> Shown:
    """The chosen frames of a file's best video stream, RGB and upright.

    Args:
        path: of the file.
        choose: from the number of its frames, which are wanted, in any order; the same may come again.
        show: what becomes of a frame; all must get the same size.
        rate: frames a second that the file is brought to first: the last frame before the middle of each 1/rate second
            counts. Null for the file's own frames.

    Raises:
        BrokenVideo: it is not there, holds no video, is shorter than `READABLE` of what its header says, or a frame
            that has to be decoded for the chosen ones is damaged, or `choose` finds its frames too few.
    """
    with files.opened(path) as container:
        times, keys, packets = files.timetable(container)
        if times:
            seconds = (np.array(times) - times[0]) * float(container.streams.best("video").time_base)
            numbers, lasts = frames_at(seconds, rate)
            chosen = _chosen(path, numbers, choose)
            wanted = [times[number] for number in chosen]
            found = _from_the_key(container, set(wanted), keys, show)
            if len(found) == len(set(wanted)):
                return Shown(np.stack([found[time] for time in wanted]), seconds[chosen], lasts)
    return _from_the_start(path, choose, show, rate, packets)


def _chosen(path: Path, numbers: Int[np.ndarray, " slots"], choose: Choose) -> Int[np.ndarray, " shown"]:
    try:
        return numbers[choose(len(numbers))]
    except BrokenVideo as error:
        raise BrokenVideo(f"{path}: {error}") from error


def frames_at(seconds: Float[np.ndarray, " frames"], rate: float | None) -> tuple[Int[np.ndarray, " slots"], float]:
    """Which frame is shown in each 1/rate second, and how long all of them last.

    Args:
        seconds: of the frames, from 0 on.
        rate: frames a second; null for each frame once.
    """
    one = seconds[-1] / (len(seconds) - 1) if len(seconds) > 1 else 1 / (rate or 25)
    lasts = float(seconds[-1] + one)
    if rate is None:
        return np.arange(len(seconds)), lasts
    middles = (np.arange(max(1, round(lasts * rate))) + 0.5) / rate
    return np.maximum(np.searchsorted(seconds, middles) - 1, 0), lasts


def _from_the_key(container: "InputContainer", wanted: set[int], keys: list[int], show: Show) -> dict[int, np.ndarray]:
    """Frames by their times, decoded from the key frame before each; those that do not come are left out."""
    stream, found = container.streams.best("video"), {}
    for key in sorted({keys[bisect_right(keys, time) - 1] for time in wanted}):
        last = max(time for time in wanted if keys[bisect_right(keys, time) - 1] == key)
        container.seek(key, stream=stream)
        for frame in container.decode(stream):
            if frame.pts in wanted and frame.pts not in found and not frame.is_corrupt:
                found[frame.pts] = show(_upright(frame))
            if frame.pts is None or frame.pts >= last:
                break
    return found


def _from_the_start(path: Path, choose: Choose, show: Show, rate: float | None, packets: int) -> Shown:
    """The chosen frames by number, for files whose packets say no times or whose frames are not where these say.

    Decoded twice, as only the first pass tells how many there are.
    """
    with files.opened(path) as container:
        fps = float(container.streams.best("video").average_rate or 25)
        total = sum(1 for _ in files.sound_frames(container))
    if not total or total < READABLE * packets:
        raise BrokenVideo(f"{path} is damaged: {total} of {packets} frames can be decoded")
    seconds = np.arange(total) / fps
    numbers, lasts = frames_at(seconds, rate)
    chosen = _chosen(path, numbers, choose)
    with files.opened(path) as container:
        sound = enumerate(files.sound_frames(container))
        found = {number: show(_upright(frame)) for number, frame in sound if number in set(chosen.tolist())}
    return Shown(np.stack([found[number] for number in chosen.tolist()]), seconds[chosen], lasts)


def _upright(frame: "VideoFrame") -> UInt8[np.ndarray, "height width 3"]:
    turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))  # both are counterclockwise
    return np.ascontiguousarray(turned)


def scaled(
    picture: UInt8[np.ndarray, "height width 3"],
    height: int,
    width: int,
    way: Literal["nearest", "bilinear", "bicubic"] = "bilinear",
) -> UInt8[np.ndarray, "tall wide 3"]:
    """A picture in another size, as torch resizes tensors without a filter that widens as the picture shrinks.

    So do torchvision 0.11 (LF-VILA), `interpolate` without a mode (`nearest`, HD-VILA) and, to one level of 255,
    OpenCV's `INTER_CUBIC` (`bicubic`, HD-VILA).
    """
    if picture.shape[:2] == (height, width):
        return picture
    import torch
    import torch.nn.functional as F

    pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()
    aligned = {} if way == "nearest" else {"align_corners": False}
    pixels = F.interpolate(pixels, size=(height, width), mode=way, **aligned)
    return pixels[0].round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
