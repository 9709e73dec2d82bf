"""Videos with sentences whose sound is heard too: the index is that of `corpora`, the stand-in has a tone."""

from pathlib import Path
from typing import Any

import numpy as np

from lightning_modules.datasets.download import StandIn
from lightning_modules.datasets.video import corpora
from lightning_modules.datasets.video.corpora import prepare
from lightning_modules.datasets.video.films import Film, Sound

__all__ = ["prepare", "stand_in"]

RATE, HEARD = 10, 16_000  # frames and samples a second


def stand_in(folder: Path, *, rows: int, **config: Any) -> StandIn:
    """See `download.StandIn`: as that of `corpora`, but the clip under all names has a tone."""
    found = corpora.stand_in(folder, rows=rows, **config)
    clip = write_tone(folder / "tone.mp4", 100, 440, size=(320, 240)).read_bytes()
    for path in sorted((folder / config.get("videos", "videos")).rglob(f"*{config.get('suffix') or ''}")):
        if path.is_file():
            path.write_bytes(clip)
    return found


def write_tone(path: Path, frames: int, hertz: int, *, size: tuple[int, int] = (48, 32)) -> Path:
    """Writes a clip of ten frames a second that gets brighter, in which a tone is heard.

    Args:
        path: of the MP4 file.
        frames: their number.
        hertz: of the tone.
        size: width and height in pixels.
    """
    width, height = size
    brightness = np.linspace(20, 230, frames).astype(np.uint8)[:, None, None, None]
    samples = 16_000 * np.sin(2 * np.pi * hertz / HEARD * np.arange(HEARD * frames // RATE))
    pictures = np.broadcast_to(brightness, (frames, height, width, 3))
    film = Film(pictures, float(RATE), Sound(samples.astype(np.int16), HEARD))
    with path.open("wb") as file:
        film.save(file)
    return path
