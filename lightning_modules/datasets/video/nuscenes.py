"""Videos of one camera of nuScenes (Caesar et al. 2020) from its tables, as an index of pictures: `prepare`.

A scene lasts 20 seconds. The pictures of a camera, about 12 a second, are rows of `sample_data.json`: key frames in
`samples/`, two a second, and those between them in `sweeps/`. A row names its sensor (by `calibrated_sensor`), its
scene (by `sample`), a file and a time (docs/schema_nuscenes.md of nutonomy/nuscenes-devkit). The index has the columns
`files`, in the order of their times, and `scene`. There are no labels.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_modules import rehearsal
from lightning_modules.datasets.download import StandIn, find
from lightning_modules.datasets.video.corpora import file_name, table_digest
from lightning_modules.files import replace_folder
from lightning_modules.settings import Count, Share

SCHEMA = pa.schema([("scene", pa.string()), ("files", pa.list_(pa.string()))])


def prepare(
    folder: Path,
    *,
    name: str,
    tables: str,
    scenes: Count | None = None,
    camera: str = "CAM_FRONT",
    key_frames: bool = False,
    parts: Count = 1,
    judged_every: Count = 10,
    mirror: str | None = None,
    cache: str,
    max_missing: Share = 0.0,
) -> None:
    """Writes the index of a copy, in two splits, `train` and `val`.

    Args:
        folder: where index and card go.
        name: of the data set, a folder name in the mirror.
        tables: folder with the tables, such as `v1.0-trainval`; pictures lie beside it.
        scenes: how many there must be; null where that is not checked.
        camera: channel of the sensor.
        key_frames: whether only the key frames are taken, two a second.
        parts: of equal length that the pictures of a scene are cut into, each a video.
        judged_every: which scenes are in `val`, in the order of their names.
        mirror: local folder that holds the copy, as it is or below `name`.
        cache: another place where the copy may lie.
        max_missing: largest share of the pictures that may be missing; a video with such a gap is left out.

    Raises:
        DataUnavailable: the copy is not there.
        ValueError: a table does not have its form, scenes are missing, or too many pictures are.
    """
    where = find(name, tables, mirror=mirror, cache=Path(cache))
    videos = _of_scenes(where, camera, key_frames)
    if scenes not in (None, len(videos)):
        raise ValueError(f"{where} has {len(videos)} scenes, expected {scenes}: complete the copy.")
    listed = [file for files in videos.values() for file in files]
    lost = {file for file in listed if not (where.parent / file).is_file()}
    if len(lost) > max_missing * len(listed):
        raise ValueError(
            f"{len(lost)} of {len(listed)} pictures of {camera} are not beside {where}, such as {min(lost)}, more than "
            f"max_missing ({max_missing}) allows: complete the copy, or raise the share and say so beside the results."
        )
    rows: dict[str, list[tuple[str, list[str]]]] = {"train": [], "val": []}
    for number, scene in enumerate(sorted(videos)):
        for part in np.array_split(np.array(videos[scene]), parts):
            if len(part) and lost.isdisjoint(part):
                rows["val" if number % judged_every == judged_every - 1 else "train"].append((scene, part.tolist()))
    written = {}
    with replace_folder(folder) as new:
        for split, found in rows.items():
            if not found:
                raise ValueError(f"split {split!r} has no videos: {len(videos)} scenes, judged_every {judged_every}.")
            columns = dict(zip(SCHEMA.names, map(list, zip(*found, strict=True)), strict=True))
            table = pa.table(columns, SCHEMA).slice(0, rehearsal.left(0))
            pq.write_table(table, new / f"{split}.parquet", compression="zstd")
            written[split] = {"videos": tables, "rows": len(table), "sha256": table_digest(table)}
        facts = {"name": name, "cache": cache, "camera": camera, "many": False, "classes": {}, "splits": written}
        (new / "card.json").write_text(json.dumps(facts, indent=2) + "\n")


def _of_scenes(where: Path, camera: str, key_frames: bool) -> dict[str, list[str]]:
    """The pictures of a camera by the names of scenes, in the order of their times."""
    try:
        sensors = {row["token"]: row["channel"] for row in _table(where, "sensor")}
        if camera not in sensors.values():
            raise ValueError(f"camera ({camera!r}) is not in {where}, expected one of {', '.join(sensors.values())}.")
        own = {row["token"] for row in _table(where, "calibrated_sensor") if sensors[row["sensor_token"]] == camera}
        names = {row["token"]: row["name"] for row in _table(where, "scene")}
        scenes = {row["token"]: names[row["scene_token"]] for row in _table(where, "sample")}
        found = defaultdict(list)
        for row in _table(where, "sample_data"):
            if row["calibrated_sensor_token"] in own and (row["is_key_frame"] or not key_frames):
                found[scenes[row["sample_token"]]].append((row["timestamp"], file_name(row["filename"], None)))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{where} does not have the form of nuScenes' tables ({error!r}).") from error
    return {scene: [file for _, file in sorted(rows)] for scene, rows in found.items()}


def _table(where: Path, name: str) -> list[dict[str, Any]]:
    path = where / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"{path} is not there: take the whole folder of tables.")
    return json.loads(path.read_text(encoding="utf-8"))


def stand_in(
    folder: Path, *, rows: int, tables: str, camera: str = "CAM_FRONT", parts: int = 1, scenes: int | None = None,
    **_: object,
) -> StandIn:  # fmt: skip
    """See `download.StandIn`: scenes of 36 small pictures, a third of them key frames, every second scene in `val`."""
    from PIL import Image

    count = 2 * -(-rows // parts)
    written = {"sensor": [{"token": "s0", "channel": camera}, {"token": "s1", "channel": "LIDAR_TOP"}],
               "calibrated_sensor": [{"token": "c0", "sensor_token": "s0"}, {"token": "c1", "sensor_token": "s1"}],
               "scene": [{"token": f"t{n}", "name": f"scene-{n:04d}"} for n in range(count)],
               "sample": [], "sample_data": []}  # fmt: skip
    draw = np.random.default_rng(0)
    for scene in range(count):
        for number in range(36 * parts):
            key = number % 3 == 0
            file = f"{'samples' if key else 'sweeps'}/{camera}/n{scene}__{camera}__{number:04d}.jpg"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            if number == 0:
                first = folder / file
                Image.fromarray(draw.integers(0, 256, (90, 160, 3), np.uint8)).save(first)
            else:
                (folder / file).hardlink_to(first)
            if key:
                written["sample"].append({"token": f"{scene}-{number}", "scene_token": f"t{scene}"})
            facts = {"sample_token": f"{scene}-{number - number % 3}", "timestamp": number, "is_key_frame": key}
            written["sample_data"] += [
                {"calibrated_sensor_token": "c0", "filename": file, **facts},
                {"calibrated_sensor_token": "c1", "filename": f"{file}.bin", **facts},
            ]
    (folder / tables).mkdir(parents=True)
    for name, table in written.items():
        (folder / tables / f"{name}.json").write_text(json.dumps(table))
    changed: Mapping[str, Any] = {"scenes": count, "judged_every": 2, "cache": str(folder), "max_missing": 0.0}
    return StandIn(dict(changed), {"train": None, "val": None})
