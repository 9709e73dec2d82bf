"""Video files for tests, encoded here: the frame with number n is grainy and grey, of mean brightness 20 + 5 n."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def encode(
    path: Path,
    frames: int,
    *,
    codec: str = "mpeg4",
    size: tuple[int, int] = (48, 32),
    key_every: int = 5,
    **options: str,
) -> Path:
    """Writes a clip of (width, height) `size` with a key frame every few frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grain = np.random.default_rng(0).integers(-15, 16, (frames, size[1], size[0], 1))
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=Fraction(10), options={"g": str(key_every)})
        stream.width, stream.height = size
        stream.pix_fmt, stream.bit_rate = "yuv420p", 1_000_000
        for number in range(frames):
            picture = np.broadcast_to(20 + 5 * number + grain[number], (size[1], size[0], 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbers(frames: np.ndarray) -> list[int]:
    """Which frames these are, by their brightness."""
    return np.rint((frames.astype(float).mean((1, 2, 3)) - 20) / 5).astype(int).tolist()
