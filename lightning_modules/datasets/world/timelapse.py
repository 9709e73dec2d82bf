"""Time lapses of the captioned world: landscapes whose clouds and water go with an exactly known flow.

The sky is cut in two zones, left and right, which look alike and have a wind each; below them lie a hill, which rests,
and water with a current of its own. Winds and current are drawn independently of all that is seen in a frame, and they
turn once within a clip: so one vector cannot say how a clip moves, and no frame says it. Each part shows a texture that
is shifted as a whole and is as large as needed: what comes in at a part's edge was not there before.

The flow is backward: frame t + 1 at p shows what frame t shows at p + flow_t(p). In a part it is minus the velocity.
Everything is computed in integers, `FRAME` to the side of the frame. Clips 2 n and 2 n + 1 have one layout.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Integer, UInt8

from lightning_modules.datasets import storage
from lightning_modules.datasets.columns import infer_schema
from lightning_modules.datasets.contact_sheet import write_contact_sheet
from lightning_modules.datasets.world.scenes import CHUNK, FRAME, SINE, TURN, UNIT, Stream
from lightning_modules.files import replace_folder
from lightning_modules.settings import Count

PARTS = ("left sky", "right sky", "water", "hill")
LEFT_SKY, RIGHT_SKY, WATER, HILL = range(len(PARTS))
MOVING = 3  # parts that move, the first ones
SPEED = FRAME // 512  # unit of velocities: a sixteenth of a pixel of 32, each frame
FASTEST = 28  # of a part along each axis, in units of SPEED; of the slowest part, SLOWEST along one of them at least
SLOWEST = 8
LATTICE = 16  # values of a texture along each axis, after which it begins again
COARSE, FINE = FRAME // 4, FRAME // 8  # between two of them: of both layers of a texture
SKIES = np.array([[70, 120, 190], [90, 110, 160], [60, 90, 150], [110, 130, 180]])
CLOUDS = np.array([[245, 245, 245], [235, 225, 215], [225, 230, 240], [250, 240, 225]])
GROUNDS = np.array([[50, 80, 40], [80, 70, 45], [60, 60, 60], [95, 85, 60]])
GRASSES = np.array([[100, 130, 70], [130, 110, 80], [110, 110, 105], [150, 140, 100]])
DEEPS = np.array([[15, 40, 80], [20, 60, 80], [30, 50, 60], [25, 35, 70]])
WAVES = np.array([[90, 140, 180], [100, 150, 160], [120, 150, 170], [110, 125, 175]])
DARKEST, REDDEST = 110, 40  # of UNIT: a clip's least light, and how much more blue than red may go with it


@dataclass(frozen=True, kw_only=True)
class Timelapse:
    """Clips of landscapes that move.

    Columns: `video`; `parts`, the part of each pixel (index to `PARTS`), (image_size, image_size); `velocity`, in
    SPEED, right and down, of each moving part before each later frame, (frames - 1, 3, 2); `light`, in 1/UNIT, how
    bright red, green and blue are in each frame of a day that passes, (frames, 3), which `video` does not have in it,
    see `lit`; `layout`, the same of two clips; `turn`, the first frame that is reached by the second wind.

    Args:
        image_size: side of the frames in pixels.
        frames: number of frames, at least 4.
    """

    name: ClassVar[str] = "timelapse"
    row_group: ClassVar[int] = 64

    image_size: int
    frames: int

    def __post_init__(self):
        if self.image_size < 16:
            raise ValueError(f"image_size ({self.image_size}) must be at least 16.")
        if self.frames < 4:
            raise ValueError(f"frames ({self.frames}) must be at least 4, for the wind to turn.")

    def columns(self, stream: Stream) -> dict[str, np.ndarray]:
        """The columns of a chunk, without `id`."""
        parts = self.parts(stream)
        turn = stream.between("turn", (self.frames + 1) // 3, (2 * self.frames) // 3)
        winds = _winds(stream)
        later = np.arange(1, self.frames) >= turn[:, None]
        velocity = np.where(later[..., None, None], winds[:, 1, None], winds[:, 0, None])
        return {
            "video": self.draw(stream, parts, velocity),
            "parts": parts,
            "velocity": velocity,
            "light": self.light(stream),
            "layout": stream.chunk * CHUNK // 2 + np.arange(CHUNK) // 2,
            "turn": turn,
        }

    def parts(self, stream: Stream) -> Integer[np.ndarray, "rows size size"]:
        """Which part each pixel shows: a hill with a rough ridge before two zones of sky, water before it."""
        x, y = np.arange(self.image_size), np.arange(self.image_size)[:, None]
        centre = (2 * x + 1) * FRAME // (2 * self.image_size)
        height = _pairs(stream.between("ridge", FRAME * 7 // 16, FRAME * 9 // 16))[:, None]
        shore = _pairs(stream.between("shore", FRAME * 10 // 16, FRAME * 12 // 16))[:, None, None]
        phase, waves = _pairs(stream.integers("phase", TURN)), _pairs(stream.between("waves", 1, 2))
        hills = SINE[(phase[:, None] + waves[:, None] * (centre * TURN // FRAME)) % TURN] // 12
        ridge = np.minimum(height + hills, shore[:, 0] - FRAME // 16)[:, None]
        down = (2 * y + 1) * FRAME // (2 * self.image_size)
        cut, slope = (
            _pairs(stream.between("cut", FRAME * 6 // 16, FRAME * 10 // 16)),
            _pairs(stream.integers("slope", 5)),
        )
        edge = cut[:, None, None] + (slope - 2)[:, None, None] * (down - FRAME // 4) // 4
        sky = np.where(centre < edge, LEFT_SKY, RIGHT_SKY)
        return np.where(down < ridge, sky, np.where(down < shore, HILL, WATER))

    def light(self, stream: Stream) -> Integer[np.ndarray, "rows frames 3"]:
        """From full light to dusk, or from dawn to full light, at equal steps."""
        dark = stream.between("dusk", DARKEST, UNIT - 2 * REDDEST)[:, None] + REDDEST * np.array([1, 0, -1])
        share = np.arange(self.frames) * UNIT // (self.frames - 1)
        share = np.where(stream.integers("dawn", 2)[:, None] == 1, UNIT - share, share)
        return UNIT + (dark[:, None] - UNIT) * share[..., None] // UNIT

    def draw(
        self, stream: Stream, parts: Integer[np.ndarray, "rows size size"], velocity: Integer[np.ndarray, "rows t 3 2"]
    ) -> UInt8[np.ndarray, "rows frames size size 3"]:
        """The clips of a chunk: each pixel shows the texture of its part, shifted by all that went before."""
        rows = np.arange(CHUNK)[:, None, None]
        moved = np.zeros((CHUNK, self.frames, len(PARTS), 2), np.int64)
        moved[:, 1:, :MOVING] = SPEED * velocity.cumsum(1)
        lattices = [
            stream.bytes(f"texture/{n}", CHUNK * len(PARTS) * LATTICE**2).reshape(CHUNK, len(PARTS), LATTICE, LATTICE)
            for n in range(2)
        ]
        centre = (2 * np.arange(self.image_size) + 1) * FRAME // (2 * self.image_size)
        low, high = _colours(stream, parts)
        video = np.empty((CHUNK, self.frames, self.image_size, self.image_size, 3), np.uint8)
        for frame in range(self.frames):
            shift = moved[:, frame][rows, parts]  # (rows, size, size, 2)
            at = np.stack([centre - shift[..., 0], centre[:, None] - shift[..., 1]], -1)
            found = _textures(lattices[0], parts, at, COARSE) * 5 + _textures(lattices[1], parts, at, FINE) * 3
            strength = np.clip(2 * (found // 8) - 128, 0, 255)[..., None]
            video[:, frame] = low + (high - low) * strength // 255
        return video


def _pairs(values: np.ndarray) -> np.ndarray:
    """The same for rows 2 n and 2 n + 1: that of the former."""
    return np.repeat(values[::2], 2, axis=0)


def _winds(stream: Stream) -> Integer[np.ndarray, "rows 2 3 2"]:
    """Velocities in SPEED of both winds of a clip, of each part that moves; none is nearly still."""
    wind = stream.between("wind", -FASTEST, FASTEST, 2, MOVING, 2)
    axis, side = (stream.integers(f"wind/{name}", 2, 2, MOVING) for name in ("axis", "side"))
    still = np.abs(wind).max(-1) < SLOWEST
    least = np.where(np.arange(2) == axis[..., None], (2 * side - 1)[..., None] * SLOWEST, 0)
    return np.where(still[..., None], least, wind)


def _colours(stream: Stream, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The darkest and the brightest colour of each pixel's part, (rows, size, size, 3); both zones have the same."""
    kinds = {name: stream.integers(name, len(SKIES))[:, None, None, None] for name in ("sky", "ground", "water")}
    sky, ground, water = kinds.values()
    at = parts[..., None]
    return tuple(
        np.where(at == HILL, hill[ground][..., 0, :], np.where(at == WATER, sea[water][..., 0, :], air[sky][..., 0, :]))
        for air, hill, sea in ((SKIES, GROUNDS, DEEPS), (CLOUDS, GRASSES, WAVES))
    )


