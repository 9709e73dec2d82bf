"""Pixels of the captioned world: landscapes, and objects painted over them.

Only what IEEE 754 fixes to the last bit is used (+, -, *, /, square root, comparison in float32, and integers): no sums
over floats, no transcendental functions. So the bytes do not depend on the processor.
"""

import numpy as np

from lightning_modules.datasets.world_scenes import FRAME, SINE, TURN, UNIT, Scenes

RGB = np.array(
    [[214, 40, 40], [44, 160, 60], [40, 80, 220], [236, 212, 40], [140, 60, 190], [244, 130, 30], [60, 200, 210], [244, 140, 180]]
)  # fmt: skip
SKY = np.array([[150, 200, 240], [240, 210, 160], [130, 180, 220], [205, 215, 230], [18, 20, 52], [170, 170, 180]])
GROUND = np.array([[90, 160, 70], [206, 170, 100], [30, 90, 150], [236, 240, 246], [30, 44, 40], [96, 96, 104]])
DARK = 102  # brightness of the darker half of a texture, in 1/256
OPAQUE = 128  # of the weights with which an object covers the picture: 255 * 128 fits into 16 bits
BATCH = 512  # objects painted at once: what fits into the processor's cache
STRIPES = np.float32(3.2)  # of a texture, light or dark, to the radius of an object
STRIPED_ACROSS, STRIPED_DOWN = np.array([0, 1, 1, 0]), np.array([0, 0, 1, 1])  # whether a texture changes along x, y

half, one = np.float32(0.5), np.float32(1)


def landscapes(scenes: Scenes, grain: np.ndarray, size: int) -> np.ndarray:
    """Sky and ground on either side of a line of hills, uint8 (scenes, size, size, 3).

    Args:
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


def render(
    scenes: Scenes, x: np.ndarray, y: np.ndarray, radius: np.ndarray, *, grain: np.ndarray, size: int,
    color: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """The frames of scenes whose objects go along paths, a later object before an earlier one; uint8 (scenes, frames,
    size, size, 3).

    Args:
        scenes: landscapes and looks.
        x: centres in each frame, (scenes, MAX_OBJECTS, frames); `y` and `radius` likewise.
        grain: see `landscapes`.
        size: side of the picture in pixels.
        color: of each object in each frame, (scenes, MAX_OBJECTS, frames), where it is not `scenes.color` throughout.
    """
    frames = x.shape[-1]
    color = scenes.color[..., None] if color is None else color
    color, shape, texture = (
        np.broadcast_to(look, x.shape) for look in (color, scenes.shape[..., None], scenes.texture[..., None])
    )
    pictures = np.repeat(landscapes(scenes, grain, size)[:, None], frames, axis=1)
    which = np.arange(len(scenes) * frames).reshape(len(scenes), frames)
    for slot, rows in enumerate(scenes.exists.T):
        looks = (values[rows, slot].ravel() for values in (x, y, radius, shape, color, texture))
        paint(pictures.reshape(-1, size, size, 3), which[rows].ravel(), *looks)
    return pictures


def paint(
    pictures: np.ndarray, which: np.ndarray, x: np.ndarray, y: np.ndarray, radius: np.ndarray, shape: np.ndarray,
    color: np.ndarray, texture: np.ndarray, opacity: np.ndarray | int = OPAQUE,
) -> None:  # fmt: skip
    """Paint one object over each of some pictures, in place. All arrays but the first have an entry for each object.

    Args:
        pictures: uint8 (pictures, size, size, 3), contiguous.
        which: index of the object's picture; no picture twice.
        x: centre, `y` likewise; the object must lie inside the frame.
        radius: of the object.
        shape: index to `SHAPES`; likewise `color` and `texture`.
        opacity: 0 to `OPAQUE`.
    """
    opacity = np.broadcast_to(opacity, which.shape)
    size = pictures.shape[1]
    unit = np.float32(size / FRAME)
    order = np.argsort(radius, kind="stable")  # objects of one batch share the size of their windows
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        batch = batch[np.argsort(shape[batch], kind="stable")]
        _paint_batch(
            pictures,
            which[batch],
            *(values[batch].astype(np.float32) * unit for values in (x, y, radius)),
            shape[batch],
            RGB[color[batch]].astype(np.int16),
            texture[batch],
            opacity[batch].astype(np.float32),
        )


def _paint_batch(
    pictures: np.ndarray, which: np.ndarray, x: np.ndarray, y: np.ndarray, radius: np.ndarray, shape: np.ndarray,
    rgb: np.ndarray, texture: np.ndarray, opacity: np.ndarray,
) -> None:  # fmt: skip
    """Paint objects sorted by shape; lengths are in pixels. Each is drawn in a window that is as large as any needs."""
    count, size = pictures.shape[:2]
    window = min(int(np.ceil(2 * radius.max())) + 2, size)
    left, top = (np.clip(np.floor(z - half * window).astype(np.int64), 0, size - window) for z in (x, y))
    u, v = ((first[:, None] + np.arange(window) + half - z[:, None]).astype(np.float32) / radius[:, None]
            for first, z in ((left, x), (top, y)))  # fmt: skip

    weight = np.floor(coverage(shape, u, v, radius) * opacity[:, None, None]).astype(np.int16)
    dark = _stripes(u, STRIPED_ACROSS[texture])[:, None, :] ^ _stripes(v, STRIPED_DOWN[texture])[:, :, None]

    rows = pictures.reshape(count, size, 3 * size)
    windows = np.lib.stride_tricks.sliding_window_view(rows, (window, 3 * window), axis=(1, 2), writeable=True)
    patch = windows[which, top, 3 * left]
    pixels = patch.reshape(len(which), window, window, 3)
    for channel in range(3):
        below = pixels[..., channel].astype(np.int16)
        light = rgb[:, channel, None, None]
        color = np.where(dark, light * np.int16(2) // np.int16(5), light)
        color -= below
        color *= weight
        color >>= 7
        color += below
        pixels[..., channel] = color
    windows[which, top, 3 * left] = patch


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
    for distance, start, end in zip(DISTANCES, ends, ends[1:], strict=False):
        if start < end:
            inside[start:end] = distance(u[start:end, None, :], v[start:end, :, None])
    inside *= -radius[:, None, None]
    inside += half
    return np.clip(inside, 0, 1, out=inside)


def _circle(u, v):
    return np.sqrt(u * u + v * v) - one


def _square(u, v):
    return np.maximum(abs(u), abs(v)) - np.float32(0.85)


def _triangle(u, v):
    side = abs(u) * np.float32(0.894) - (v + np.float32(0.8)) * np.float32(0.447)
    return np.maximum(v - np.float32(0.8), side)


def _diamond(u, v):
    return (abs(u) + abs(v) - one) * np.float32(0.707)


def _ring(u, v):
    return abs(np.sqrt(u * u + v * v) - np.float32(0.72)) - np.float32(0.26)


def _cross(u, v):
    wide, narrow = np.float32(0.95), np.float32(0.3)
    return np.minimum(np.maximum(abs(u) - narrow, abs(v) - wide), np.maximum(abs(u) - wide, abs(v) - narrow))


def _bar(u, v):
    return np.maximum(abs(u) - one, abs(v) - np.float32(0.38))


def _star(u, v):
    """Four points; its edge is the line on which the sum of the axes' parts and of their geometric mean is constant."""
    u, v = abs(u), abs(v)
    return np.sqrt(u) * np.sqrt(v) * np.float32(1.1) + (u + v) * half - half


DISTANCES = (_circle, _square, _triangle, _diamond, _ring, _cross, _bar, _star)  # from the edge, in radii; by `SHAPES`
