"""Camera paths: from poses to six numbers a frame, from these to tokens, and back. Imports no torch.

A pose is a matrix (rotation | translation) from world to camera, x right, y down, z forward, as in RealEstate10K. A
path is relative to the first frame: for each later frame where the camera is (x, y, z), and how it is turned (axis
times angle, in radians), both as the first camera sees it. So a truck to the right has a growing x, a pan to the right
a growing turn about y.

How CamViG turns a path into tokens is not known beyond "audio-like". `Bins` is our own design: each of the six numbers
is rounded to one of equally wide bins. `Residual` is nearer to audio: as many tokens, by residual vector quantisation
of a frame's six numbers.
"""

from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from lightning_modules.settings import meant

AXES = ("x", "y", "z", "turn about x", "turn about y", "turn about z")
DIM = len(AXES)
TINY = 1e-8
MOVES = {  # where the camera goes, and how it turns, in units of the reaches
    "still": ((0, 0, 0), (0, 0, 0)),
    "pan left": ((0, 0, 0), (0, -1, 0)),
    "pan right": ((0, 0, 0), (0, 1, 0)),
    "tilt up": ((0, 0, 0), (1, 0, 0)),
    "tilt down": ((0, 0, 0), (-1, 0, 0)),
    "truck left": ((-1, 0, 0), (0, 0, 0)),
    "truck right": ((1, 0, 0), (0, 0, 0)),
    "pedestal up": ((0, -1, 0), (0, 0, 0)),
    "pedestal down": ((0, 1, 0), (0, 0, 0)),
    "dolly in": ((0, 0, 1), (0, 0, 0)),
    "dolly out": ((0, 0, -1), (0, 0, 0)),
}
ORBITS = {"orbit left": -1, "orbit right": 1}  # round a point before the camera, which stays in the middle of the frame

Poses = Float[np.ndarray, "*clips frames 3 4"]
Path = Float[np.ndarray, "*clips later 6"]


def relative(poses: Poses) -> Poses:
    """Poses as the first camera sees them: its own is the identity."""
    turn, shift = poses[..., :3], poses[..., 3:]
    turned = turn @ np.swapaxes(turn[..., :1, :, :], -1, -2)
    return np.concatenate([turned, shift - turned @ shift[..., :1, :, :]], -1)


def path_of(poses: Poses) -> Path:
    """The path of some poses, of all frames but the first."""
    seen = relative(np.asarray(poses, np.float64))[..., 1:, :, :]
    turn, shift = seen[..., :3], seen[..., 3:]
    back = np.swapaxes(turn, -1, -2)
    return np.concatenate([-(back @ shift)[..., 0], rotation_vector(back)], -1)


def poses_of(path: Path) -> Poses:
    """The poses of a path, with the identity before it."""
    turn = np.swapaxes(rotation_matrix(path[..., 3:]), -1, -2)
    later = np.concatenate([turn, -turn @ path[..., :3, None]], -1)
    first = np.broadcast_to(np.eye(3, 4), later[..., :1, :, :].shape)
    return np.concatenate([first, later], -3)


def rotation_vector(rotation: Float[np.ndarray, "*shape 3 3"]) -> Float[np.ndarray, "*shape 3"]:
    """Axis times angle of a rotation by less than half a turn."""
    skew = np.stack([rotation[..., b, a] - rotation[..., a, b] for a, b in ((1, 2), (2, 0), (0, 1))], -1) / 2
    sine = np.sqrt((skew**2).sum(-1, keepdims=True))
    cosine = (np.trace(rotation, axis1=-2, axis2=-1)[..., None] - 1) / 2
    return skew * np.where(sine > TINY, np.arctan2(sine, cosine) / np.maximum(sine, TINY), 1.0)


def rotation_matrix(vector: Float[np.ndarray, "*shape 3"]) -> Float[np.ndarray, "*shape 3 3"]:
    """The rotation about an axis by an angle, which is the vector's length (Rodrigues)."""
    angle = np.sqrt((vector**2).sum(-1))[..., None, None]
    x, y, z = np.moveaxis(vector, -1, 0)
    nil = np.zeros_like(x)
    cross = np.stack([nil, -z, y, z, nil, -x, -y, x, nil], -1).reshape(*x.shape, 3, 3)
    small = np.maximum(angle, TINY)
    return np.eye(3) + cross * (np.sin(small) / small) + cross @ cross * ((1 - np.cos(small)) / small**2)


def scaled(path: Path, unit: float | None) -> Path:
    """A path whose translations are in a unit.

    Args:
        path: in units of its own.
        unit: such as the depth of the scene; null for the path's own longest distance from the first camera, which
            makes paths of monocular reconstructions comparable, but says no more how far a camera went.
    """
    where = path[..., :3]
    longest = np.sqrt((where**2).sum(-1)).max(-1)[..., None, None] if unit is None else np.float64(unit)
    return np.concatenate([where / np.where(longest > TINY, longest, 1.0), path[..., 3:]], -1)


