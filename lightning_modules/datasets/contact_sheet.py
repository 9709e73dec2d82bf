"""A picture of a data set's first samples with their labels. It is for people only; no program reads it."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lightning_modules.datasets.columns import picture

SAMPLES = 24
FRAMES = 8  # of a clip that are shown
SIDE, LINE, LETTER = 128, 12, 6  # pixels: a picture; a line and a letter of the text beside it
WIDTH = 64  # letters of a line
BACKGROUND, INK, BOX = (255, 255, 255), (20, 20, 20), (255, 255, 255)


def write_contact_sheet(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Draws the first samples, their boxes, and beside them each column that is text or one number.

    Args:
        path: of the PNG.
        columns: rows of a data set of raw pictures or clips.
    """
    from PIL import Image, ImageDraw

    pictures = columns[picture(list(columns))][:SAMPLES]
    clips = pictures if pictures.ndim == 5 else pictures[:, None]
    shown = np.linspace(0, clips.shape[1] - 1, min(FRAMES, clips.shape[1])).round().astype(int)
    across = 2 if len(shown) == 1 else 1
    lines = [_lines(columns, number) for number in range(len(clips))]
    width = len(shown) * SIDE + LETTER * max(len(line) + 4 for said in lines for line in said)
    sheet = Image.new("RGB", (across * width, -(-len(clips) // across) * SIDE), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, clip in enumerate(clips):
        left, top = number % across * width, number // across * SIDE
        for place, frame in enumerate(shown.tolist()):
            corner = (left + place * SIDE, top)
            sheet.paste(Image.fromarray(clip[frame]).resize((SIDE - 2, SIDE - 2), Image.Resampling.NEAREST), corner)
            for box in _boxes(columns, number, frame):
                draw.rectangle([start + share * (SIDE - 2) for start, share in zip(corner * 2, box, strict=True)],
                               outline=BOX)  # fmt: skip
        for line, text in enumerate(lines[number]):
            draw.text((left + len(shown) * SIDE + 4, top + line * LINE), text, fill=INK)
    sheet.save(path)


def _boxes(columns: Mapping[str, np.ndarray], number: int, frame: int) -> list:
    if "boxes" not in columns:
        return []
    boxes = columns["boxes"][number]
    boxes = boxes if boxes.ndim == 2 else boxes[frame]
    return boxes[boxes.any(axis=1)].tolist()


def _lines(columns: Mapping[str, np.ndarray], number: int) -> list[str]:
    """What is said of a sample, one column after another, as many lines as fit beside a picture."""
    lines = []
    for name, values in columns.items():
        if values.ndim == 1:
            value = values[number]
            said = f"{value:.2f}" if isinstance(value, np.floating) else value
            lines += textwrap.wrap(f"{name}: {said}", width=WIDTH)
    return lines[: SIDE // LINE]
