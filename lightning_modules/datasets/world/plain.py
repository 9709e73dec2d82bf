"""Plain scenes of the captioned world: few, still, and told in several captions of different style.

For networks that draw pictures from captions with little to learn from: backgrounds are the same in every picture of a
place, and one or two things stand left and right, so that a caption leaves no more open than it says.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from lightning_modules.datasets.world import text
from lightning_modules.datasets.world.drawing import render
from lightning_modules.datasets.world.scenes import (
    CHUNK,
    COLORS,
    FRAME,
    MAX_OBJECTS,
    PLACES,
    SHAPES,
    UNIT,
    Scenes,
    Stream,
    at_rest,
    sample_scenes,
)

SIDES = np.array([3, 5])  # of the 3 x 3 cells: middle left, middle right
RADIUS = np.array([9000, 14000])  # by size: 4.4 and 6.8 pixels of 32
LOOSE = 2  # captions of those that say not where things are


@dataclass(frozen=True, kw_only=True)
class PlainImages:
    """Pictures of one or two things, left and right, with captions and all attributes.

    Columns: `image`; `captions`, a list: the last two do not say where things are, nor all that can be seen of them;
    `place`; `color`, `shape`, `size` and `cell`, (4 objects,), -1 where there is no object.

    Args:
        image_size: side of the pictures in pixels.
        objects: fewest and most objects, within 1 to 2.
        colors: number of colours in use; likewise `shapes` and `places`.
        captions: for each picture, more than two.
    """

    name: ClassVar[str] = "plain"
    num_classes: ClassVar[int | None] = None
    row_group: ClassVar[int] = 256

    image_size: int
    objects: Sequence[int]
    colors: int
    shapes: int
    places: int
    captions: int

    def __post_init__(self):
        if not 1 <= self.objects[0] <= self.objects[1] <= len(SIDES):
            raise ValueError(f"objects ({self.objects[0]} to {self.objects[1]}) must be a range within 1 to 2.")
        if not 1 <= self.places <= len(PLACES):
            raise ValueError(f"places ({self.places}) must be between 1 and {len(PLACES)}.")
        if self.captions <= LOOSE:
            raise ValueError(f"captions ({self.captions}) must be more than {LOOSE}.")
        if not 1 <= self.colors <= len(COLORS) or not 1 <= self.shapes <= len(SHAPES):
            raise ValueError(f"colors ({self.colors}) and shapes ({self.shapes}) must be between 1 and {len(COLORS)}.")
        if self.colors * self.shapes < MAX_OBJECTS:
            raise ValueError(f"colors ({self.colors}) times shapes ({self.shapes}) must be at least {MAX_OBJECTS}.")

    def columns(self, stream: Stream) -> dict[str, np.ndarray]:
        """The columns of a chunk, without `id`."""
        scenes = self.scenes(stream)
        grain = np.zeros((CHUNK, self.image_size, self.image_size), np.uint8)
        return {
            "image": render(scenes, at_rest(scenes), grain=grain, size=self.image_size)[:, 0],
            "captions": self.told(scenes, stream),
            "place": scenes.place,
            **{name: np.where(scenes.exists, getattr(scenes, name), -1) for name in ("color", "shape", "size", "cell")},
        }

    def scenes(self, stream: Stream) -> Scenes:
        """Scenes without anything that a caption could not say, but for the place of things where it does not."""
        drawn = sample_scenes(stream, self.objects)
        look = np.argsort(
            stream.words("plain/look", CHUNK * self.colors * self.shapes).reshape(CHUNK, -1), kind="stable"
        )
        color, shape = np.divmod(look[:, :MAX_OBJECTS], self.shapes)
        side = np.argsort(stream.words("plain/cell", CHUNK * len(SIDES)).reshape(CHUNK, -1), kind="stable")
        cell = np.pad(SIDES[side], ((0, 0), (0, MAX_OBJECTS - len(SIDES))))
        flat = np.zeros(CHUNK, np.int64)
        return replace(
            drawn,
            place=stream.integers("plain/place", self.places),
            light=flat + UNIT,
            horizon=flat + FRAME // 2,
            hills=flat,
            grain=flat,
            color=color,
            shape=shape,
            texture=np.zeros_like(color),
            cell=cell,
            radius=RADIUS[drawn.size],
            x=np.where(cell == SIDES[0], FRAME // 4, FRAME - FRAME // 4),
            y=np.full_like(cell, FRAME // 2),
        )

    def told(self, scenes: Scenes, stream: Stream) -> np.ndarray:
        """For each scene its captions, each in a style of its own."""
        styles = [text.dense_captions] * (self.captions - LOOSE) + [text.partial_captions] * LOOSE
        told = [
            style(scenes, replace(stream, name=f"{stream.name}/{number}"))  # each with templates of its own
            for number, style in enumerate(styles)
        ]
        return np.fromiter(map(list, zip(*told, strict=True)), dtype=object, count=CHUNK)
