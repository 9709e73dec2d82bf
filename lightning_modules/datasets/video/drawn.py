"""Video files for tests and stand-ins, encoded here: frames are grainy and grey, and say their number (`numbers`)."""

from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import UInt8


def encode(
    path: Path,
    frames: int,
    *,
    codec: str = "mpeg4",
    size: tuple[int, int] = (48, 32),
    key_every: int = 5,
    **options: str,
) -> Path:
    """Writes a clip with a key frame every few frames; frame n has the mean brightness 20 + 5 n, modulo 216.

    Args:
        path: its suffix names the container.
        frames: their number.
        codec: one of FFmpeg's.
        size: width and height in pixels.
        key_every: frames from one key frame to the next.
        options: of the container.
    """
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    grain = np.random.default_rng(0).integers(-15, 16, (frames, size[1], size[0], 1))
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=Fraction(10), options={"g": str(key_every)})
        stream.width, stream.height = size
        stream.pix_fmt, stream.bit_rate = "yuv420p", 1_000_000
        for number in range(frames):
            picture = np.broadcast_to(20 + 5 * number % 216 + grain[number], (size[1], size[0], 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbers(frames: UInt8[np.ndarray, "shown height width 3"]) -> list[int]:
    """Which of the first 43 frames of a clip these are, by their brightness."""
    return np.rint((frames.astype(float).mean((1, 2, 3)) - 20) / 5).astype(int).tolist()
