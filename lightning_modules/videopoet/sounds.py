"""Clips with sound on the page: an animated PNG that carries a WAV file. Imports no torch."""

import struct
import zlib
from base64 import b64decode, b64encode

import numpy as np
from jaxtyping import Int16, UInt8

from lightning_modules.datasets.video.films import Sound
from lightning_modules.runs import Exhibit, Picture
from lightning_modules.video_tokens.playing import playing

CHUNK = b"soUd"  # of a PNG; the page reads it, and other programs pass over it
END = 12  # bytes of the last chunk


def sounding(
    label: str, clip: UInt8[np.ndarray, "frames h w 3"], sound: Int16[np.ndarray, " samples"], rate: int
) -> Exhibit:
    """A clip that plays, and beside it its sound.

    Args:
        label: what it is.
        clip: its frames, see `playing`.
        sound: its samples.
        rate: samples a second.
    """
    shown = playing(label, clip)
    png, body = b64decode(shown.picture.png), CHUNK + Sound(sound, rate).wav()
    chunk = struct.pack(">I", len(body) - len(CHUNK)) + body + struct.pack(">I", zlib.crc32(body))
    heard = b64encode(png[:-END] + chunk + png[-END:]).decode()
    return Exhibit(label, picture=Picture(heard, f"{shown.picture.alt}, with sound"))
