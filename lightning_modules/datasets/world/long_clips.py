"""Long clips: events one after another on one scene, with a sentence for each, in order.

Clips come in groups with the same events, each in an order of its own. The frames of a group say the same if one does
not look at their order, and so do its sentences, so what a model can reach that is blind to order is known exactly:
one clip of each group (`metrics.retrieval.blind_ceiling` of `group`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import ClassVar

import numpy as np

from lightning_modules.datasets.world.drawing import Objects, landscapes, paint
from lightning_modules.datasets.world.scenes import (
    CHUNK,
    COLORS,
    FRAME,
    MARGIN,
    PLACES,
    SHAPES,
    TEXTURES,
    Stream,
    sample_scenes,
)

SMALLEST, LARGEST = 26 * FRAME // 100, 34 * FRAME // 100  # radius; 6 pixels of 24 at least


@dataclass(frozen=True, kw_only=True)
class LongClips:
    """Clips in which one object after another comes and goes.

    Columns: `video`; `sentences`, one for each event in its order ("the red circle"); `permuted`, the same
    sentences in the order of another clip of the group; `event`, colour x shapes + shape of each, (events,); `start`,
    the first frame in which each is seen, (events,); `group`.

    Args:
        image_size: side of the frames in pixels.
        events: of a clip, no two of them alike.
        frames_per_event: frames of an event.
        visible: of these, how many show its object, one after another; when they begin is random.
        orders: clips with the same events, one after another in the data set; each has an order of its own.
        colors: number of colours, 1 to 8; likewise `shapes`. Kinds of events are colours x shapes.
        places: landscapes behind the objects.

    Raises:
        ValueError: an argument is out of its range.
    """

    name: ClassVar[str] = "long_clips"
    num_classes: ClassVar[int | None] = None
    row_group: ClassVar[int] = 64

    image_size: int
    events: int
    frames_per_event: int
    visible: int
    orders: int
    colors: int
    shapes: int
    places: Sequence[str]

    def __post_init__(self):
        for name, known in (("colors", COLORS), ("shapes", SHAPES)):
            if not 1 <= getattr(self, name) <= len(known):
                raise ValueError(f"{name} ({getattr(self, name)}) must be between 1 and {len(known)}.")
        most = min(7, self.colors * self.shapes)
        if not 2 <= self.events <= most:
            raise ValueError(f"events ({self.events}) must be between 2 and {most}, of colors x shapes kinds.")
        if not 1 <= self.visible <= self.frames_per_event:
            raise ValueError(
                f"visible ({self.visible}) must be between 1 and frames_per_event ({self.frames_per_event})."
            )
        if not 2 <= self.orders <= len(_orders(self.events)) or CHUNK % self.orders:
            raise ValueError(
                f"orders ({self.orders}) must divide {CHUNK} and be at least 2; {self.events} events have "
                f"{len(_orders(self.events))}."
            )
        if not self.places or not set(self.places) <= set(PLACES):
            raise ValueError(f"places ({', '.join(self.places)}) must be some of {', '.join(PLACES)}.")

    def columns(self, stream: Stream) -> dict[str, np.ndarray]:
        """The columns of a chunk, without `id`."""
        event, next_of_group = self._events(stream)
        said = [[f"the {COLORS[kind // self.shapes]} {SHAPES[kind % self.shapes]}" for kind in row] for row in event]
        start = stream.integers("start", self.frames_per_event - self.visible + 1, self.events)
        start = start + self.frames_per_event * np.arange(self.events)
        return {
            "video": self._draw(stream, event, start),
            "sentences": _lists(said),
            "permuted": _lists([said[row] for row in next_of_group]),
            "event": event,
            "start": start,
            "group": stream.chunk * (CHUNK // self.orders) + np.arange(CHUNK) // self.orders,
        }

    def _events(self, stream: Stream) -> tuple[np.ndarray, np.ndarray]:
        """The kinds of events of each clip in order, and which row of its group comes after it, in a circle."""
        groups, kinds = CHUNK // self.orders, self.colors * self.shapes
        drawn = (
            stream.words("events", groups * kinds).reshape(groups, kinds).argsort(1, kind="stable")[:, : self.events]
        )
        orders = _orders(self.events)
        picked = stream.words("orders", groups * len(orders)).reshape(groups, -1).argsort(1, kind="stable")
        order = orders[picked[:, : self.orders]]  # groups, orders, events
        event = np.take_along_axis(drawn[:, None], order, axis=2).reshape(CHUNK, self.events)
        rows = np.arange(CHUNK)
        return event, rows // self.orders * self.orders + (rows + 1) % self.orders

    def _draw(self, stream: Stream, event: np.ndarray, start: np.ndarray) -> np.ndarray:
        scenes = replace(
            sample_scenes(stream, (1, 1)),
            place=np.array([PLACES.index(name) for name in self.places])[stream.integers("scene", len(self.places))],
        )
        grain = stream.bytes("grain", CHUNK * self.image_size**2).reshape(CHUNK, self.image_size, self.image_size)
        frames = self.events * self.frames_per_event
        pictures = np.repeat(landscapes(scenes, grain, self.image_size)[:, None], frames, axis=1)
        radius = stream.between("radius", SMALLEST, LARGEST, self.events)
        reach = radius + MARGIN
        x, y = (reach + stream.integers(f"at/{axis}", FRAME + 1 - 2 * reach, self.events) for axis in "xy")
        color, shape = np.divmod(event, self.shapes)
        solid = np.full_like(color, TEXTURES.index("solid"))
        objects = Objects(x, y, radius, shape, color, solid)
        for shown in range(self.visible):
            which = frames * np.arange(CHUNK)[:, None] + start + shown
            paint(pictures.reshape(-1, self.image_size, self.image_size, 3), which.ravel(), objects)
        return pictures


def _orders(events: int) -> np.ndarray:
    return np.array(list(permutations(range(events))))


def _lists(values: list[list[str]]) -> np.ndarray:
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found
