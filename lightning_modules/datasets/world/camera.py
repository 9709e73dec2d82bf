"""Cameras of the captioned world: still planes that a pinhole camera moves before, with its exact path.

A far and a near thing, each cut out of a plane of its own depth, stand before a plain wall. The camera makes one of
`MOVES`. A truck shifts the near thing further than the far one, a pan shifts both alike: this tells them apart. In
clips that are `moving` the camera rests, and the near thing goes its own way: up from below, down from above. Each kind
of thing has one colour and all are squares, so that a clip leaves little more open than where things are.

Poses are those of RealEstate10K: world to camera, (rotation | translation), x right, y down, z forward; the first is
the identity. Lengths are in units of the world; the image plane lies one side of the frame before the camera.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from lightning_modules.datasets.world.drawing import DISTANCES, RGB
from lightning_modules.datasets.world.scenes import CHUNK, FRAME, SINE, TURN, UNIT, Stream

MOVES = ("still", "pan left", "pan right", "truck left", "truck right", "pedestal up", "pedestal down", "dolly in",
         "dolly out", "orbit left", "orbit right")  # fmt: skip
COMPOSITE = (9, 10)  # moves that are made of others: an arc is a truck and a pan
FAR, NEAR, PIVOT = 4, 2, 3  # depths: of both things, and of the point that an orbit goes round
FOCAL = 1  # focal length in sides of the frame
WALL, BEHIND, BEFORE, OWN = range(4)  # layers: nothing, the far thing, the near one, one that moves by itself
SPEEDS = np.array([UNIT // 2, UNIT])  # of a move, in 1/UNIT of the reaches below
TRUCK, PAN, ARC = np.float32(0.5), 31, 27  # reaches: units of the world, and TURN to the full turn
IN, OUT = np.float32(0.5), np.float32(0.7)
SHAPE = 1  # a square
COLORS_OF = np.array([0, 3, 0, 6])  # yellow far off, red near, cyan for one that moves by itself
RADIUS = FRAME * 5 // 32  # of a thing in the first frame
STEPS = 16  # of a frame's side that positions are whole numbers of
PLACES, HEIGHTS = np.array([5, 6]), (5, 11)  # of the left thing across; of both down
TRAVEL = FRAME // 4  # of a thing that moves by itself
DARK = np.array([24, 24, 28])
ONE, HALF = np.float32(1), np.float32(0.5)


class Poses(NamedTuple):
    """Cameras: yaw to the right as cosine and sine, and centres; float32, each (clips, frames)."""

    cosine: np.ndarray
    sine: np.ndarray
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray

    def matrices(self) -> np.ndarray:
        """World to camera, float32 (clips, frames, 3, 4)."""
        c, s = self.cosine, self.sine
        nil, one = np.zeros_like(c), np.ones_like(c)
        rows = [
            [c, nil, -s, s * self.z - c * self.x],
            [nil, one, nil, -self.y],
            [s, nil, c, -s * self.x - c * self.z],
        ]
        return np.stack([np.stack(row, -1) for row in rows], -2)


def move_poses(move: np.ndarray, speed: np.ndarray, frames: int) -> Poses:
    """The cameras of named moves, at equal steps from the identity on.

    Args:
        move: index to `MOVES`, (clips,).
        speed: (clips,), UNIT for the whole reach.
        frames: of a clip.
    """
    name = move[:, None]
    part = speed[:, None] * np.arange(frames) * (FRAME // UNIT) // max(frames - 1, 1)  # FRAME for the whole reach
    along = part.astype(np.float32) / np.float32(FRAME)

    def towards(*names: str) -> np.ndarray:
        plus, minus = (name == MOVES.index(each) for each in names)
        return plus.astype(np.int64) - minus

    pan, orbit = towards("pan right", "pan left"), towards("orbit right", "orbit left")
    angle = pan * (PAN * part // FRAME) - orbit * (ARC * part // FRAME)
    cosine, sine = (SINE[(angle + quarter) % TURN].astype(np.float32) / np.float32(FRAME) for quarter in (TURN // 4, 0))
    x = towards("truck right", "truck left") * TRUCK * along - (orbit != 0) * PIVOT * sine
    y = towards("pedestal down", "pedestal up") * TRUCK * along
    z = (name == MOVES.index("dolly in")) * IN * along - (name == MOVES.index("dolly out")) * OUT * along
    z = z + (orbit != 0) * PIVOT * (ONE - cosine)
    return Poses(*(value.astype(np.float32) for value in (cosine, sine, x, y, z)))


@dataclass(frozen=True, kw_only=True)
class CameraClips:
    """Clips of a moving camera before still things, and of a resting camera before a thing that moves.

    Columns: `video`; `label`, the move (index to `MOVES`); `moving`, 1 where the near thing moves by itself and the
    camera rests; `speed`, in halves; `poses`, float32 (frames, 3, 4); `layers`, uint8 (image_size, image_size): what
    each pixel of the first frame shows (`WALL`, `BEHIND`, `BEFORE`, `OWN`).

    Args:
        image_size: side of the frames in pixels.
        frames: number of frames, at least 2.
        moving: how many of eight clips are moving ones.
    """

    name: ClassVar[str] = "camera"
    num_classes: ClassVar[int | None] = len(MOVES)
    row_group: ClassVar[int] = 64

    image_size: int
    frames: int
    moving: int

    def __post_init__(self):
        if self.frames < 2:
            raise ValueError(f"frames ({self.frames}) must be at least 2, for a camera to move.")
        if not 0 <= self.moving <= 8:
            raise ValueError(f"moving ({self.moving}) must be between 0 and 8: of eight clips.")

    def columns(self, stream: Stream) -> dict[str, np.ndarray]:
        """The columns of a chunk, without `id`."""
        moving = (stream.balanced("moving", 8) < self.moving).astype(np.int64)
        move = np.where(moving == 1, 0, stream.balanced("label", len(MOVES)))
        faster = stream.integers("speed", len(SPEEDS))
        poses = move_poses(move, SPEEDS[faster], self.frames)
        video, layers = self.draw(stream, poses, moving)
        return {
            "video": video,
            "label": move,
            "moving": moving,
            "speed": faster + 1,
            "poses": poses.matrices(),
            "layers": layers,
        }

    def draw(self, stream: Stream, poses: Poses, moving: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The clips of a chunk, uint8 (CHUNK, frames, image_size, image_size, 3), and `layers`."""
        far_first = stream.integers("side", 2) == 1
        left, right = (PLACES[stream.integers(f"x/{side}", len(PLACES))] for side in ("left", "right"))
        right = STEPS - right
        video = np.empty((CHUNK, self.frames, self.image_size, self.image_size, 3), np.int64)
        video[:] = DARK
        layers = np.full((CHUNK, self.image_size, self.image_size), WALL, np.uint8)
        for number, (layer, depth) in enumerate(((BEHIND, FAR), (BEFORE, NEAR))):
            x = np.where(far_first == (layer == BEHIND), left, right) * (FRAME // STEPS)
            y = stream.between(f"y/{number}", *HEIGHTS) * (FRAME // STEPS)
            own = (moving == 1) & (layer == BEFORE)
            kind = np.where(own, OWN, layer)
            covered = self.cover(poses, depth, *self.track(x, y, own), np.full(CHUNK, SHAPE))
            paint = RGB[COLORS_OF[kind]][:, None, None, None]
            weight = np.rint(covered * np.float32(UNIT)).astype(np.int64)[..., None]
            video += (paint - video) * weight // UNIT
            layers[covered[:, 0] > HALF] = layer
            layers[(covered[:, 0] > HALF) & own[:, None, None]] = OWN
        return video.astype(np.uint8), layers

    def track(self, x: np.ndarray, y: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where a thing is in each frame, seen from the first camera: integers (CHUNK, frames)."""
        way = TRAVEL * np.arange(self.frames) // (self.frames - 1) * own[:, None]
        down = np.where(y < FRAME // 2, 1, -1)[:, None]
        return x[:, None] + np.zeros_like(way), y[:, None] + way * down

    def cover(self, poses: Poses, depth: int, x: np.ndarray, y: np.ndarray, shape: np.ndarray) -> np.ndarray:
        """Share of each pixel that a thing covers, float32 (CHUNK, frames, image_size, image_size).

        The ray through a pixel meets the thing's plane at some distance. There, the shape tells how far outside of it
        the point is.

        Args:
            poses: of the cameras.
            depth: of the plane.
            x: the thing's centre as the first camera sees it, FRAME to the side, (CHUNK, frames).
            y: likewise.
            shape: index to `scenes.SHAPES`, (CHUNK,).
        """
        size = self.image_size
        pixel = ((np.arange(size).astype(np.float32) + HALF) / np.float32(size) - HALF) / np.float32(FOCAL)
        across, down = pixel[None, :], pixel[:, None]
        c, s, cx, cy, cz = (value[:, :, None, None] for value in poses)
        ahead = c - s * across  # of the ray, in the world
        far = (np.float32(depth) - cz) / ahead
        reach = np.float32(RADIUS * depth / (FRAME * FOCAL))
        centre = [((v.astype(np.float32) / np.float32(FRAME) - HALF) * np.float32(depth / FOCAL))[:, :, None, None]
                  for v in (x, y)]  # fmt: skip
        u, v = np.broadcast_arrays(
            (cx + far * (s + c * across) - centre[0]) / reach, (cy + far * down - centre[1]) / reach
        )
        far = np.broadcast_to(far, u.shape)
        outside = np.empty_like(u)
        for each in np.unique(shape):
            outside[shape == each] = DISTANCES[each](u[shape == each], v[shape == each])
        outside = np.where(far > 0, outside, ONE)
        return np.clip(HALF - outside * reach * np.float32(size * FOCAL) / np.where(far > 0, far, ONE), 0, ONE)
