"""Clips that play on the page, in a loop. Imports no torch."""

from base64 import b64encode
from io import BytesIO

import numpy as np
from jaxtyping import UInt8

from lightning_modules.runs import Exhibit, Picture

LASTS = 1600  # milliseconds of a clip, whatever its number of frames
LARGEST, MOST = 64, 16  # pixels a side, and frames: clips are written into the page


def playing(label: str, clip: UInt8[np.ndarray, "frames h w 3"]) -> Exhibit:
    """A clip as an animated PNG, large ones made smaller; programs that know no animation show its first frame.

    Args:
        label: what it is.
        clip: its frames; of more than 16, as many evenly between the first and the last.
    """
    clip = clip[np.linspace(0, len(clip) - 1, min(len(clip), MOST)).round().astype(int)]
    step = -(-max(clip.shape[1:3]) // LARGEST)
    clip = clip[:, ::step, ::step]
    alt = f"{label}: a clip of {len(clip)} frames, played in a loop"
    if (clip == clip[0]).all():
        return Exhibit(label, picture=Picture.of(clip[0], f"{label}: a clip of {len(clip)} frames, all alike"))
    from PIL import Image

    first, *others = (Image.fromarray(np.ascontiguousarray(frame)) for frame in clip)
    file = BytesIO()
    first.save(  # the bytes depend on no version of zlib
        file, "PNG", compress_level=0, save_all=True, append_images=others, duration=LASTS // len(clip), loop=0
    )
    return Exhibit(label, picture=Picture(b64encode(file.getvalue()).decode(), alt))
