"""Drifting things of the captioned world: clips whose future follows from their first frame.

For networks that continue clips. One thing moves over a plain landscape at one speed; its colour decides the direction.
So the right continuation of a frame is known, and can be compared pixel by pixel.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from lightning_modules.datasets.world.drawing import render
from lightning_modules.datasets.world.scenes import CHUNK, FRAME, MAX_OBJECTS, UNIT, Stream, Tracks, sample_scenes

COLORS_USED = np.array([0, 1, 2, 3])  # red, green, blue, yellow
DIRECTIONS = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])  # right, left, down, up: of these colours
STEPS = 16  # of a frame's side that positions are whole numbers of
RADIUS = FRAME * 3 // 16
JITTER = 3  # positions along the way that a thing may start at


@dataclass(frozen=True, kw_only=True)
class DriftingClips:
    """Clips of one thing whose colour decides which way it moves, half the frame in all.

    Columns: `video`, `label` (the colour, and so the direction), `shape`.

    Args:
        image_size: side of the frames in pixels.
        frames: number of frames, at least 2.
        shapes: number of shapes in use.
    """

    name: ClassVar[str] = "drifting"
    num_classes: ClassVar[int | None] = len(DIRECTIONS)
    row_group: ClassVar[int] = 64

    image_size: int
    frames: int
    shapes: int

    def __post_init__(self):
        if self.frames < 2:
            raise ValueError(f"frames ({self.frames}) must be at least 2, for a thing to move.")
        if not 1 <= self.shapes <= 8:
            raise ValueError(f"shapes ({self.shapes}) must be between 1 and 8.")

    def columns(self, stream: Stream) -> dict[str, np.ndarray]:
        """The columns of a chunk, without `id`."""
        label = stream.balanced("label", self.num_classes)
        shape = stream.integers("shape", self.shapes)
        return {"video": self.draw(stream, label, shape), "label": label, "shape": shape}

    def draw(self, stream: Stream, label: np.ndarray, shape: np.ndarray) -> np.ndarray:
        """The clips of a chunk, uint8 (CHUNK, frames, image_size, image_size, 3)."""
        flat = np.zeros(CHUNK, np.int64)
        everywhere = np.ones(MAX_OBJECTS, np.int64)
        scenes = replace(
            sample_scenes(stream, (1, 1)),
            place=flat,
            light=flat + UNIT,
            horizon=flat + FRAME // 2,
            hills=flat,
            grain=flat,
            color=COLORS_USED[label][:, None] * everywhere,
            shape=shape[:, None] * everywhere,
            texture=np.zeros((CHUNK, MAX_OBJECTS), np.int64),
            radius=np.full((CHUNK, MAX_OBJECTS), RADIUS),
        )
        x, y = (path[:, None] + np.zeros((MAX_OBJECTS, 1), np.int64) for path in self.paths(stream, label))
        tracks = Tracks(x, y, np.full(x.shape, RADIUS))
        return render(scenes, tracks, grain=np.zeros((CHUNK, self.image_size, self.image_size), np.uint8),
                      size=self.image_size)  # fmt: skip

    def paths(self, stream: Stream, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Centres in each frame, x and y: integers (CHUNK, frames)."""
        step = FRAME // STEPS
        way = FRAME // 2 * np.arange(self.frames) // self.frames  # covered by each frame
        along = RADIUS + step * stream.integers("along", JITTER)[:, None] + way
        across = RADIUS + step * stream.integers("across", STEPS - 2 * RADIUS // step + 1)[:, None]
        forward, direction = DIRECTIONS[label].sum(1)[:, None] > 0, DIRECTIONS[label]
        along = np.where(forward, along, FRAME - along)
        sideways = (direction[:, :1] != 0) & np.ones_like(along, bool)
        across = across + np.zeros_like(along)
        return np.where(sideways, along, across), np.where(sideways, across, along)
