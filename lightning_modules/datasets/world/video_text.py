"""Clips for retrieval by text, whose every caption is a class, with three sources of language about each.

Of two captions that differ only in direction, the clips of one are those of the other in reverse: their frames are the
same, and only their order tells them apart. So what a model that pools frames can reach is known exactly
(`metrics.retrieval.blind_ceiling` of `label // 2`).
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
    DOWN,
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

DIRECTIONS = np.array([LEFT, RIGHT, UP, DOWN])  # two pairs: each the other in reverse
SLOWEST, FASTEST = 5 * UNIT // 4, 7 * UNIT // 4  # an object crosses 37 to 53 % of the frame


@dataclass(frozen=True, kw_only=True)
class VideoText:
    """Clips of one object that goes left, right, up or down.

    Columns: `video`; `caption`, one for each class ("a red circle moving left"); `auxiliary_caption`, what the middle
    frame shows, in the words of the captions and without motion; `subtitle`, speech over the clip in a language of its
    own, two words of five about nothing; `label`: (colour x shapes + shape) x 4 + direction, classes as often as
    one another.

    Args:
        image_size: side of the frames in pixels.
        frames: number of frames, at least 2.
        colors: number of colours, 1 to 8; likewise `shapes`. Classes are colours x shapes x 4.
        places: landscapes behind the objects.
        shared_words: share of the content words that subtitles have in common with the captions.

    Raises:
        ValueError: an argument is out of its range.
    """

    name: ClassVar[str] = "video_text"
    row_group: ClassVar[int] = 64

    image_size: int
    frames: int
    colors: int
    shapes: int
    places: Sequence[str]
    shared_words: float

    def __post_init__(self):
        if self.frames < 2:
            raise ValueError(f"frames ({self.frames}) must be at least 2, for a direction to be seen.")
        for name, known in (("colors", COLORS), ("shapes", SHAPES)):
            if not 1 <= getattr(self, name) <= len(known):
                raise ValueError(f"{name} ({getattr(self, name)}) must be between 1 and {len(known)}.")
        if not self.places or not set(self.places) <= set(PLACES):
            raise ValueError(f"places ({', '.join(self.places)}) must be some of {', '.join(PLACES)}.")

    @property
    def num_classes(self) -> int:
        """Number of captions."""
        return self.colors * self.shapes * len(DIRECTIONS)

    def columns(self, stream: Stream) -> dict[str, np.ndarray]:
        """The columns of a chunk, without `id`."""
        label = stream.balanced("label", self.num_classes)
        look, direction = np.divmod(label, len(DIRECTIONS))
        color, shape = np.divmod(look, self.shapes)
        scenes = sample_scenes(stream, (1, 1))
        alike = scenes.color.shape
        scenes = replace(
            scenes,
            color=np.broadcast_to(color[:, None], alike),
            shape=np.broadcast_to(shape[:, None], alike),
            texture=np.full(alike, TEXTURES.index("solid")),
            motion=np.broadcast_to(DIRECTIONS[direction, None], alike),
            speed=stream.between("direction/speed", SLOWEST, FASTEST, alike[1]),
            place=np.array([PLACES.index(name) for name in self.places])[stream.integers("scene", len(self.places))],
        )
        grain = stream.bytes("grain", CHUNK * self.image_size**2).reshape(CHUNK, self.image_size, self.image_size)
        texts = {
            "caption": text.class_captions(scenes),
            "auxiliary_caption": text.auxiliary_captions(scenes, stream, shared_words=1.0),
            "subtitle": text.subtitles(scenes, stream, self.shared_words),
        }
        video = render(scenes, trajectories(scenes, self.frames), grain=grain, size=self.image_size)
        return {
            "video": video,
            **{name: np.array(values, dtype=object) for name, values in texts.items()},
            "label": label,
        }
