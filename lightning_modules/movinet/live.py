"""Frames of a video that is running, from standard input or a camera (PyAV): each is given out before the next is read.

A file has an end, so frames can be spread over it (`datasets/video/files.py`). What runs has a rate at most. Pictures
that are damaged are left out, and how many is logged: a stream may be joined between two key frames, and cameras begin
with half a picture.
"""

import logging
import math
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from lightning_modules.datasets.video.files import BrokenVideo
from lightning_modules.movinet.decoding import Show, upright

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

STANDARD_INPUT, CAMERA = "-", "webcam:"
# for each system FFmpeg's device, how it names the camera of a number, and options without which it does not open
CAMERAS = {
    "Linux": ("v4l2", "/dev/video{}", {}),
    "Darwin": ("avfoundation", "{}", {"framerate": "30"}),  # its own default, 29.97, is refused by Apple's cameras
}
STREAMABLE = "ffmpeg -i clip.mp4 -f matroska - | ..."

log = logging.getLogger(__name__)


def running_frames(source: str, show: Show, fps: int | float | None = None) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """The frames of a running video.

    Args:
        source: `-` for standard input, in a container that can be read from front to back, or `webcam:0`.
        show: what becomes of a frame, given in RGB, upright, as high and wide as it is.
        fps: frames a second that are given out, by the times of the frames; by default all. Of a video that has fewer,
            all are.

    Raises:
        BrokenVideo: there is no such source, it holds no video, or it breaks off.
        ValueError: the source or the rate is none.
    """
    import av

    if fps is not None and not 0 < fps < math.inf:
        raise ValueError(f"fps is {fps}, expected a number above 0")
    damaged, given, start, slot = 0, 0, None, None
    with _opened(source) as container:
        stream = container.streams.best("video")
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                damaged += 1
                continue
            for frame in frames:
                if frame.is_corrupt:
                    damaged += 1
                    continue
                if damaged:
                    log.warning("%s: damaged pictures left out before frame %d: %d", source, given + 1, damaged)
                    damaged = 0
                if fps is not None:  # times are rounded to a tick
                    time = _time(frame, source)
                    start = time if start is None else start
                    before, slot = slot, (time - start + frame.time_base / 2) * Fraction(fps) // 1
                    if slot == before:
                        continue
                given += 1
                yield show(upright(frame))
    if damaged:
        log.warning("%s: damaged pictures left out after frame %d: %d", source, given, damaged)
    if not given:
        raise BrokenVideo(f"{source} holds no frame that can be decoded")


def _time(frame: "VideoFrame", source: str) -> Fraction:
    if frame.pts is None:
        raise BrokenVideo(f"the frames of {source} have no times, so that none can be chosen by them: leave fps out")
    return frame.pts * frame.time_base


class _Pipe:
    """Standard input for PyAV: what has come so far, without waiting until a buffer is full.

    PyAV swallows what a signal raises while it reads, and reads again. So it is kept in `raised`, and the video ends.
    """

    def __init__(self):
        self.count, self.raised = 0, None

    def read(self, size: int) -> bytes:
        if self.raised is not None:
            return b""
        try:
            content = sys.stdin.buffer.raw.read(size)
        except BaseException as error:
            self.raised, content = error, b""
        self.count += len(content)
        return content


@contextmanager
def _opened(source: str) -> Iterator["InputContainer"]:
    import av
    from av.stream import Disposition

    pipe, options, begun = None, {}, False
    if source == STANDARD_INPUT:
        if sys.stdin is None or sys.stdin.isatty():
            raise ValueError(f"nothing is piped into standard input; expected a video, such as {STREAMABLE}")
        place = pipe = _Pipe()
    else:
        place, options = _camera(source)
    try:
        with av.open(place, **options) as container:
            stream = container.streams.best("video")
            # of text FFmpeg makes pictures, and a file of sound may hold one of its cover
            if stream is None or container.format.name == "tty" or stream.disposition & Disposition.attached_pic:
                raise BrokenVideo(f"{source} holds no video")
            stream.codec_context.thread_count = 1  # more would keep frames back
            stream.codec_context.options = {"err_detect": "explode"}
            begun = True
            yield container
    except (av.FFmpegError, OSError) as error:
        if pipe is None or pipe.raised is None:
            raise BrokenVideo(_trouble(source, place, begun, error.strerror)) from error
    if pipe is not None and pipe.raised is not None:
        raise pipe.raised


def _trouble(source: str, place: str | _Pipe, begun: bool, reason: str) -> str:
    if not isinstance(place, _Pipe):
        return f"{source} {'breaks off' if begun else f'({place}) cannot be read'}: {reason}"
    if not place.count:
        return "standard input is empty"
    what = "breaks off" if begun else "cannot be read as a video"
    return f"standard input {what}: {reason}; expected a container that is read from front to back, say {STREAMABLE}"


def _camera(source: str) -> tuple[str, dict]:
    """What `av.open` takes for a camera.

    Raises:
        ValueError: this is no camera, or cameras of this system are not known.
    """
    number = source.removeprefix(CAMERA)
    if not source.startswith(CAMERA) or not number.isdecimal():
        raise ValueError(f"{source} is no running video; expected - for standard input, or webcam:0")
    if platform.system() not in CAMERAS:
        raise ValueError(f"{source}: cameras are read on {' and '.join(CAMERAS)}; pipe a video in: {STREAMABLE}")
    device, place, options = CAMERAS[platform.system()]
    return place.format(number), {"format": device, "container_options": options}
