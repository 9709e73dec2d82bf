"""Pictures as the squares that CLIP's towers read, and where their boxes are then."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8

Fit = Literal["crop", "pad", "squash"]
Box = Sequence[int | float]  # left, top, right, bottom
GREY = (122, 116, 104)  # CLIP's mean colour, rounded down as LLaVA does


def square(image: UInt8[np.ndarray, "h w 3"], side: int, fit: Fit) -> UInt8[np.ndarray, "side side 3"]:
    """A picture as a square (bicubic, antialiased).

    Args:
        image: RGB.
        side: of the square, in pixels.
        fit: `crop` cuts the middle out, `pad` adds bars of the mean colour, `squash` changes the aspect ratio.
    """
    from PIL import Image

    height, width = image.shape[:2]
    if fit == "crop":
        short = min(height, width)
        top, left = (height - short) // 2, (width - short) // 2
        image = image[top : top + short, left : left + short]
    if fit == "pad":
        long = max(height, width)
        padded = np.full((long, long, 3), GREY, np.uint8)
        top, left = (long - height) // 2, (long - width) // 2
        padded[top : top + height, left : left + width] = image
        image = padded
    return np.array(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


def on_square(box: Box, size: tuple[int, int], fit: Fit) -> Float32[np.ndarray, "4"]:
    """A box in pixels of a picture as shares of the square that `square` makes of it.

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
