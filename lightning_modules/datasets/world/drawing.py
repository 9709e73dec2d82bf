"""Pixels of the captioned world: landscapes, and objects painted over them.

Only what IEEE 754 fixes to the last bit is used (+, -, *, /, square root, comparison in float32, and integers): no sums
over floats, no transcendental functions. So the bytes do not depend on the processor.
"""

from dataclasses import dataclass, fields, replace
from itertools import pairwise

import numpy as np

from lightning_modules.datasets.world.scenes import FRAME, SINE, TURN, UNIT, Scenes, Tracks

RGB = np.array([[214, 40, 40], [44, 160, 60], [40, 80, 220], [236, 212, 40], [140, 60, 190], [244, 130, 30],
                [60, 200, 210], [244, 140, 180]], np.int16)  # fmt: skip
SHADE = RGB * np.int16(2) // np.int16(5)  # of the darker half of a texture
SKY = np.array([[150, 200, 240], [240, 210, 160], [130, 180, 220], [205, 215, 230], [18, 20, 52], [170, 170, 180]])
GROUND = np.array([[90, 160, 70], [206, 170, 100], [30, 90, 150], [236, 240, 246], [30, 44, 40], [96, 96, 104]])
OPAQUE = 128  # weight with which an object replaces the picture below: 255 times this fits into 16 bits
BATCH = 512  # objects painted at once: what fits into the processor's cache
STRIPES = np.float32(3.2)  # of a texture, light or dark, to the radius of an object
STRIPED_ACROSS, STRIPED_DOWN = np.array([0, 1, 1, 0]), np.array([0, 0, 1, 1])  # whether a texture changes along x, y

HALF, ONE = np.float32(0.5), np.float32(1)


