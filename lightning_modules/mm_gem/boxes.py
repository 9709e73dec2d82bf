"""Boxes of a user, and files of them."""

from pathlib import Path

import numpy as np


def check_box(box: object) -> None:
    """Refuse what is no box: left, top, right and bottom in pixels.

    Raises:
        ValueError: there are not four finite numbers, or right is not behind left, or bottom not below top.
    """
    try:
        found = np.array(box, np.float64)
    except (TypeError, ValueError):
        found = np.array([])
    if found.shape != (4,) or not np.isfinite(found).all():
        raise ValueError(f"the box is {box!r}, expected four numbers: left, top, right and bottom in pixels.")
    left, top, right, bottom = found
    if left >= right or top >= bottom:
        raise ValueError(
            f"the box {list(box)} has no area: expected left, top, right and bottom, right beyond left and bottom "
            "beyond top, not a corner with width and height."
        )


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
