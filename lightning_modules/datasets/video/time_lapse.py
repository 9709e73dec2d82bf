"""Time lapses as their authors store them, as an index of clips: `prepare`.

| form | data set | a clip |
|---|---|---|
| `folders` | Sky Time-lapse (2018) | pictures of one folder: `<video>/<clip>/<video>_frames_00086552.jpg` |
| `listed` | Quick-Sky-Time (2020) | `<video>/<name>.mp4`; lines of a list are names, which begin with the video's |
| `files` | your own | a video file, anywhere below a folder |

Checked against what is published: the data set's own readme, as zhangzjn/DTVNet has it, and video_folder_test.py of
weixiong-ur/mdgan; sample_QST_images_for_stylegan2.py of zhangzjn/DTVNet. The files themselves were not at hand.

Frames are decoded when they are trained on, so what is prepared here is small. Of pictures, the index has the columns
`scene` and `files`, in the order of the numbers in their names; of video files, those of `actions`. There are no
labels.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import TypedDict

from lightning_modules import rehearsal
from lightning_modules.datasets.download import StandIn, find
from lightning_modules.datasets.video.actions import Row, write_index
from lightning_modules.datasets.video.corpora import file_name, table_digest
from lightning_modules.datasets.video.drawn import encode
from lightning_modules.files import replace_folder
from lightning_modules.settings import STRICT, Count, Share

SCHEMA = pa.schema([("scene", pa.string()), ("files", pa.list_(pa.string()))])
Form = Literal["folders", "listed", "files"]
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm")  # small letters; large ones count, too
VIDEOS = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v")
STACKED = 4  # times as high as wide is no frame, but several of them
KIND = "time lapse"  # the one class of video files, which the index needs


class Lapses(TypedDict):
    """The folder with the clips of a split, the list of their names (`listed`), and how many there must be."""

    __pydantic_config__ = STRICT
    videos: str
    listed: NotRequired[str | None]
    rows: NotRequired[Count | None]


def prepare(
    folder: Path,
    *,
    name: str,
    form: Form,
    splits: dict[str, Lapses],
    frames: Count,
    mirror: str | None = None,
    cache: str,
    max_missing: Share = 0.0,
) -> None:
    """Writes the index of a copy.

    Args:
        folder: where index and card go.
        name: of the data set, a folder name in the mirror.
        form: how clips are stored, see above.
        splits: files of each.
        frames: fewest of a clip of pictures; shorter ones are left out and counted.
        mirror: local folder that holds the copy, as it is or below `name`.
        cache: another place where the copy may lie.
        max_missing: largest share of the listed videos of a split that may be missing; those clips are left out.

    Raises:
        DataUnavailable: the copy is not there.
        ValueError: a split has not its clips, none that is long enough, or pictures that are several frames each; or
            too many of the listed videos are missing.
    """
    written = {}
    with replace_folder(folder) as new:
        for split, told in splits.items():
            where = find(name, told["videos"], mirror=mirror, cache=Path(cache))
            if (told.get("listed") is None) != (form != "listed"):
                raise ValueError(
                    f"splits.{split}.listed is {told.get('listed')!r}, but form is {form!r}: name the list of clips "
                    "where form is 'listed', and only there."
                )
            if form == "folders":
                clips = _clips(where)
                rows = _of_pictures(where, split, told, clips, frames)
                facts = _write(new / f"{split}.parquet", rows) | {"short": len(clips) - len(rows)}
            else:
                names = None if form == "files" else find(name, told["listed"], mirror=mirror, cache=Path(cache))
                files = _of_videos(where, split, told, names, max_missing)
                facts = write_index(new / f"{split}.parquet", [Row(file, file, (KIND,)) for file in files],
                                    [[0]] * len(files))  # fmt: skip
            written[split] = {"videos": told["videos"], **facts}
        classes = {} if form == "folders" else {"kind": [KIND]}
        facts = {"name": name, "cache": cache, "many": False, "classes": classes, "splits": written}
        (new / "card.json").write_text(json.dumps(facts, indent=2) + "\n")


def numbered(name: str) -> tuple[list[int], str]:
    """What pictures are sorted by: all numbers in their names in turn, so that 10 comes after 9; then the name."""
    return [int(digits) for digits in re.findall(r"\d+", name.rpartition("/")[2])], name


def _clips(where: Path) -> dict[str, list[str]]:
    """The pictures of each folder that has some, in their order; both named from beside `where` on."""
    found: dict[str, list[str]] = {}
    for path in where.rglob("*"):
        if path.suffix.lower() in PICTURES and path.is_file() and not path.name.startswith("."):
            found.setdefault(path.parent.relative_to(where.parent).as_posix(), []).append(path.name)
    return {clip: [f"{clip}/{name}" for name in sorted(found[clip], key=numbered)] for clip in sorted(found)}


def _of_pictures(
    where: Path, split: str, told: Lapses, clips: Mapping[str, list[str]], frames: int
) -> list[tuple[str, list[str]]]:
    """The clips that are long enough."""
    from PIL import Image

    found = [(clip, files) for clip, files in clips.items() if len(files) >= frames]
    if told.get("rows") not in (None, len(clips)) or not found:
        raise ValueError(
            f"split {split!r} has {len(clips)} folders of pictures in {where}, {len(found)} of them with at least "
            f"{frames} frames, expected {told.get('rows') or 'some'}: complete the copy, or correct the number."
        )
    first = where.parent / found[0][1][0]
    try:
        with Image.open(first) as picture:
            wide, tall = picture.size
    except OSError as error:
        raise ValueError(f"{first} cannot be decoded: {error}. Take the official copy.") from error
    if tall >= STACKED * wide:
        raise ValueError(
            f"{first} is {wide} x {tall} pixels: frames lie one above the other, as cvondrick/videogan stores them. "
            "Cut them into a file each, in a folder for each clip."
        )
    return found


def _of_videos(where: Path, split: str, told: Lapses, names: Path | None, max_missing: float) -> list[str]:
    """Files below `where` that are listed, or all."""
    if names is None:
        listed = found = sorted(
            path.relative_to(where).as_posix() for path in where.rglob("*")
            if path.suffix.lower() in VIDEOS and path.is_file()
        )  # fmt: skip
    else:
        listed = _listed(names)
        found = [file for file in listed if (where / file).is_file()]
        if len(listed) - len(found) > max_missing * len(listed):
            lost = next(file for file in listed if file not in set(found))
            raise ValueError(
                f"{len(listed) - len(found)} of {len(listed)} videos of split {split!r} are not in {where}, such as "
                f"{lost}, more than max_missing ({max_missing}) allows: complete the copy, or raise the share and say "
                "so beside the results."
            )
    if told.get("rows") not in (None, len(listed)) or not found:
        raise ValueError(
            f"split {split!r} has {len(listed)} clips, {len(found)} of them in {where}, expected "
            f"{told.get('rows') or 'some'}: complete the copy, or correct the number."
        )
    return found


def _listed(path: Path) -> list[str]:
    """The file of each line.

    Raises:
        ValueError: it is no text, or has a line more than once.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a list of clips: {error}. Take the official file.") from error
    if len(set(lines)) < len(lines):
        raise ValueError(f"{path} names {len(lines) - len(set(lines))} clips more than once: keep one line of each.")
    return [file_name(f"{line.split()[0]}/{line}", ".mp4") for line in lines]


