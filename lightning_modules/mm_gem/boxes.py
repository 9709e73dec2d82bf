"""Files of boxes."""

from pathlib import Path

import numpy as np


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
