"""Scenes of the captioned world: records of integers from which pictures, languages and labels are derived.

A scene is a landscape with one to four objects; everything a data set holds is a view of such records, so that every
label is exact. Three rules make the same seed give the same bytes on every machine, for any number of workers:

- Random numbers are raw Philox words, mapped to integers here; numpy promises the words, not its own distributions.
- Every quantity draws from a stream of its own name, `<view>/<split>/<quantity>`. So a new quantity or a new view
  moves no existing byte, and a view may look at the scenes of another one: questions about the pictures of `images`
  need only `images/train/question`, sound for the clips of `clips` needs only their tracks.
- The unit of work is a chunk of `CHUNK` numbered samples, whatever the number of workers and of samples wanted.

Lengths are integers, `FRAME` to the side of the picture; x goes right and y goes down. Angles are integers, `TURN` to
the full turn; speeds and brightnesses have `UNIT` for one.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import NamedTuple

import numpy as np

CHUNK = 256
FRAME = 1 << 16
TURN = 1 << 10
UNIT = 1 << 8

COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink")
SHAPES = ("circle", "square", "triangle", "diamond", "ring", "cross", "bar", "star")
TEXTURES = ("solid", "striped", "checkered", "banded")
SIZES = ("small", "large")
PLACES = ("meadow", "desert", "sea", "snow", "night", "city")
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
MOTIONS = ("still", "left", "right", "up", "down", "clockwise", "counterclockwise", "growing", "shrinking")
STILL, LEFT, RIGHT, UP, DOWN, CLOCKWISE, COUNTERCLOCKWISE, GROWING, SHRINKING = range(len(MOTIONS))
REVERSED = np.array([STILL, RIGHT, LEFT, DOWN, UP, COUNTERCLOCKWISE, CLOCKWISE, SHRINKING, GROWING])

MAX_OBJECTS = 4
MARGIN = FRAME // 64  # between an object and the frame: one pixel of a picture of 64
SMALLEST, LARGEST = np.array([10300, 13500]), np.array([10800, 14400])  # radius by size; 10300 is 10 pixels of 64
EDGE_JITTER, MIDDLE_JITTER = FRAME // 50, FRAME // 16
TRAVEL, ORBIT, SWEEP, GROWTH = 3 * FRAME // 10, FRAME // 10, 7 * TURN // 10, 7  # at speed one; growth in tenths
# Half width and half height of each shape, in 1/100 of its radius.
EXTENT = np.array([[100, 100], [85, 85], [80, 80], [100, 100], [98, 98], [95, 95], [100, 38], [100, 100]])
SINE = np.rint(np.sin(np.arange(TURN) * (2 * np.pi / TURN)) * FRAME).astype(np.int64)


@dataclass(frozen=True)
class Stream:
    """Random numbers of one chunk, by the name of what they decide.

    The Philox key is (seed, digest of the name), and the chunk is the highest word of the counter: streams never meet.

    Args:
        name: `<view>/<split>`.
    """

    seed: int
    name: str
    chunk: int

    def words(self, purpose: str, count: int) -> np.ndarray:
        """`count` random words of 64 bits."""
        digest = hashlib.blake2b(f"{self.name}/{purpose}".encode(), digest_size=8).digest()
        key = np.array([self.seed, int.from_bytes(digest, "little")], dtype=np.uint64)
        return np.random.Philox(key=key, counter=np.array([0, 0, 0, self.chunk], np.uint64)).random_raw(count)

    def bytes(self, purpose: str, count: int) -> np.ndarray:
        """`count` random integers 0 to 255, uint8."""
        return self.words(purpose, -(-count // 8)).astype("<u8", copy=False).view(np.uint8)[:count]

    def integers(self, purpose: str, bound: int | np.ndarray, *shape: int) -> np.ndarray:
        """Random integers 0 to `bound` - 1, int64 (CHUNK, *shape); a bound of its own for each is broadcast."""
        words = self.words(purpose, CHUNK * int(np.prod(shape))).reshape(CHUNK, *shape) >> np.uint64(32)
        return (words * np.asarray(bound, np.uint64) >> np.uint64(32)).astype(np.int64)

    def between(self, purpose: str, low: int, high: int, *shape: int) -> np.ndarray:
        """Random integers `low` to `high`, both included."""
        return low + self.integers(purpose, high - low + 1, *shape)

    def balanced(self, purpose: str, classes: int) -> np.ndarray:
        """Labels 0 to `classes` - 1, as often as one another over the chunks, in random order within each."""
        labels = (self.chunk * CHUNK + np.arange(CHUNK)) % classes
        return labels[np.argsort(self.words(purpose, CHUNK), kind="stable")]


@dataclass(frozen=True)
class Scenes:
    """A chunk of scenes: integer arrays with a row for each scene, and a column for each of `MAX_OBJECTS` objects.

    Only the first `count` objects of a scene exist. No two of them have both colour and shape in common, so that a
    phrase which says both names one object.

    Attributes:
        place: index to `PLACES`.
        light: brightness of the landscape.
        horizon: its height.
        hills: phase of the hills.
        grain: strength of the noise, in 1/128 of its random bytes.
        count: number of objects.
        color: index to `COLORS`; likewise `shape`, `texture`, `size` and `motion`.
        cell: place on the 3 x 3 grid, row by row.
        x: centre at rest, `y` likewise.
        radius: at rest.
        speed: of the motion.
        phase: where on its orbit an object starts, for the motions that go round.
    """

    place: np.ndarray
    light: np.ndarray
    horizon: np.ndarray
    hills: np.ndarray
    grain: np.ndarray
    count: np.ndarray
    color: np.ndarray
    shape: np.ndarray
    texture: np.ndarray
    size: np.ndarray
    cell: np.ndarray
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    motion: np.ndarray
    speed: np.ndarray
    phase: np.ndarray

    def __len__(self) -> int:
        return len(self.place)

    @property
    def exists(self) -> np.ndarray:
        """Which objects exist, bool (scenes, MAX_OBJECTS)."""
        return np.arange(MAX_OBJECTS) < self.count[:, None]


def sample_scenes(stream: Stream, objects: Sequence[int]) -> Scenes:
    """The scenes of a chunk, with a number of objects between the two given ones.

    Objects are inside the frame and apart from one another: their cells differ by two rows or two columns.

    Raises:
        ValueError: the range of `objects` is empty or leaves 1 to `MAX_OBJECTS`.
    """
    fewest, most = objects
    if not 1 <= fewest <= most <= MAX_OBJECTS:
        raise ValueError(f"objects ({fewest} to {most}) must be a range within 1 to {MAX_OBJECTS}.")
    count = stream.between("count", fewest, most)
    cell = _cells(stream, count)
    size = stream.integers("size", len(SIZES), MAX_OBJECTS)
    radius = SMALLEST[size] + stream.integers("radius", (LARGEST - SMALLEST + 1)[size], MAX_OBJECTS)
    color, shape = np.divmod(_distinct(stream, "look", len(COLORS) * len(SHAPES)), len(SHAPES))
    return Scenes(
        place=stream.integers("place", len(PLACES)),
        light=stream.between("light", 3 * UNIT // 4, 11 * UNIT // 10),
        horizon=stream.between("horizon", 9 * FRAME // 20, 13 * FRAME // 20),
        hills=stream.integers("hills", TURN),
        grain=stream.between("grain", 1, 4),
        count=count,
        color=color,
        shape=shape,
        texture=stream.integers("texture", len(TEXTURES), MAX_OBJECTS),
        size=size,
        cell=cell,
        x=_coordinate(stream, "x", cell % 3, radius),
        y=_coordinate(stream, "y", cell // 3, radius),
        radius=radius,
        motion=stream.integers("motion", len(MOTIONS), MAX_OBJECTS),
        speed=stream.between("speed", 7 * UNIT // 10, 13 * UNIT // 10, MAX_OBJECTS),
        phase=stream.integers("phase", TURN, MAX_OBJECTS),
    )


def _layouts() -> list[np.ndarray]:
    """For each number of objects, all ordered choices of cells that are two rows or two columns apart, pairwise."""

    def apart(a: int, b: int) -> bool:
        return abs(a // 3 - b // 3) == 2 or abs(a % 3 - b % 3) == 2

    choices = ([c for c in permutations(range(9), k) if all(apart(*pair) for pair in combinations(c, 2))]
               for k in range(1, MAX_OBJECTS + 1))  # fmt: skip
    return [np.array(choice) for choice in choices]


LAYOUTS = _layouts()


def _cells(stream: Stream, count: np.ndarray) -> np.ndarray:
    choices = np.array([len(layouts) for layouts in LAYOUTS])
    choice = stream.integers("layout", choices[count - 1])
    cell = np.zeros((CHUNK, MAX_OBJECTS), np.int64)
    for number, layouts in enumerate(LAYOUTS, start=1):
        rows = count == number
        cell[rows, :number] = layouts[choice[rows]]
    return cell


def _distinct(stream: Stream, purpose: str, bound: int) -> np.ndarray:
    """Random integers below `bound`, no two objects of a scene having the same.

    Object i draws one of the `bound` - i values that are left, and passes over the taken ones in ascending order.
    """
    values = stream.integers(purpose, bound - np.arange(MAX_OBJECTS), MAX_OBJECTS)
    for i in range(1, MAX_OBJECTS):
        for taken in np.sort(values[:, :i], axis=1).T:
            values[:, i] += values[:, i] >= taken
    return values


def _coordinate(stream: Stream, purpose: str, third: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """A centre in the first, middle or last third of the frame: outer ones keep to the edge, all are jittered."""
    near = radius + MARGIN + stream.integers(f"{purpose}/edge", EDGE_JITTER, MAX_OBJECTS)
    middle = FRAME // 2 + stream.between(f"{purpose}/middle", -MIDDLE_JITTER, MIDDLE_JITTER, MAX_OBJECTS)
    return np.choose(third, [near, middle, FRAME - near])


class Tracks(NamedTuple):
    """Centres and radii of all objects in each frame: integers (scenes, MAX_OBJECTS, frames)."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray


