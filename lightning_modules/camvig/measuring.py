"""What camera a clip was seen by, measured in its pixels by classical vision (OpenCV): `shifts`, `camera`, `between`.

- `shifts`: optical flow from the first frame to each later one (Farneback), its median over a thing.
- `camera`: the pose that explains such a flow best, where the depth of each pixel of the first frame is known.
- `between`: the essential matrix of tracked corners, where no depth is known: how the camera turned, and in which
  direction it went. How far is not to be known from one camera.

Measure real clips and what comes back from the tokenizer first: a generator cannot be judged more finely than these.
OpenCV chooses its code to fit the processor; here it is told not to, so that numbers are the same everywhere.
"""

from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer, UInt8

from lightning_modules.camvig.paths import rotation_matrix, rotation_vector

SMALLEST, COARSEST = 32, 8  # pixels a side: what smaller frames are enlarged to for the flow; of its pyramid's top
ROUNDS, NEIGHBOURS, SPREAD = 5, 5, 1.1  # of Farneback's flow
CORNERS, QUALITY, APART, LEAST = 400, 0.01, 5, 8  # corners to track, and how few still give an essential matrix
STEPS, DAMPING = 3, 1e-3  # of the fit of a pose

Frames = UInt8[np.ndarray, "frames height width 3"]


class Turned(NamedTuple):
    """How a camera moved between two frames: rotation as axis times angle, and the direction, of length 1."""

    rotation: Float[np.ndarray, " 3"]
    direction: Float[np.ndarray, " 3"]


@cache
def opencv() -> ModuleType:
    """OpenCV in one thread, with code that every x86-64 processor has."""
    import cv2

    cv2.setNumThreads(1)
    cv2.setUseOptimized(False)
    cv2.ipp.setUseIPP(False)
    return cv2


