"""Videos with camera poses in RealEstate10K's files (Zhou et al., SIGGRAPH 2018), as one index: `prepare`.

A pose file (.txt) belongs to a clip. Its first line is the address of a video; each further one is a frame: its time in
microseconds, the focal lengths and the principal point in shares of width and height, two zeros, and the twelve numbers
of the pose, world to camera, row by row. The form was checked with files of the data set (those in CameraCtrl's
repository). The videos are on YouTube and have to be there already, each in a file with the video's name.

Videos are decoded when they are trained on, so what is prepared here is small. The index has the columns `file`,
`times` (microseconds), `focal` (two numbers of each clip) and `poses` (twelve numbers of each frame). Splits of videos
alone have empty lists there.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NotRequired
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int
from typing_extensions import TypedDict

from lightning_modules import rehearsal
from lightning_modules.datasets.download import StandIn, find
from lightning_modules.datasets.video.corpora import table_digest
from lightning_modules.datasets.video.drawn import encode
from lightning_modules.files import replace_folder
from lightning_modules.settings import STRICT, Count, Share

SCHEMA = pa.schema([
    ("file", pa.string()), ("times", pa.list_(pa.int64())), ("focal", pa.list_(pa.float64())),
    ("poses", pa.list_(pa.float64())),
])  # fmt: skip
NUMBERS = 19  # of a line: a time, four of the lens, two zeros, twelve of the pose
CROOKED = 1e-2  # by how much the rotation of a pose may differ from a rotation
SECOND = 1_000_000  # microseconds


class PoseFile(NamedTuple):
    """A clip.

    Attributes:
        video: name of the video.
        times: of the frames, in microseconds from the video's beginning.
        lens: focal lengths along x and y and principal point, in shares of width and height.
        poses: world to camera.
    """

    video: str
    times: Int[np.ndarray, " frames"]
    lens: Float[np.ndarray, "frames 4"]
    poses: Float[np.ndarray, "frames 3 4"]


class Posed(TypedDict):
    """The folder with the pose files of a split, null for videos alone; that of its videos; and its number of clips."""

    __pydantic_config__ = STRICT
    poses: str | None
    videos: str
    rows: NotRequired[Count | None]


def read_poses(path: Path) -> PoseFile:
    """The content of a pose file.

    Raises:
        ValueError: it does not have the form.
    """
    try:
        address, *lines = path.read_text(encoding="utf-8").split("\n")
        numbers = np.array([[float(x) for x in line.split()] for line in lines if line.strip()], np.float64)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a pose file of RealEstate10K: {error}") from error
    if numbers.ndim != 2 or numbers.shape[1] != NUMBERS or not np.isfinite(numbers).all():
        raise ValueError(
            f"{path} is no pose file of RealEstate10K: expected an address, and then lines of {NUMBERS} numbers each."
        )
    poses = numbers[:, 7:].reshape(-1, 3, 4)
    turn = poses[:, :, :3]
    if np.abs(turn @ turn.transpose(0, 2, 1) - np.eye(3)).max() > CROOKED or (np.linalg.det(turn) < 0).any():
        raise ValueError(f"{path} has a pose whose first three columns are no rotation: take the official file.")
    query = parse_qs(urlsplit(address.strip()).query).get("v")
    video = query[0] if query else urlsplit(address.strip()).path.rpartition("/")[2]
    return PoseFile(video, numbers[:, 0].astype(np.int64), numbers[:, 1:5], poses)


def prepare(
    folder: Path,
    *,
    name: str,
    splits: dict[str, Posed],
    frames: Count,
    mirror: str | None = None,
    cache: str,
    max_missing: Share = 0.0,
) -> None:
    """Writes the index of a copy.

    Args:
        folder: where index and card go.
        name: of the data set, a folder name in the mirror.
        splits: files of each.
        frames: fewest poses of a clip; shorter ones are left out.
        mirror: local folder that holds the copy, as it is or below `name`.
        cache: another place where the copy may lie.
        max_missing: largest share of a split whose videos may be missing; those clips are left out.

    Raises:
        DataUnavailable: the copy is not there.
        ValueError: a pose file does not have its form, a split has not its clips, or too many videos are missing.
    """
    written = {}
    with replace_folder(folder) as new:
        for split, told in splits.items():
            videos = find(name, told["videos"], mirror=mirror, cache=Path(cache))
            by_name = {path.stem: path.relative_to(videos).as_posix() for path in _files(videos)}
            if told["poses"] is None:
                rows, listed = [(file, [], [], []) for file in by_name.values()], len(by_name)
            else:
                poses = find(name, told["poses"], mirror=mirror, cache=Path(cache))
                clips = [read_poses(path) for path in sorted(poses.rglob("*.txt"))]
                rows, listed = list(_rows(clips, by_name, frames)), len(clips)
                missing = sum(clip.video not in by_name for clip in clips)
                if missing > max_missing * len(clips):
                    raise ValueError(
                        f"the videos of {missing} of {len(clips)} clips of split {split!r} are not in {videos}, more "
                        f"than max_missing ({max_missing}) allows: complete the copy, or raise the share and say so "
                        "beside the results."
                    )
            if told.get("rows") not in (None, listed) or not rows:
                raise ValueError(
                    f"split {split!r} has {listed} clips, {len(rows)} of them with videos and {frames} frames, "
                    f"expected {told.get('rows') or 'some'}: complete the copy."
                )
            table = pa.table(dict(zip(SCHEMA.names, map(list, zip(*rows, strict=True)), strict=True)), SCHEMA)
            table = table.slice(0, rehearsal.left(0))
            pq.write_table(table, new / f"{split}.parquet", compression="zstd")
            written[split] = {"videos": told["videos"], "rows": len(table), "sha256": table_digest(table)}
        facts = {"name": name, "cache": cache, "many": False, "classes": {}, "splits": written}
        (new / "card.json").write_text(json.dumps(facts, indent=2) + "\n")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _rows(clips: list[PoseFile], by_name: Mapping[str, str], frames: int) -> Iterator[tuple[str, list, list, list]]:
    for clip in clips:
        if clip.video in by_name and len(clip.times) >= frames:
            yield by_name[clip.video], clip.times.tolist(), clip.lens[0, :2].tolist(), clip.poses.ravel().tolist()


def stand_in(folder: Path, *, rows: int, splits: Mapping[str, Mapping[str, Any]], frames: int, **_: object) -> StandIn:
    """See `download.StandIn`: a grainy video of a few seconds for each clip, and cameras that truck and pan."""
    for split, told in splits.items():
        first = folder / told["videos"] / f"{split}-0.mp4"
        for row in range(rows):
            video = folder / told["videos"] / f"{split}-{row}.mp4"
            if row == 0:
                encode(video, 3 * frames)
            else:
                video.hardlink_to(first)
            if told["poses"] is not None:
                path = folder / told["poses"] / f"{split}-{row}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(_drawn(f"{split}-{row}", 3 * frames))
    changed = {"splits": {split: {**told, "rows": rows} for split, told in splits.items()}, "cache": str(folder)}
    return StandIn(changed | {"max_missing": 0.0}, {split: told.get("rows") for split, told in splits.items()})


def _drawn(video: str, frames: int) -> str:
    """A pose file in the official form: ten frames a second, a truck to the right and a pan."""
    lines = [f"https://www.youtube.com/watch?v={video}"]
    for number in range(frames):
        cosine, sine = np.cos(0.01 * number), np.sin(0.01 * number)
        pose = [cosine, 0, -sine, -0.05 * number, 0, 1, 0, 0, sine, 0, cosine, 0]
        numbers = [0.5, 0.9, 0.5, 0.5, 0, 0, *pose]
        lines.append(" ".join([str(number * SECOND // 10), *(f"{x:.9f}" for x in numbers)]))
    return "\n".join(lines) + "\n"
