"""BAIR's robot pushing, small (Ebert et al. 2017), from its own TFRecords, as an index of their records: `prepare`.

A record is a trajectory of 30 frames, 64 pixels wide and high, of two cameras: `<frame>/image_main/encoded` and
`<frame>/image_aux1/encoded`, which hold pixels as they are, and actions (tensorflow/datasets, `bair_robot_pushing.py`).
The index has the columns `file`, `at` and `length`, in bytes; frames are read when they are trained on, see
`frame_sources`. There are no labels.
"""

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8
from typing_extensions import TypedDict

from lightning_modules import rehearsal
from lightning_modules.datasets import tfrecords
from lightning_modules.datasets.download import StandIn, find
from lightning_modules.datasets.tfrecords import DamagedRecord
from lightning_modules.datasets.video.corpora import table_digest
from lightning_modules.datasets.video.files import BrokenVideo
from lightning_modules.files import replace_folder
from lightning_modules.settings import STRICT, Count

SCHEMA = pa.schema([("file", pa.string()), ("at", pa.int64()), ("length", pa.int64())])
SIDE, FRAMES = 64, 30  # of the official files


class Recorded(TypedDict):
    """The folder with the TFRecords of a split, and how many trajectories there must be, where that is known."""

    __pydantic_config__ = STRICT
    records: str
    rows: NotRequired[Count | None]


def prepare(
    folder: Path,
    *,
    name: str,
    splits: dict[str, Recorded],
    camera: str = "image_aux1",
    mirror: str | None = None,
    cache: str,
) -> None:
    """Writes the index of a copy.

    Args:
        folder: where index and card go.
        name: of the data set, a folder name in the mirror.
        splits: files of each.
        camera: whose frames are read.
        mirror: local folder that holds the copy, as it is or below `name`.
        cache: another place where the copy may lie.

    Raises:
        DataUnavailable: the copy is not there.
        ValueError: a file is damaged, has other features, or a split not its rows.
    """
    written = {}
    with replace_folder(folder) as new:
        for split, told in splits.items():
            where = find(name, told["records"], mirror=mirror, cache=Path(cache))
            found = [
                (file.relative_to(where).as_posix(), at, length)
                for file in sorted(where.rglob("*.tfrecord*"))
                for at, length in tfrecords.places(file)
            ]
            expected = told.get("rows") or len(found)
            if not found or len(found) != expected:
                raise ValueError(
                    f"split {split!r} has {len(found)} trajectories in {where}, expected {expected or 'some'}: "
                    "complete the copy, or take the official files."
                )
            read_frames(where / found[0][0], *found[0][1:], camera)
            table = pa.table(dict(zip(SCHEMA.names, zip(*found, strict=True), strict=True)), SCHEMA)
            table = table.slice(0, rehearsal.left(0))
            pq.write_table(table, new / f"{split}.parquet", compression="zstd")
            written[split] = {"videos": told["records"], "rows": len(table), "sha256": table_digest(table)}
        facts = {"name": name, "cache": cache, "camera": camera, "many": False, "classes": {}, "splits": written}
        (new / "card.json").write_text(json.dumps(facts, indent=2) + "\n")


def read_frames(path: Path, at: int, length: int, camera: str) -> list[bytes]:
    """The frames of a trajectory, as they are stored.

    Raises:
        BrokenVideo: the record is damaged, or has no frames of this camera.
    """
    try:
        found = tfrecords.features(tfrecords.read(path, at, length))
    except DamagedRecord as error:
        raise BrokenVideo(str(error)) from error
    frames, number = [], 0
    while stored := found.get(f"{number}/{camera}/encoded"):
        frames.append(stored[0])
        number += 1
    if not frames:
        raise BrokenVideo(f"{path} has no feature 0/{camera}/encoded at byte {at}, only {', '.join(sorted(found)[:4])}")
    return frames


def pixels(stored: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """A frame: pixels as they are, as in the official files, or JPEG or PNG.

    Raises:
        BrokenVideo: it is neither.
    """
    if len(stored) == 3 * SIDE**2:
        return np.frombuffer(bytearray(stored), np.uint8).reshape(SIDE, SIDE, 3)
    from PIL import Image

    try:
        with Image.open(BytesIO(stored)) as picture:
            return np.array(picture.convert("RGB"))
    except OSError as error:
        raise BrokenVideo(
            f"a frame of {len(stored)} bytes is neither pixels of {SIDE} x {SIDE} nor a picture"
        ) from error


def stand_in(
    folder: Path, *, rows: int, splits: Mapping[str, Mapping[str, Any]], camera: str = "image_aux1", **_: object
) -> StandIn:
    """See `download.StandIn`: trajectories of grainy frames, two files for each split."""
    draw = np.random.default_rng(0)
    for split, told in splits.items():
        for file in range(2):
            drawn = [trajectory(draw.integers(0, 256, (FRAMES, SIDE, SIDE, 3), np.uint8), camera)
                     for _ in range((rows + file) // 2)]  # fmt: skip
            tfrecords.write(folder / told["records"] / f"traj_{file}_{split}.tfrecords", drawn)
    changed = {"splits": {split: {**told, "rows": rows} for split, told in splits.items()}, "cache": str(folder)}
    return StandIn(changed, {split: told.get("rows") for split, told in splits.items()})


def trajectory(frames: UInt8[np.ndarray, "frames height width 3"], camera: str) -> bytes:
    """A record in the official form, both cameras with the same frames and the robot at rest."""
    named: dict[str, tfrecords.Value] = {}
    for number, frame in enumerate(frames):
        named |= {f"{number}/{each}/encoded": [frame.tobytes()] for each in {camera, "image_main"}}
        named |= {f"{number}/action": [0.0] * 4, f"{number}/endeffector_pos": [0.0] * 3}
    return tfrecords.example(named)
