"""Clips in which a still picture shows what moves, and only a sharp one its texture.

Stripes are two pixels wide. The mean over 4 x 4 pixels inside an object is the same for all three textures, so frames
at a quarter of the sides tell them by the object's edge at best; and one frame tells no direction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from lightning_modules.datasets.world import text
from lightning_modules.datasets.world.drawing import STRIPES, render
from lightning_modules.datasets.world.scenes import (
    CHUNK,
    COLORS,
    DOWN,
    FRAME,
    LEFT,
    PLACES,
    RIGHT,
    SHAPES,
    TEXTURES,
    UNIT,
    UP,
    Stream,
    sample_scenes,
    trajectories,
)

PATTERNS = np.array([TEXTURES.index(name) for name in ("striped", "checkered", "banded")])
DIRECTIONS = np.array([LEFT, RIGHT, UP, DOWN])  # two pairs: each the other in reverse
STRIPE = 2  # pixels
SLOWEST, FASTEST = 5 * UNIT // 4, 7 * UNIT // 4  # an object crosses 37 to 53 % of the frame


@dataclass(frozen=True, kw_only=True)
class HdClips:
    """Clips of one patterned circle that goes left, right, up or down.

    Columns: `video`; `caption`, one for each class ("a red striped circle moving left"); `label`: (colour x 3 +
    pattern) x 4 + direction, classes as often as one another.

    Args:
        image_size: side of the frames in pixels; below 20 the circle, and so its stripes, become smaller.
        frames: number of frames, at least 2.
        colors: number of colours, 1 to 8. Classes are colours x 12.
        places: landscapes behind the circle.

    Raises:
        ValueError: an argument is out of its range.
    """

    name: ClassVar[str] = "hd_clips"
    row_group: ClassVar[int] = 64

    image_size: int
    frames: int
    colors: int
    places: Sequence[str]

    def __post_init__(self):
        if self.frames < 2:
            raise ValueError(f"frames ({self.frames}) must be at least 2, for a direction to be seen.")
        if not 1 <= self.colors <= len(COLORS):
            raise ValueError(f"colors ({self.colors}) must be between 1 and {len(COLORS)}.")
        if not self.places or not set(self.places) <= set(PLACES):
            raise ValueError(f"places ({', '.join(self.places)}) must be some of {', '.join(PLACES)}.")

    @property
    def num_classes(self) -> int:
        """Number of captions."""
        return self.colors * len(PATTERNS) * len(DIRECTIONS)

    def columns(self, stream: Stream) -> dict[str, np.ndarray]:
        """The columns of a chunk, without `id`."""
        label = stream.balanced("label", self.num_classes)
        look, direction = np.divmod(label, len(DIRECTIONS))
        color, pattern = np.divmod(look, len(PATTERNS))
        scenes = sample_scenes(stream, (1, 1))
        alike = scenes.color.shape
        scenes = replace(
            scenes,
            color=np.broadcast_to(color[:, None], alike),
            shape=np.full(alike, SHAPES.index("circle")),
            texture=np.broadcast_to(PATTERNS[pattern, None], alike),
            radius=np.full(alike, min(int(STRIPES * STRIPE * FRAME / self.image_size), FRAME // 3)),
            motion=np.broadcast_to(DIRECTIONS[direction, None], alike),
            speed=stream.between("direction/speed", SLOWEST, FASTEST, alike[1]),
            place=np.array([PLACES.index(name) for name in self.places])[stream.integers("scene", len(self.places))],
        )
        grain = stream.bytes("grain", CHUNK * self.image_size**2).reshape(CHUNK, self.image_size, self.image_size)
        video = render(scenes, trajectories(scenes, self.frames), grain=grain, size=self.image_size)
        return {"video": video, "caption": captions(color, pattern, direction), "label": label}


def captions(color: np.ndarray, pattern: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """The sentences of clips, by indices to `COLORS`, `PATTERNS` and `DIRECTIONS`."""
    look = [f"an {name}" if name == "orange" else f"a {name}" for name in COLORS]
    words = zip(color.tolist(), PATTERNS[pattern].tolist(), DIRECTIONS[direction].tolist(), strict=True)
    said = [f"{look[color]} {TEXTURES[texture]} circle {text.MOVING[motion]}" for color, texture, motion in words]
    return np.array(said, dtype=object)