def _write(path: Path, rows: list[tuple[str, list[str]]]) -> dict[str, int | str]:
    columns = dict(zip(SCHEMA.names, map(list, zip(*rows, strict=True)), strict=True))
    table = pa.table(columns, SCHEMA).slice(0, rehearsal.left(0))
    pq.write_table(table, path, compression="zstd")
    return {"rows": len(table), "sha256": table_digest(table)}


def stand_in(
    folder: Path, *, rows: int, form: Form, splits: Mapping[str, Mapping[str, Any]], frames: int, **_: object
) -> StandIn:
    """See `download.StandIn`: one grainy clip under many names, as pictures that drift, or as video files."""
    from PIL import Image

    first: list[Path] = []
    pictures = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
    for split, told in splits.items():
        names = [f"{split}{row // 2} {row % 2}" for row in range(rows)]
        for name in names:
            video = name.split()[0]
            if form == "folders":
                made = [folder / told["videos"] / name.replace(" ", "/") / f"{video}_frames_{n:08d}.jpg"
                        for n in range(frames)]  # fmt: skip
            else:
                made = [folder / told["videos"] / video / f"{name}.mp4"]
            for number, path in enumerate(made):
                path.parent.mkdir(parents=True, exist_ok=True)
                if first:
                    path.hardlink_to(first[number])
                elif form == "folders":
                    Image.fromarray(np.roll(pictures, number, 1)).save(path)
                else:
                    encode(path, 2 * frames, size=(160, 90), key_every=12)
            first = first or made
        if form == "listed":
            (folder / told["listed"]).parent.mkdir(parents=True, exist_ok=True)
            (folder / told["listed"]).write_text("".join(f"{name}\n" for name in names))
    changed = {"splits": {split: {**told, "rows": rows} for split, told in splits.items()}, "cache": str(folder)}
    return StandIn(changed | {"max_missing": 0.0}, {split: told.get("rows") for split, told in splits.items()})