def flows(frames: Frames) -> Float[np.ndarray, "later height width 2"]:
    """Where each pixel of the first frame is seen in each later one, as a shift right and down, in pixels."""
    cv2 = opencv()
    factor = -(-SMALLEST // min(frames.shape[1:3]))
    grey = [_grey(frame, factor) for frame in frames]
    coarse = max(1, min(grey[0].shape) // COARSEST)
    levels, window, found = coarse.bit_length() - 1, 2 * coarse + 1, []
    for later in grey[1:]:
        flow = cv2.calcOpticalFlowFarneback(
            grey[0], later, None, 0.5, levels, window, ROUNDS, NEIGHBOURS, SPREAD, 0
        )  # fmt: skip
        found.append(cv2.resize(flow, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA) / factor)
    return np.stack(found).astype(np.float64)


def shifts(
    flow: Float[np.ndarray, "later height width 2"],
    layers: Integer[np.ndarray, "height width"],
    things: Mapping[int, object],
) -> Float[np.ndarray, "things later 2"]:
    """The median shift of each thing in each later frame; NaN for one that the first frame does not show.

    Args:
        flow: see `flows`.
        layers: which thing each pixel of the first frame shows.
        things: numbers in `layers`.
    """
    missing = np.full((len(flow), 2), np.nan)
    return np.stack([np.median(flow[:, layers == n], 1) if (layers == n).any() else missing for n in things])


def expected(
    poses: Float[np.ndarray, "frames 3 4"],
    layers: Integer[np.ndarray, "height width"],
    depths: Mapping[int, float],
    focal: float,
) -> Float[np.ndarray, "things later 2"]:
    """What `shifts` should be, by the pinhole camera: exact medians over the same pixels.

    Args:
        poses: of the frames, the first the identity.
        layers: see `shifts`.
        depths: of each thing in the first frame.
        focal: focal length in sides of the frame.
    """
    side, dense = layers.shape[1], np.zeros((len(poses) - 1, *layers.shape, 2))
    for number, depth in depths.items():
        row, column = np.nonzero(layers == number)
        at = np.stack([column, row], -1) + 0.5
        for later, pose in enumerate(poses[1:]):
            dense[later, row, column] = seen(at, np.full(len(at), depth), pose, focal * side, side / 2) - at
    return shifts(dense, layers, depths)


def seen(
    at: Float[np.ndarray, "points 2"],
    depth: Float[np.ndarray, " points"],
    pose: Float[np.ndarray, "3 4"],
    focal: float,
    middle: float,
) -> Float[np.ndarray, "points 2"]:
    """Where another camera sees points of the first frame.

    Args:
        at: places in the first frame, in pixels from its top left corner.
        depth: of each point.
        pose: of the other camera, the first one's being the identity.
        focal: focal length in pixels.
        middle: of the frame, a square, in pixels; there both cameras look at.
    """
    point = np.concatenate([(at - middle) / focal, np.ones((len(at), 1))], -1) * depth[:, None]
    other = point @ pose[:, :3].T + pose[:, 3]
    return other[:, :2] / np.maximum(other[:, 2:], 1e-6) * focal + middle


def camera(
    at: Float[np.ndarray, "points 2"],
    to: Float[np.ndarray, "points 2"],
    depth: Float[np.ndarray, " points"],
    focal: float,
    middle: float,
) -> Float[np.ndarray, " 6"]:
    """The path of a camera that sees points, as `paths` has it: where it is, and how it is turned.

    Least squares of the distances in the frame (Gauss and Newton), a little damped: two planes and small angles tell a
    truck from a pan only by how differently they shift.

    Args:
        at: places in the first frame, in pixels.
        to: places in the other.
        depth: of each point.
        focal: focal length in pixels.
        middle: of the frame, see `seen`.
    """
    found = np.zeros(6)
    for _ in range(STEPS):
        base = _seen_by(at, depth, found, focal, middle)
        slopes = np.stack(
            [(_seen_by(at, depth, found + step, focal, middle) - base).ravel() / 1e-4 for step in 1e-4 * np.eye(6)], -1
        )
        normal = slopes.T @ slopes / len(at) + DAMPING * np.eye(6)
        found = found + np.linalg.solve(normal, slopes.T @ (to - base).ravel() / len(at) - DAMPING * found)
    return found


def _seen_by(at: np.ndarray, depth: np.ndarray, path: np.ndarray, focal: float, middle: float) -> np.ndarray:
    turn = rotation_matrix(path[3:]).T
    return seen(at, depth, np.concatenate([turn, -(turn @ path[:3])[:, None]], 1), focal, middle)


def cameras(
    flow: Float[np.ndarray, "later height width 2"],
    layers: Integer[np.ndarray, "height width"],
    depths: Mapping[int, float],
    focal: float,
) -> Float[np.ndarray, "later 6"]:
    """The path that a flow tells, of all pixels whose depth is known; see `camera`.

    Args:
        flow: see `flows`.
        layers: see `shifts`.
        depths: of each thing.
        focal: in sides of the frame.
    """
    row, column = np.nonzero(np.isin(layers, list(depths)))
    at = np.stack([column, row], -1) + 0.5
    depth = np.array([depths[number] for number in layers[row, column]], np.float64)
    side = layers.shape[1]
    return np.stack([camera(at, at + each[row, column], depth, focal * side, side / 2) for each in flow])


def between(
    first: UInt8[np.ndarray, "height width 3"],
    later: UInt8[np.ndarray, "height width 3"],
    focal: Float[np.ndarray, " 2"],
    centre: Float[np.ndarray, " 2"],
) -> Turned | None:
    """How the camera moved from one frame to another: corners, their tracks, and the essential matrix of these.

    Args:
        first: a frame.
        later: another of the same scene.
        focal: focal lengths along x and y, in pixels.
        centre: where the camera looks at, in pixels.

    Returns:
        Nothing where too few corners can be tracked, or no essential matrix explains them.
    """
    cv2 = opencv()
    before, after = _grey(first, 1), _grey(later, 1)
    corners = cv2.goodFeaturesToTrack(before, CORNERS, QUALITY, APART)
    if corners is None:
        return None
    tracked, found, _ = cv2.calcOpticalFlowPyrLK(before, after, corners, None)
    kept = found.ravel() == 1
    return from_points(corners[kept, 0].astype(np.float64), tracked[kept, 0].astype(np.float64), focal, centre)


def from_points(
    at: Float[np.ndarray, "points 2"],
    to: Float[np.ndarray, "points 2"],
    focal: Float[np.ndarray, " 2"],
    centre: Float[np.ndarray, " 2"],
) -> Turned | None:
    """How the camera moved, from points that were found again; see `between`."""
    if len(at) < LEAST:
        return None
    cv2 = opencv()
    cv2.setRNGSeed(0)
    one, two = ((each - centre) / focal for each in (at, to))
    matrix, inliers = cv2.findEssentialMat(one, two, np.eye(3), cv2.RANSAC, 0.999, 1.0 / float(np.mean(focal)))
    if matrix is None or matrix.shape != (3, 3):
        return None
    _, turn, shift, _ = cv2.recoverPose(matrix, one, two, np.eye(3), mask=inliers)
    return Turned(rotation_vector(turn.T), -(turn.T @ shift)[:, 0])


def angle_between(one: Float[np.ndarray, " 3"], two: Float[np.ndarray, " 3"]) -> float:
    """The angle between two directions in degrees; NaN where one of them has no length."""
    lengths = np.sqrt((one**2).sum() * (two**2).sum())
    return float(np.degrees(np.arccos(np.clip(one @ two / lengths, -1, 1)))) if lengths > 0 else float("nan")


def turn_between(one: Float[np.ndarray, " 3"], two: Float[np.ndarray, " 3"]) -> float:
    """The angle in degrees of the rotation that leads from one to the other, both axis times angle."""
    rest = rotation_vector(rotation_matrix(one).T @ rotation_matrix(two))
    return float(np.degrees(np.sqrt((rest**2).sum())))


def _grey(frame: UInt8[np.ndarray, "height width 3"], factor: int) -> UInt8[np.ndarray, "tall wide"]:
    cv2 = opencv()
    grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
    return grey if factor == 1 else cv2.resize(grey, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
