"""Video files for tests and stand-ins, encoded here: frames are grainy and grey, and say their number (`numbers`)."""

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from av import AudioFrame

RATE, HEARD = 10, 16_000  # frames and samples a second


def encode(
    path: Path,
    frames: int,
    *,
    codec: str = "mpeg4",
    size: tuple[int, int] = (48, 32),
    key_every: int = 5,
    hertz: int | None = None,
    **options: str,
) -> Path:
    """Writes a clip with a key frame every few frames; frame n has the mean brightness 20 + 5 n, modulo 216.

    Args:
        path: its suffix names the container.
        frames: their number.
        codec: one of FFmpeg's.
        size: width and height in pixels.
        key_every: frames from one key frame to the next.
        hertz: of a tone that is heard; null for no sound.
        options: of the container.
    """
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    grain = np.random.default_rng(0).integers(-15, 16, (frames, size[1], size[0], 1))
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=Fraction(RATE), options={"g": str(key_every)})
        stream.width, stream.height = size
        stream.pix_fmt, stream.bit_rate = "yuv420p", 1_000_000
        voice = None if hertz is None else container.add_stream("aac", rate=HEARD, layout="mono")
        for number in range(frames):
            picture = np.broadcast_to(20 + 5 * number % 216 + grain[number], (size[1], size[0], 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
        if voice is not None:
            container.mux(voice.encode(_tone(hertz, frames)))
            container.mux(voice.encode())
    return path


def _tone(hertz: int, frames: int) -> "AudioFrame":
    import av

    wave = np.sin(2 * np.pi * hertz / HEARD * np.arange(HEARD * frames // RATE)).astype(np.float32) / 2
    tone = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
    tone.sample_rate, tone.pts = HEARD, 0
    return tone


def numbers(frames: UInt8[np.ndarray, "shown height width 3"]) -> list[int]:
    """Which of the first 43 frames of a clip these are, by their brightness."""
    return np.rint((frames.astype(float).mean((1, 2, 3)) - 20) / 5).astype(int).tolist()
