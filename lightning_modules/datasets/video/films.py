"""Films and sounds that were made here, as files that players open: MP4 and WAV. Imports no torch."""

import wave
from dataclasses import dataclass
from fractions import Fraction
from io import BufferedIOBase, BytesIO
from typing import ClassVar

import numpy as np
from jaxtyping import Int16, UInt8

SMALLEST = 128  # pixels a side, up to which small frames are enlarged by a whole number
SPOKEN = 16_000  # samples a second in a film: the coding of sound knows few rates


@dataclass(frozen=True)
class Sound:
    """One channel of sound, samples of 16 bits.

    Args:
        samples: of it.
        rate: samples a second.
    """

    suffix: ClassVar[str] = ".wav"

    samples: Int16[np.ndarray, " samples"]
    rate: int

    @property
    def size(self) -> tuple[int, ...]:
        """Number of samples."""
        return (len(self.samples),)

    def save(self, file: BufferedIOBase) -> None:
        """Write a WAV file."""
        with wave.open(file, "wb") as writer:
            writer.setnchannels(1)
            writer.setsampwidth(2)
            writer.setframerate(self.rate)
            writer.writeframes(self.samples.astype("<i2").tobytes())

    def wav(self) -> bytes:
        """The content of a WAV file."""
        file = BytesIO()
        self.save(file)
        return file.getvalue()


@dataclass(frozen=True)
class Film:
    """Frames that play, with sound or without.

    Args:
        frames: of it.
        rate: frames a second.
        sound: null for none.
    """

    suffix: ClassVar[str] = ".mp4"

    frames: UInt8[np.ndarray, "frames h w 3"]
    rate: float
    sound: Sound | None = None

    @property
    def size(self) -> tuple[int, ...]:
        """Frames, height and width."""
        return self.frames.shape[:3]

    def save(self, file: BufferedIOBase) -> None:
        """Write an MP4 file: H.264, and AAC if there is sound.

        Frames are enlarged until they have 128 pixels a side, and a last odd row or column is repeated, which H.264
        needs.
        """
        import av

        factor = -(-SMALLEST // min(self.frames.shape[1:3]))
        frames = self.frames.repeat(factor, 1).repeat(factor, 2)
        frames = np.pad(frames, ((0, 0), *((0, side % 2) for side in frames.shape[1:3]), (0, 0)), "edge")
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=Fraction(self.rate).limit_denominator(1001))
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
            voice = None if self.sound is None else container.add_stream("aac", rate=SPOKEN, layout="mono")
            for picture in frames:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
            if voice is not None:
                self._speak(container, voice)

    def _speak(self, container: object, voice: object) -> None:
        import av

        heard = av.AudioFrame.from_ndarray(self.sound.samples.astype(np.int16)[None], format="s16", layout="mono")
        heard.sample_rate, heard.pts = self.sound.rate, 0
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=SPOKEN)
        for part in [*resampler.resample(heard), *resampler.resample(None)]:
            container.mux(voice.encode(part))
        container.mux(voice.encode())
