"""Boxes of a user's or a data set's pictures as boxes of the square that the vision tower reads."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from lightning_modules.vision_language.towers import Fit

Box = Sequence[int | float]  # left, top, right, bottom


def on_square(box: Box, size: tuple[int, int], fit: Fit) -> Float32[np.ndarray, "4"]:
    """A box in pixels of a picture as shares of the square that `VisionTower.squared` makes of it.

    Args:
        box: left, top, right, bottom.
        size: width and height of the picture.
        fit: how it becomes a square.

    Raises:
        ValueError: nothing of the box is in the picture, or in the part of it that is read; boxes are cut off there.
    """
    width, height = size
    corners = np.array(box, np.float64).clip(0, np.array([width, height] * 2))
    if corners[0] >= corners[2] or corners[1] >= corners[3]:
        raise ValueError(
            f"the box {list(box)} has no part in a picture of {width} x {height} pixels: give left, top, right and "
            "bottom, counted from 0 at the top left."
        )
    if fit == "squash":
        return (corners / np.array([width, height] * 2)).astype(np.float32)
    side = min(size) if fit == "crop" else max(size)
    before = [(side - length) // 2 if fit == "pad" else -((length - side) // 2) for length in size]
    found = ((corners + np.array(before * 2)) / side).clip(0, 1).astype(np.float32)
    if found[0] >= found[2] or found[1] >= found[3]:
        raise ValueError(f"the box {list(box)} is outside the middle square that is read of {width} x {height} pixels.")
    return found


def read_boxes(path: Path) -> list[list[float]]:
    """The boxes of a file: a line for each, four numbers with commas: left, top, right, bottom, in pixels.

    Raises:
        ValueError: it cannot be read, has no line, or one with something else.
    """
    try:
        lines = [line for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text: {error}.") from error
    if not lines:
        raise ValueError(f"{path} has no boxes: write left,top,right,bottom in pixels, one box on each line.")
    return [_numbers(path, number, line) for number, line in enumerate(lines, start=1)]


def _numbers(path: Path, number: int, line: str) -> list[float]:
    try:
        found = [float(part) for part in line.split(",")]
    except ValueError:
        found = []
    if len(found) != 4 or not np.isfinite(found).all():
        raise ValueError(
            f"line {number} of {path} is {line!r}, expected four numbers: left,top,right,bottom in pixels."
        )
    return found