def landscapes(scenes: Scenes, grain: np.ndarray, size: int) -> np.ndarray:
    """Sky and ground on either side of a line of hills, uint8 (scenes, size, size, 3).

    Args:
        scenes: of which only the landscape is drawn.
        grain: random bytes, uint8 (scenes, size, size); the noise they make is as strong as `scenes.grain` says.
        size: side of the picture in pixels.
    """
    rows, columns = np.arange(size), np.arange(size) * TURN // size
    waves = SINE[(columns + scenes.hills[:, None]) % TURN] * 2 + SINE[(3 * columns + scenes.hills[:, None]) % TURN]
    hills = (scenes.horizon[:, None] + waves // 40) * size // FRAME
    is_sky = rows[:, None] < hills[:, None, :]

    fade = (70 + 30 * rows // size)[:, None]  # brightness of a row of sky in 1/100; the ground gets darker downwards
    light = scenes.light[:, None, None]
    sky = (SKY[scenes.place][:, None] * fade * light // (100 * UNIT)).astype(np.int16)
    ground = (GROUND[scenes.place][:, None] * (160 - fade) * light // (100 * UNIT)).astype(np.int16)

    noise = _noise(grain, scenes.grain)
    pictures = np.empty((len(scenes), size, size, 3), np.uint8)
    for channel in range(3):
        values = np.where(is_sky, sky[..., channel, None], ground[..., channel, None])
        values += noise
        pictures[..., channel] = np.clip(values, 0, 255, out=values)
    return pictures


def add_noise(pictures: np.ndarray, random: np.ndarray, strength: np.ndarray) -> None:
    """Add grey noise in place.

    Args:
        pictures: uint8 (pictures, size, size, 3).
        random: bytes, uint8 (pictures, size, size).
        strength: of each picture, 0 to 255, in 1/128 of the random bytes about their middle.
    """
    noise = _noise(random, strength)
    for channel in range(3):
        pictures[..., channel] = np.clip(pictures[..., channel] + noise, 0, 255)


def _noise(random: np.ndarray, strength: np.ndarray) -> np.ndarray:
    return (random.astype(np.int16) - np.int16(128)) * strength.astype(np.int16)[:, None, None] >> 7


@dataclass(frozen=True)
class Objects:
    """Objects to paint: integer arrays of one shape.

    Attributes:
        x: centre; likewise `y`. An object lies inside the frame.
        radius: of the circle; other shapes are within the square around it.
        shape: index to `SHAPES`; likewise `color` and `texture`.
    """

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    shape: np.ndarray
    color: np.ndarray
    texture: np.ndarray

    def __getitem__(self, rows: np.ndarray | tuple) -> "Objects":
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def render(
    scenes: Scenes, tracks: Tracks, *, grain: np.ndarray, size: int, color: np.ndarray | None = None
) -> np.ndarray:
    """The frames of scenes whose objects go along tracks, uint8 (scenes, frames, size, size, 3).

    Where objects meet, the later one of a scene passes before the earlier one.

    Args:
        scenes: landscapes and looks.
        tracks: of each object, each array (scenes, MAX_OBJECTS, frames).
        grain: see `landscapes`.
        size: side of the picture in pixels.
        color: of each object in each frame, (scenes, MAX_OBJECTS, frames), where it is not `scenes.color` throughout.
    """
    frames = tracks.x.shape[-1]
    looks = scenes.shape[..., None], scenes.color[..., None] if color is None else color, scenes.texture[..., None]
    objects = Objects(*np.broadcast_arrays(tracks.x, tracks.y, tracks.radius, *looks))
    pictures = np.repeat(landscapes(scenes, grain, size)[:, None], frames, axis=1)
    numbers = np.arange(len(scenes) * frames).reshape(len(scenes), frames)
    for slot, rows in enumerate(scenes.exists.T):
        paint(pictures.reshape(-1, size, size, 3), numbers[rows].ravel(), objects[rows, slot])
    return pictures


def paint(pictures: np.ndarray, which: np.ndarray, objects: Objects, opacity: np.ndarray | None = None) -> None:
    """Paint one object over each of some pictures, in place.

    Args:
        pictures: uint8 (pictures, size, size, 3), contiguous.
        which: index of each object's picture; no picture twice.
        objects: what is painted; the arrays are flattened.
        opacity: of each object, 0 to `OPAQUE`; `OPAQUE` by default.
    """
    opacity = np.full(len(which), OPAQUE) if opacity is None else opacity
    flat = Objects(*(getattr(objects, field.name).ravel() for field in fields(objects)))
    order = np.argsort(flat.radius, kind="stable")  # objects of one batch share the size of their windows
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        batch = batch[np.argsort(flat.shape[batch], kind="stable")]
        _paint_batch(pictures, which[batch], flat[batch], opacity[batch])


def _paint_batch(pictures: np.ndarray, which: np.ndarray, objects: Objects, opacity: np.ndarray) -> None:
    """Paint objects in the order of their shapes, each in a window as large as the largest of them needs."""
    count, size = pictures.shape[:2]
    x, y, radius = (z.astype(np.float32) * np.float32(size / FRAME) for z in (objects.x, objects.y, objects.radius))
    window = min(int(np.ceil(2 * radius.max())) + 2, size)
    left, top = (np.clip(np.floor(z - HALF * window).astype(np.int64), 0, size - window) for z in (x, y))
    u, v = (((start[:, None] + np.arange(window)).astype(np.float32) + HALF - z[:, None]) / radius[:, None]
            for start, z in ((left, x), (top, y)))  # fmt: skip

    weight = np.floor(coverage(objects.shape, u, v, radius) * opacity.astype(np.float32)[:, None, None])
    weight = weight.astype(np.int16)
    across, down = _stripes(u, STRIPED_ACROSS[objects.texture]), _stripes(v, STRIPED_DOWN[objects.texture])
    dark = across[:, None, :] ^ down[:, :, None]

    rows = pictures.reshape(count, size, 3 * size)
    windows = np.lib.stride_tricks.sliding_window_view(rows, (window, 3 * window), axis=(1, 2), writeable=True)
    patches = windows[which, top, 3 * left]
    pixels = patches.reshape(len(which), window, window, 3)
    for channel, (light, shade) in enumerate(zip(RGB[objects.color].T, SHADE[objects.color].T, strict=True)):
        below = pixels[..., channel].astype(np.int16)
        change = np.where(dark, shade[:, None, None], light[:, None, None])
        change -= below
        change *= weight
        change >>= 7
        pixels[..., channel] = below + change
    windows[which, top, 3 * left] = patches


def _stripes(along: np.ndarray, striped: np.ndarray) -> np.ndarray:
    """Which stripes of a texture are dark, bool: anchored to the object and as wide as its radius tells."""
    return ((np.floor(along * STRIPES).astype(np.int32) & 1) & striped[:, None]).astype(bool)


def coverage(shape: np.ndarray, u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Share of each pixel that an object covers, 0 to 1, with edges one pixel wide; float32 (objects, rows, columns).

    Args:
        shape: index to `SHAPES`, ascending.
        u: pixels' centres along x from the object's centre in units of its radius, (objects, columns).
        v: likewise along y, (objects, rows).
        radius: in pixels.
    """
    inside = np.empty((len(shape), v.shape[1], u.shape[1]), np.float32)
    ends = np.searchsorted(shape, np.arange(len(DISTANCES) + 1))
    for distance, (start, end) in zip(DISTANCES, pairwise(ends), strict=True):
        if start < end:
            inside[start:end] = distance(u[start:end, None, :], v[start:end, :, None])
    inside *= -radius[:, None, None]
    inside += HALF
    return np.clip(inside, 0, 1, out=inside)


# How far a point is outside each shape (negative: inside), in radii; exact where the edge is straight or round.


def _circle(u, v):
    return np.sqrt(u * u + v * v) - ONE


def _square(u, v):
    return np.maximum(abs(u), abs(v)) - np.float32(0.85)


def _triangle(u, v):
    side = abs(u) * np.float32(0.894) - (v + np.float32(0.8)) * np.float32(0.447)
    return np.maximum(abs(v) - np.float32(0.8), side)


def _diamond(u, v):
    return (abs(u) + abs(v) - ONE) * np.float32(0.707)


def _ring(u, v):
    return abs(np.sqrt(u * u + v * v) - np.float32(0.72)) - np.float32(0.26)


def _cross(u, v):
    wide, narrow = np.float32(0.95), np.float32(0.3)
    return np.minimum(np.maximum(abs(u) - narrow, abs(v) - wide), np.maximum(abs(u) - wide, abs(v) - narrow))


def _bar(u, v):
    return np.maximum(abs(u) - ONE, abs(v) - np.float32(0.38))


def _star(u, v):
    """Four points: two slim rhombi across each other, their tips cut off where the box ends."""
    u, v, slim = abs(u), abs(v), np.float32(2.5)
    points = (np.minimum(u + slim * v, slim * u + v) - ONE) * np.float32(0.371)
    return np.maximum(points, np.maximum(u, v) - ONE)


DISTANCES = (_circle, _square, _triangle, _diamond, _ring, _cross, _bar, _star)  # in the order of `SHAPES`