def named_move(name: str, frames: int, *, translation: float, rotation: float, pivot: float) -> Path:
    """The path of a named move at equal steps.

    Args:
        name: one of `MOVES` or `ORBITS`.
        frames: of the clip, the first included.
        translation: how far the camera goes in all.
        rotation: how far it turns in all, in radians.
        pivot: distance of the point that an orbit goes round.

    Raises:
        ValueError: the name is unknown, or the orbit longer than a quarter of its circle.
    """
    along = np.linspace(0, 1, frames)[1:, None]
    if name in MOVES:
        where, turn = (np.array(each, np.float64) for each in MOVES[name])
        return np.concatenate([along * where * translation, along * turn * rotation], -1)
    if name not in ORBITS:
        raise ValueError(f"there is no move {name!r}{meant(name, [*MOVES, *ORBITS])}")
    if translation >= pivot:
        raise ValueError(
            f"an orbit of {translation} round a point {pivot} away is more than a quarter of a circle: make it shorter."
        )
    angle = ORBITS[name] * along[:, 0] * np.arcsin(translation / pivot)
    path = np.zeros((frames - 1, DIM))
    path[:, 0], path[:, 2], path[:, 4] = pivot * np.sin(angle), pivot * (1 - np.cos(angle)), -angle
    return path


@runtime_checkable
class Encoding(Protocol):
    """Paths as tokens."""

    levels: int
    codes: int

    def encode(self, path: Path) -> Int[np.ndarray, "*clips later levels"]:
        """Tokens of each frame, 0 to `codes` - 1."""
        ...

    def decode(self, tokens: Int[np.ndarray, "*clips later levels"]) -> Path:
        """The path that the tokens stand for."""
        ...


class Bins:
    """Each number rounded to the middle of one of equally wide bins; 0 is the middle of one, so nothing stays nothing.

    Args:
        codes: bins of an axis, even.
        translation: the largest translation; what is larger is cut off.
        rotation: the largest rotation, in radians.

    Raises:
        ValueError: the number of bins is odd.
    """

    levels = DIM

    def __init__(self, codes: int, *, translation: float, rotation: float):
        if codes % 2:
            raise ValueError(f"codes is {codes}, expected an even number of bins: one stands for 0, see `Bins`.")
        self.codes = codes
        self.reach = np.array([translation] * 3 + [rotation] * 3)

    def encode(self, path: Path) -> Int[np.ndarray, "*clips later 6"]:
        """See `Encoding`; the token of 0 is `codes` / 2."""
        half = self.codes // 2
        return np.clip(np.rint(path / self.reach * half) + half, 0, self.codes - 1).astype(np.int64)

    def decode(self, tokens: Int[np.ndarray, "*clips later 6"]) -> Path:
        """See `Encoding`."""
        half = self.codes // 2
        return (tokens - half) / half * self.reach


class Residual:
    """Six levels of vectors of a frame's six numbers, each level for what those before it leave.

    The vectors are the means of clusters (Lloyd's way, from a fixed start) of smooth paths that are drawn here: they
    depend on the settings alone, and on no data.

    Args: see `Bins`.
    """

    levels = DIM
    DRAWN, ROUNDS = 512, 8  # paths, and rounds of clustering

    def __init__(self, codes: int, *, translation: float, rotation: float, frames: int):
        self.codes, self.frames = codes, frames
        self.reach = np.array([translation] * 3 + [rotation] * 3)

    @cached_property
    def vectors(self) -> Float[np.ndarray, "levels codes 6"]:
        """The vectors of each level, in units of the reaches."""
        left, found = self._drawn(), []
        for _ in range(self.levels):
            centres = left[np.linspace(0, len(left) - 1, self.codes).astype(int)]
            for _ in range(self.ROUNDS):
                nearest = self._nearest(left, centres)
                counts = np.bincount(nearest, minlength=self.codes)[:, None]
                sums = np.stack([np.bincount(nearest, left[:, axis], self.codes) for axis in range(DIM)], -1)
                centres = np.where(counts > 0, sums / np.maximum(counts, 1), centres)
            left = left - centres[self._nearest(left, centres)]
            found.append(centres)
        return np.stack(found)

    def encode(self, path: Path) -> Int[np.ndarray, "*clips later 6"]:
        """See `Encoding`."""
        left, found = (np.asarray(path) / self.reach).reshape(-1, DIM), []
        for centres in self.vectors:
            found.append(self._nearest(left, centres))
            left = left - centres[found[-1]]
        return np.stack(found, -1).reshape(*np.shape(path)[:-1], self.levels)

    def decode(self, tokens: Int[np.ndarray, "*clips later 6"]) -> Path:
        """See `Encoding`."""
        return sum(centres[tokens[..., level]] for level, centres in enumerate(self.vectors)) * self.reach

    def _drawn(self) -> Float[np.ndarray, "points 6"]:
        """Frames of paths that go straight along one or several of the axes, all within the reaches."""
        draw = np.random.Philox(key=[0, 0])
        words = draw.random_raw(self.DRAWN * 2 * DIM).reshape(self.DRAWN, 2, DIM)
        ends = (words[:, 0] >> np.uint64(40)).astype(np.float64) / 2**23 - 1
        ends = ends * ((words[:, 1] >> np.uint64(62)) == 0)  # a quarter of the axes takes part
        along = np.arange(1, self.frames) / (self.frames - 1)
        return (ends[:, None] * along[:, None]).reshape(-1, DIM)

    @staticmethod
    def _nearest(points: Float[np.ndarray, "points 6"], centres: Float[np.ndarray, "codes 6"]) -> np.ndarray:
        distance = sum((points[:, None, axis] - centres[None, :, axis]) ** 2 for axis in range(DIM))
        return distance.argmin(1)
