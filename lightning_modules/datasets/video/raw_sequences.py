"""Test sequences of video coding, raw YUV or video files of one folder, as an index: `prepare`, `read_sequence`.

MCL-JCV (Wang et al., ICIP 2016) has 30 source sequences of 5 seconds, 1920 x 1080 pixels, 4:2:0, 8 bits, 24 to 30
frames a second, named `videoSRC01_1920x1080_30.yuv`: a raw file has no header, so its name says size and rate. Copies
have them as `videoSRC01.mp4`, too. (These names are those in public configurations of learned codecs; the data set's
own page was not at hand. The coded clips beside the sources, `videoSRC01_01.mp4` and so on, are not read.)

The index has the columns `file`, `height`, `width`, `frames`, and `rate`. There are no labels. Frames are decoded when
they are judged.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, UInt8

from lightning_modules import rehearsal
from lightning_modules.datasets.download import StandIn, find
from lightning_modules.datasets.video.corpora import table_digest
from lightning_modules.datasets.video.files import BrokenVideo, opened, sound_frames
from lightning_modules.files import replace_folder
from lightning_modules.settings import Count

SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("frames", pa.int64()),
        ("rate", pa.float64()),
    ]
)
RAW = re.compile(r"(?P<name>.+)_(?P<width>\d+)x(?P<height>\d+)_(?P<rate>\d+)\.yuv", re.IGNORECASE)
CODED = (".mp4", ".mkv", ".mov", ".avi", ".y4m")
SPLIT = "test"  # nothing is trained on test sequences
BLUE, RED = 0.0722, 0.2126  # shares of luma (ITU-R BT.709, which high definition has)
LUMA, CHROMA = (16, 219), (128, 224)  # black or grey, and the range, of stored values


class Sequence(NamedTuple):
    """A file, and what is known of it without decoding it; see the columns of the index."""

    file: str
    height: int
    width: int
    frames: int
    rate: float


def prepare(
    folder: Path,
    *,
    name: str,
    videos: str,
    prefix: str,
    sequences: Count,
    height: Count,
    width: Count,
    mirror: str | None = None,
    cache: str,
) -> None:
    """Writes the index of a copy, with the split `test`.

    Args:
        folder: where index and card go.
        name: of the data set, a folder name in the mirror.
        videos: folder of the files.
        prefix: of a sequence's name; digits follow.
        sequences: how many there must be.
        height: of each, in pixels.
        width: likewise.
        mirror: local folder that holds the copy, as it is or below `name`.
        cache: another place where the copy may lie.

    Raises:
        DataUnavailable: the copy is not there.
        ValueError: a sequence is missing, there twice, cut off, or of another size.
    """
    where = find(name, videos, mirror=mirror, cache=Path(cache))
    found: dict[str, Sequence] = {}
    for file in sorted(where.iterdir()):
        raw = RAW.fullmatch(file.name)
        own = raw["name"] if raw else file.stem if file.suffix.lower() in CODED else ""
        if not re.fullmatch(re.escape(prefix) + r"\d+", own):
            continue
        if own in found:
            raise ValueError(f"{where} has {own} as {found[own].file} and {file.name}: keep one of them.")
        found[own] = _described(file, raw)
    if len(found) != sequences:
        raise ValueError(
            f"{where} has {len(found)} sequences {prefix}<number> (.yuv with size and rate in the name, or "
            f"{', '.join(CODED)}), expected {sequences}: complete the copy."
        )
    for each in found.values():
        if (each.height, each.width) != (height, width):
            raise ValueError(
                f"{where / each.file} has {each.width} x {each.height} pixels, expected {width} x {height}: take the "
                "source sequences."
            )
    table = pa.table(dict(zip(SCHEMA.names, map(list, zip(*found.values(), strict=True)), strict=True)), SCHEMA)
    table = table.slice(0, rehearsal.left(0))
    with replace_folder(folder) as new:
        pq.write_table(table, new / f"{SPLIT}.parquet", compression="zstd")
        written = {SPLIT: {"videos": videos, "rows": len(table), "sha256": table_digest(table)}}
        facts = {"name": name, "cache": cache, "many": False, "classes": {}, "splits": written}
        (new / "card.json").write_text(json.dumps(facts, indent=2) + "\n")


def _described(file: Path, raw: re.Match | None) -> Sequence:
    if raw is None:
        with opened(file) as container:
            stream = container.streams.best("video")
            frames = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
            return Sequence(file.name, stream.height, stream.width, frames, float(stream.average_rate or 25))
    height, width = int(raw["height"]), int(raw["width"])
    if height % 2 or width % 2:
        raise ValueError(f"{file} is said to be {width} x {height} pixels, expected even numbers: 4:2:0 has no others.")
    frames, rest = divmod(file.stat().st_size, height * width * 3 // 2)
    if rest or not frames:
        raise ValueError(
            f"{file} has {file.stat().st_size} bytes, which are no whole number of frames of {width} x {height} "
            "pixels, 4:2:0 with 8 bits: it was cut off, or is of another form."
        )
    return Sequence(file.name, height, width, frames, float(raw["rate"]))


def read_sequence(path: Path, height: int, width: int) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """The frames of a sequence as RGB.

    Args:
        path: a raw file, or one that PyAV decodes.
        height: of a raw file's frames.
        width: likewise.

    Raises:
        BrokenVideo: it is not there or damaged.
    """
    for planes in _raw(path, height, width) if path.suffix.lower() == ".yuv" else _decoded(path):
        yield rgb(planes)


def _raw(path: Path, height: int, width: int) -> Iterator[UInt8[np.ndarray, "rows width"]]:
    size = height * width * 3 // 2
    try:
        with path.open("rb") as file:
            while stored := file.read(size):
                if len(stored) < size:
                    raise BrokenVideo(f"{path} ends within a frame of {width} x {height} pixels")
                yield np.frombuffer(stored, np.uint8).reshape(-1, width)
    except OSError as error:
        raise BrokenVideo(f"{path} cannot be read: {error}") from error


def _decoded(path: Path) -> Iterator[UInt8[np.ndarray, "rows width"]]:
    with opened(path) as container:
        for frame in sound_frames(container):
            yield frame.to_ndarray(format="yuv420p")


def rgb(planes: UInt8[np.ndarray, "rows width"]) -> UInt8[np.ndarray, "height width 3"]:
    """A frame of BT.709 in the range of television, 4:2:0, as RGB; each stored colour counts for 2 x 2 pixels.

    Args:
        planes: luma, then both colours of a quarter of its size, as `yuv420p` has them.
    """
    height, width = len(planes) * 2 // 3, planes.shape[1]
    colours = planes[height:].reshape(2, height // 2, width // 2)
    luma = _scaled(planes[:height], LUMA)
    blue, red = (_scaled(plane, CHROMA).repeat(2, 0).repeat(2, 1) for plane in colours)
    blue, red = luma + 2 * (1 - BLUE) * blue, luma + 2 * (1 - RED) * red
    green = (luma - BLUE * blue - RED * red) / (1 - BLUE - RED)
    return (np.stack([red, green, blue], -1) * 255).round().clip(0, 255).astype(np.uint8)


def _scaled(plane: UInt8[np.ndarray, "height width"], stored: tuple[int, int]) -> Float[np.ndarray, "height width"]:
    zero, extent = stored
    return (plane.astype(np.float32) - np.float32(zero)) / np.float32(extent)


def shrunk(picture: UInt8[np.ndarray, "height width 3"], by: int) -> UInt8[np.ndarray, "tall wide 3"]:
    """The means of `by` x `by` pixels.

    Raises:
        ValueError: a side is no multiple of `by`.
    """
    height, width = picture.shape[:2]
    if height % by or width % by:
        raise ValueError(f"shrink is {by}, but frames have {width} x {height} pixels: expected a divisor of both.")
    if by == 1:
        return picture
    sums = picture.reshape(height // by, by, width // by, by, 3).sum((1, 3), dtype=np.int64)
    return ((sums + by * by // 2) // (by * by)).astype(np.uint8)


def stand_in(
    folder: Path, *, rows: int, videos: str, prefix: str, sequences: int, height: int, width: int, **_: object
) -> StandIn:
    """See `download.StandIn`: grainy raw sequences of 22 frames, a fifth as high and wide."""
    draw = np.random.default_rng(0)
    height, width = (max(12, side // 5 // 6 * 6) for side in (height, width))
    (folder / videos).mkdir(parents=True)
    for number in range(rows):
        path = folder / videos / f"{prefix}{number + 1:02d}_{width}x{height}_30.yuv"
        path.write_bytes(draw.integers(16, 236, 22 * height * width * 3 // 2, np.uint8).tobytes())
    changed = {"sequences": rows, "height": height, "width": width, "cache": str(folder)}
    return StandIn(changed, {SPLIT: sequences})