def at_rest(scenes: Scenes) -> Tracks:
    """The track of one frame in which every object is at its place."""
    return Tracks(scenes.x[..., None], scenes.y[..., None], scenes.radius[..., None])


def trajectories(scenes: Scenes, frames: int) -> Tracks:
    """The path of each object's motion through a clip.

    Motions are odd functions of the time from the middle of the clip: the frames of a clip in reverse are the clip of
    the `REVERSED` motion. An object whose path would leave the frame has its whole path shifted into it.
    """
    motion, speed = scenes.motion[..., None], scenes.speed[..., None]
    time = 2 * np.arange(frames) - (frames - 1)  # odd about the middle; `span` to either side makes one half
    span = 2 * max(frames - 1, 1)
    step = _quotient(TRAVEL * speed * time, UNIT * span)
    angle = _quotient(SWEEP * speed * time, UNIT * span)
    growth = _quotient(GROWTH * scenes.radius[..., None] * speed * time, 10 * UNIT * span)

    radius = scenes.radius[..., None] + growth * _sign(motion, GROWING, SHRINKING)
    dx, dy = step * _sign(motion, RIGHT, LEFT), step * _sign(motion, DOWN, UP)
    round_ = (motion == CLOCKWISE) | (motion == COUNTERCLOCKWISE)
    turned = scenes.phase[..., None] + angle * _sign(motion, CLOCKWISE, COUNTERCLOCKWISE)
    dx = np.where(round_, _orbit(turned + TURN // 4), dx)
    dy = np.where(round_, _orbit(turned), dy)
    return Tracks(_inside(scenes.x, dx, radius), _inside(scenes.y, dy, radius), radius)


def _quotient(numerator: np.ndarray, denominator: int) -> np.ndarray:
    """Division that rounds towards zero, so that it is odd."""
    return np.sign(numerator) * (np.abs(numerator) // denominator)


def _sign(motion: np.ndarray, positive: int, negative: int) -> np.ndarray:
    return (motion == positive).astype(np.int64) - (motion == negative)


def _orbit(angle: np.ndarray) -> np.ndarray:
    return ORBIT * SINE[angle % TURN] // FRAME


def _inside(centre: np.ndarray, offset: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """The path about a centre, shifted as a whole so that no part of the object leaves the frame."""
    reach = radius + MARGIN
    low, high = (reach - offset).max(-1), (FRAME - reach - offset).min(-1)
    return np.clip(centre, low, high)[..., None] + offset


def boxes(scenes: Scenes, tracks: Tracks) -> np.ndarray:
    """The box (left, top, right, bottom) that each object just fills in each frame, in fractions of the frame.

    Returns:
        float32 (scenes, frames, MAX_OBJECTS, 4); zeros where no object exists.
    """
    width, height = (tracks.radius * EXTENT[scenes.shape, axis][..., None] for axis in (0, 1))  # in 1/100
    x, y = 100 * tracks.x, 100 * tracks.y
    corners = np.stack([x - width, y - height, x + width, y + height], -1)
    corners = np.where(scenes.exists[..., None, None], corners, 0)
    return corners.swapaxes(1, 2).astype(np.float32) / np.float32(100 * FRAME)