def _textures(
    lattice: UInt8[np.ndarray, "rows parts n n"],
    parts: Integer[np.ndarray, "rows size size"],
    at: Integer[np.ndarray, "rows size size 2"],
    cell: int,
) -> Integer[np.ndarray, "rows size size"]:
    """Value noise from 0 to 255: random values at the corners of cells, smoothly blended within them."""
    rows = np.arange(len(lattice))[:, None, None]
    (x, y), (across, down) = (np.moveaxis(values, -1, 0) for values in (at // cell, at % cell))
    across, down = (_smooth(part * UNIT // cell) for part in (across, down))
    corner = [[lattice[rows, parts, (y + j) % LATTICE, (x + i) % LATTICE].astype(np.int64) for i in (0, 1)]
              for j in (0, 1)]  # fmt: skip
    top, bottom = (line[0] * (UNIT - across) + line[1] * across for line in corner)
    return (top * (UNIT - down) + bottom * down) // UNIT**2


def _smooth(share: np.ndarray) -> np.ndarray:
    """3 s^2 - 2 s^3, in 1/UNIT."""
    return share * share * (3 * UNIT - 2 * share) // UNIT**2


def flows(
    parts: Integer[np.ndarray, "rows size size"], velocity: Integer[np.ndarray, "rows t 3 2"]
) -> Float32[np.ndarray, "rows t 2 size size"]:
    """The backward flow before each later frame in pixels, right and down; exact."""
    size, moving = parts.shape[-1], np.zeros((*velocity.shape[:2], len(PARTS), 2), np.int64)
    moving[:, :, :MOVING] = velocity
    rows, steps = np.arange(len(parts))[:, None, None, None], np.arange(velocity.shape[1])[:, None, None]
    each = moving[rows, steps, parts[:, None]]
    pixels = -(each * (SPEED * size)).astype(np.float32) / np.float32(FRAME)
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 2))


def visible(
    parts: Integer[np.ndarray, "rows size size"], flow: Float32[np.ndarray, "rows t 2 size size"]
) -> np.ndarray:
    """Which pixels show what was there a frame before, bool (rows, t, size, size): in the frame, in the same part.

    All four pixels that a bilinear warp reads lie there.
    """
    size = parts.shape[-1]
    at = flow + np.stack(np.meshgrid(np.arange(size), np.arange(size)), 0).astype(np.float32)
    low = np.floor(at).astype(np.int64)
    rows = np.arange(len(parts))[:, None, None, None]
    seen = ((at >= 0) & (at <= size - 1)).all(2)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        x, y = (np.clip(low[:, :, axis] + step, 0, size - 1) for axis, step in ((0, i), (1, j)))
        seen &= parts[rows, y, x] == parts[:, None]
    return seen


def lit(
    video: UInt8[np.ndarray, "rows frames size size 3"], light: Integer[np.ndarray, "rows frames 3"]
) -> UInt8[np.ndarray, "rows frames size size 3"]:
    """Clips in the light of a day that passes."""
    return (video.astype(np.uint16) * light[:, :, None, None].astype(np.uint16) // np.uint16(UNIT)).astype(np.uint8)


def prepare(folder: Path, *, seed: int, sizes: Mapping[str, int], image_size: Count, frames: Count) -> None:
    """Draws the clips, with a contact sheet (`sheet.png`) of the first ones to look at.

    Args:
        folder: where shards, card and sheet go.
        seed: of the world; the splits have clips of their own by their names.
        sizes: number of clips of each split, each even.
        image_size: side of the frames in pixels.
        frames: of a clip.

    Raises:
        ValueError: there is no split, one has an odd number of clips or none, or a clip is too small or too short.
    """
    if not sizes or any(size < 2 or size % 2 for size in sizes.values()):
        raise ValueError(
            f"sizes ({dict(sizes)}) must give each split an even number of clips, for example {{train: 512}}: two of "
            "them have one layout."
        )
    view = Timelapse(image_size=image_size, frames=frames)
    first = next(_blocks(view, seed, next(iter(sizes)), CHUNK))
    schema, shape = infer_schema(first), first["video"].shape[1:]
    with replace_folder(folder) as new:
        written = {
            split: storage.write_blocks(
                new, split, _blocks(view, seed, split, size), "raw", shape, schema=schema, row_group=view.row_group
            )
            for split, size in sizes.items()
        }
        storage.write_card(
            new, name="world_timelapse", splits=written, codec="raw", shape=shape, num_classes=None,
            source=f"drawn: the captioned world, seed {seed}", schema=schema,
        )  # fmt: skip
        write_contact_sheet(new / "sheet.png", first)


def _blocks(view: Timelapse, seed: int, split: str, size: int) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, size, CHUNK):
        chunk = start // CHUNK
        columns = {"id": start + np.arange(CHUNK)} | view.columns(Stream(seed, f"{view.name}/{split}", chunk))
        yield {name: values[: size - start] for name, values in columns.items()}
