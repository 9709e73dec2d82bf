"""Frames of a video file at a fixed rate, of all of it or of a part, each as a function makes it; see `read_clip`.

Damage and times are handled as in `datasets.video.files`, which shows whole files as squares.
"""

from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, UInt8

from lightning_modules.datasets.video import files
from lightning_modules.datasets.video.files import READABLE, BrokenVideo

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

Choose = Callable[[int], Int[np.ndarray, " shown"]]
Show = Callable[[UInt8[np.ndarray, "height width 3"]], UInt8[np.ndarray, "tall wide 3"]]


def read_clip(
    path: Path, choose: Choose, show: Show, *, rate: float, start: float | None = None, end: float | None = None
) -> UInt8[np.ndarray, "shown tall wide 3"]:
    """The chosen frames of a file, or of a part of it.

    The clip has a frame for each 1/rate second: the last one that the file shows before the middle of that time, as
    FFmpeg's filter `fps` has it. Of a file with this rate, these are its own frames.

    Args:
        path: of the file.
        choose: from the number of frames of the clip, which are wanted, in any order; the same may come again.
        show: what becomes of a frame, given in RGB, upright, as high and wide as it is.
        rate: frames a second.
        start: second of the file at which a part begins; null for the whole file.
        end: second at which it ends.

    Raises:
        BrokenVideo: the file is not there, holds no video, is damaged, is shorter than `READABLE` of what its header
            says, or ends before that share of the part.
    """
    with files.opened(path) as container:
        if start is not None:
            return _part(path, container, choose, show, rate, start, end - start)
        times, keys, packets = files.timetable(container)
        if times:
            seconds = np.array(times) * float(container.streams.best("video").time_base)
            slots = choose(_length(seconds, rate))
            shown = [times[_before(seconds, seconds[0] + (slot + 0.5) / rate)] for slot in slots.tolist()]
            found = _at(path, container, set(shown), keys[bisect_right(keys, min(shown)) - 1], show)
            if len(found) == len(set(shown)):
                return np.stack([found[time] for time in shown])
    return _counted(path, choose, show, rate, packets)


def _length(seconds: Float[np.ndarray, " frames"], rate: float) -> int:
    """Frames of a clip at a rate, from the times of those in the file; the last lasts as long as the others."""
    lasts = (seconds[-1] - seconds[0]) / (len(seconds) - 1) if len(seconds) > 1 else 1 / rate
    return max(1, round((seconds[-1] - seconds[0] + lasts) * rate))


def _before(seconds: Float[np.ndarray, " frames"], limit: float) -> int:
    """The last frame before a time, or the first of all."""
    return max(0, int(np.searchsorted(seconds, limit)) - 1)


def _at(path: Path, container: "InputContainer", wanted: set[int], key: int, show: Show) -> dict[int, np.ndarray]:
    """Frames by their times, decoded from a key frame on; those that do not come are left out."""
    stream, found = container.streams.best("video"), {}
    container.seek(key, stream=stream)
    for frame in container.decode(stream):
        if frame.pts in wanted:
            found[frame.pts] = show(_sound(path, frame))
        if frame.pts is None or frame.pts >= max(wanted):
            break
    return found


def _part(
    path: Path, container: "InputContainer", choose: Choose, show: Show, rate: float, start: float, length: float
) -> np.ndarray:
    """Frames of a part. Nothing else of the file is read, which may be hours long."""
    stream = container.streams.best("video")
    zero, slots = (stream.start_time or 0) * float(stream.time_base), choose(max(1, round(length * rate)))
    container.seek(int((zero + start) / float(stream.time_base)), stream=stream)
    todo, found, last, picture = sorted(set(slots.tolist()), reverse=True), {}, None, None
    for frame in container.decode(stream):
        time = -1.0 if frame.time is None else frame.time - zero - start  # of the part
        while todo and last is not None and time >= (todo[-1] + 0.5) / rate:
            picture = show(_sound(path, last)) if picture is None else picture
            found[todo.pop()] = picture
        if not todo:
            break
        if last is None and time > (1 - READABLE) * length + 1 / rate:
            raise BrokenVideo(f"{path} holds no frame at {start:.2f} s")
        last, picture, reached = frame, None, time
    if todo:  # the file ends here
        if last is None or reached + 1 / rate < READABLE * length:
            raise BrokenVideo(f"{path} ends before its part from {start:.2f} to {start + length:.2f} s does")
        found |= dict.fromkeys(todo, show(_sound(path, last)))
    return np.stack([found[slot] for slot in slots.tolist()])


def _counted(path: Path, choose: Choose, show: Show, rate: float, packets: int) -> np.ndarray:
    """Frames by their numbers, where a file says no times or its frames are not where it says; decoded twice."""
    with files.opened(path) as container:
        fps = float(container.streams.best("video").average_rate or rate)
        total = sum(1 for _ in files.sound_frames(container))
    if not total or total < READABLE * packets:
        raise BrokenVideo(f"{path} is damaged: {total} of {packets} frames can be decoded")
    seconds = np.arange(total) / fps
    slots = choose(_length(seconds, rate))
    wanted = [_before(seconds, (slot + 0.5) / rate) for slot in slots.tolist()]
    with files.opened(path) as container:
        found = {n: show(upright(frame)) for n, frame in enumerate(files.sound_frames(container)) if n in wanted}
    return np.stack([found[number] for number in wanted])


def _sound(path: Path, frame: "VideoFrame") -> UInt8[np.ndarray, "height width 3"]:
    if frame.is_corrupt:
        raise BrokenVideo(f"{path} is damaged at {frame.time:.2f} s")
    return upright(frame)


def upright(frame: "VideoFrame") -> UInt8[np.ndarray, "height width 3"]:
    """A frame in RGB, turned as its file says."""
    turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))  # both are counterclockwise
    return np.ascontiguousarray(turned)
