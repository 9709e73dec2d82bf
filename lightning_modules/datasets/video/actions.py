"""Videos with classes from the files in which they are published, as one index: `prepare`.

| corpus | annotations | classes | labels of a row |
|---|---|---|---|
| `kinetics` | csv: `label`, `youtube_id`, `time_start`, `time_end` | those of the split `train`, sorted | one |
| `moments` | csv without a header: file, class, votes | lines of class and number | one |
| `something_something` | json: list of `id`, `template` | json: template to number | one |
| `charades` | csv with columns `id`, `actions` | lines of code and class | any number |
| `epic_kitchens` | csv: `video_id`, times, `verb_class`, `noun_class` | csv: `id`, `key`, two files | a verb, a noun |
| `ucf101` | lines of a file in the folder of its class, perhaps a number | lines of number and class | one |
| `objectron` | lines of class, batch and number, a file for each class | those of the first split, sorted | one |

Checked against what is published: arrange_by_classes.py of cvdfoundation/kinetics-dataset (the label comes first, then
the video, whose name begins that of the file) and the 600 labels of tensorflow/models, which are sorted; README.txt of
Moments in Time; README.txt, tables and classes of Charades, whole; README.md and EPIC_100_noun_classes_v2.csv of
epic-kitchens-100-annotations, and README.md of epic-kitchens-download-scripts; README and index of Objectron, whole.
Recalled, not re-read: the six digits of seconds in Kinetics' file names, and the lists of UCF-101. The files of
Something-Something have the form that mmaction reads; its own text was not at hand.

Videos are decoded when they are trained on, so what is prepared here is small. The index has the columns
`file`, `start` and `end` in seconds (NaN where the whole file is meant), and `labels`, class numbers.
"""

import csv
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, NotRequired

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import TypedDict

from lightning_modules import rehearsal
from lightning_modules.datasets.download import StandIn, find
from lightning_modules.datasets.video.corpora import file_name, table_digest
from lightning_modules.datasets.video.drawn import encode
from lightning_modules.files import replace_folder
from lightning_modules.settings import STRICT, Count, Share

SCHEMA = pa.schema(
    [("file", pa.string()), ("start", pa.float64()), ("end", pa.float64()), ("labels", pa.list_(pa.int64()))]
)
Corpus = Literal["kinetics", "moments", "something_something", "charades", "epic_kitchens", "ucf101", "objectron"]
UNLISTED = ("kinetics", "objectron")  # corpora without a list of classes
MANY = ("charades",)  # corpora whose rows have any number of labels


class Row(NamedTuple):
    """One annotated action or video: its name, its file, its part in seconds, and the keys of its classes."""

    name: str
    file: str
    labels: tuple[str, ...]
    start: float | None = None
    end: float | None = None


class Annotated(TypedDict):
    """The annotations of a split, one file or several, the folder with its videos, and how many rows there must be."""

    __pydantic_config__ = STRICT
    annotations: str | list[str]
    videos: str
    rows: NotRequired[Count | None]


class Classes(TypedDict):
    """How many classes there are, and the file that lists them; null where there is none (`UNLISTED`)."""

    __pydantic_config__ = STRICT
    file: NotRequired[str | None]
    number: Count


def prepare(
    folder: Path,
    *,
    name: str,
    corpus: Corpus,
    splits: dict[str, Annotated],
    classes: dict[str, Classes],
    mirror: str | None = None,
    cache: str,
    max_missing: Share = 0.0,
) -> None:
    """Writes the index of a copy of a corpus.

    A file is looked for where the annotations say, and then anywhere below the folder of the videos by its name alone:
    copies of Kinetics have folders of classes or none. Objectron's videos all have the same name.

    Args:
        folder: where index and card go.
        name: of the data set, a folder name in the mirror.
        corpus: whose format the annotations have.
        splits: files of each.
        classes: of each label of a row, in this order: `action`, or `verb` and `noun`.
        mirror: local folder that holds the copy, as it is or below `name`.
        cache: another place where the copy may lie.
        max_missing: largest share of a split whose files may be missing; those rows are left out.

    Raises:
        DataUnavailable: the copy is not there.
        ValueError: a file does not have its form, a split not its rows, or too many videos are missing.
    """
    place = {"mirror": mirror, "cache": Path(cache)}
    read = {
        split: [row for file in _files(parts) for row in _read(READERS[corpus], corpus, find(name, file, **place))]
        for split, parts in splits.items()
    }
    for split, files in splits.items():
        if files.get("rows") not in (None, len(read[split])):
            raise ValueError(
                f"split {split!r} has {len(read[split])} rows, expected {files['rows']}: complete the copy, or "
                "take the official file."
            )
    named = {kind: _classes(corpus, kind, each, read, name, place) for kind, each in classes.items()}
    written = {}
    with replace_folder(folder) as new:
        for split, files in splits.items():
            where = find(name, files["videos"], **place)
            rows = list(_located(read[split], where, by_name=corpus != "objectron"))
            missing = len(read[split]) - len(rows)
            if missing > max_missing * len(read[split]):
                lost = next(iter({row.name for row in read[split]} - {row.name for row in rows}))
                raise ValueError(
                    f"{missing} of {len(read[split])} videos of split {split!r} are not in {where}, such as {lost}, "
                    f"more than max_missing ({max_missing}) allows: complete the copy, or raise the share and say so "
                    "beside the results."
                )
            numbered = _numbered(rows, named, many=corpus in MANY, where=", ".join(_files(files)))
            facts = write_index(new / f"{split}.parquet", rows, numbered)
            written[split] = {"videos": files["videos"], "missing": missing, **facts}
        facts = {"name": name, "corpus": corpus, "cache": cache, "many": corpus in MANY}
        facts |= {"classes": {kind: list(keys.values()) for kind, keys in named.items()}, "splits": written}
        (new / "card.json").write_text(json.dumps(facts, indent=2) + "\n")


def _files(part: Mapping[str, Any]) -> list[str]:
    """The annotation files of a split."""
    return [part["annotations"]] if isinstance(part["annotations"], str) else part["annotations"]


def _read(reader: Callable[[Path], Any], corpus: str, path: Path) -> Any:
    try:
        return reader(path)
    except (KeyError, TypeError, AttributeError, IndexError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} does not have the form of {corpus} annotations ({error!r}).") from error


def _classes(
    corpus: str, kind: str, classes: Classes, read: Mapping[str, Sequence[Row]], name: str, place: Mapping[str, Any]
) -> dict[str, str]:
    """Names of the classes by their keys, in the order of their numbers."""
    file = classes.get("file")
    if (file is None) != (corpus in UNLISTED):
        expected = "null: its classes are those of the annotations" if corpus in UNLISTED else "the list of classes"
        raise ValueError(f"classes.{kind}.file is {file!r}, but for {corpus} it must be {expected}.")
    if file is not None:
        found, told = _read(CLASSES[corpus], corpus, path := find(name, file, **place)), str(path)
    else:
        split = "train" if "train" in read else next(iter(read))
        found, told = {key: key for key in sorted({row.labels[0] for row in read[split]})}, f"split {split!r}"
    if len(found) != classes["number"]:
        raise ValueError(
            f"{told} has {len(found)} classes, expected classes.{kind}.number ({classes['number']}): take the official "
            "file, or correct the number."
        )
    return found


def _located(rows: Iterable[Row], folder: Path, *, by_name: bool) -> Iterable[Row]:
    """The rows whose file is there, with its place below the folder of the videos.

    Args:
        rows: with the place that the annotations say.
        folder: of the videos.
        by_name: whether a file may lie elsewhere, as no two have the same name.
    """
    there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    exact, places = set(there), defaultdict(list)
    for path in there:
        places[_alike(path)].append(path)
    for row in rows:
        if row.file in exact:
            yield row
        elif by_name and (alike := places.get(_alike(row.file), [])):
            if len(alike) > 1:
                raise ValueError(f"{folder} has {row.file} more than once, as {alike[0]} and {alike[1]}: keep one.")
            yield row._replace(file=alike[0])


def _alike(path: str) -> str:
    """The name of a file, with its suffix in small letters: copies differ in that."""
    return PurePosixPath(path).stem + PurePosixPath(path).suffix.lower()


def _numbered(
    rows: Sequence[Row], classes: Mapping[str, Mapping[str, str]], *, many: bool, where: str
) -> list[list[int]]:
    """The labels of each row as numbers of classes."""
    kinds = [{key: number for number, key in enumerate(keys)} for keys in classes.values()]
    found = []
    for row in rows:
        asked = kinds * len(row.labels) if many else kinds
        if len(asked) != len(row.labels):
            raise ValueError(f"{row.name} in {where} has {len(row.labels)} labels, expected {', '.join(classes)}.")
        if unknown := [label for label, kind in zip(row.labels, asked, strict=True) if label not in kind]:
            raise ValueError(
                f"{row.name} in {where} has the class {unknown[0]!r}, which is not in the list of classes: take "
                "annotations and classes of one version."
            )
        numbers = [kind[label] for label, kind in zip(row.labels, asked, strict=True)]
        found.append(sorted(set(numbers)) if many else numbers)
    return found


def write_index(path: Path, rows: Sequence[Row], labels: Sequence[Sequence[int]]) -> dict[str, int | str]:
    """Writes the rows; returns their number and the digest of the content.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError(f"{path.name} would have no rows: check its annotations, and the folder of its videos.")
    times = {
        at: [np.nan if second is None else second for second in seconds]
        for at, seconds in (("start", [row.start for row in rows]), ("end", [row.end for row in rows]))
    }
    columns = {"file": [row.file for row in rows], **times, "labels": labels}
    table = pa.table(columns, SCHEMA).slice(0, rehearsal.left(0))
    pq.write_table(table, path, compression="zstd")
    return {"rows": len(table), "sha256": table_digest(table)}


# Readers of annotations


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")


def _table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(_text(path), newline="")))


def _once(path: Path, rows: list[Row]) -> list[Row]:
    """The rows, if no name comes twice."""
    twice = [name for name, times in Counter(row.name for row in rows).items() if times > 1]
    if twice:
        raise ValueError(f"{path} has {len(twice)} rows more than once, {twice[0]!r} first: keep one of each.")
    return rows


def _number(path: Path, text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{path}: {what} is {text!r}, expected a number.") from None


def read_kinetics(path: Path) -> list[Row]:
    """Clips that were cut already, each named after its video and its whole seconds there, six digits each."""
    rows = []
    for row in _table(path):
        start, end = (int(_number(path, row[at], f"{at} of {row['youtube_id']}")) for at in ("time_start", "time_end"))
        name = file_name(f"{row['youtube_id']}_{start:06d}_{end:06d}", ".mp4")
        rows.append(Row(name, name, (row["label"],)))
    return _once(path, rows)


def read_moments(path: Path) -> list[Row]:
    """Lines of file, class, and the numbers of people who agreed and who did not; there is no header."""
    rows = []
    for number, fields in enumerate(csv.reader(_text(path).splitlines()), start=1):
        if len(fields) != 4 or "/" not in fields[0]:
            raise ValueError(
                f"{path}, line {number}: expected a file in the folder of its class, the class, two counts."
            )
        rows.append(Row(fields[0], file_name(fields[0], None), (fields[1].strip(),)))
    return _once(path, rows)


def read_something(path: Path) -> list[Row]:
    """A video's template with its brackets taken away is its class: `Putting [something] into [something]`."""
    rows = []
    for video in json.loads(_text(path)):
        label = video["template"].replace("[", "").replace("]", "")
        rows.append(Row(video["id"], file_name(video["id"], ".webm"), (label,)))
    return _once(path, rows)


def read_charades(path: Path) -> list[Row]:
    """`actions` has the code of a class and two times for each action, between semicolons; a video may have none.

    Whole videos are judged (Charades_v1_classify.m), so the times of actions are left out.
    """
    rows = []
    for video in _table(path):
        actions = [action.split() for action in video["actions"].split(";") if action.strip()]
        if wrong := [action for action in actions if len(action) != 3]:
            raise ValueError(
                f"{path}: an action of {video['id']} is {' '.join(wrong[0])!r}, expected a code and two times, such as "
                "'c092 11.90 21.20'."
            )
        rows.append(Row(video["id"], file_name(video["id"], ".mp4"), tuple(action[0] for action in actions)))
    return _once(path, rows)


def read_epic(path: Path) -> list[Row]:
    """Parts of long videos, one for each narration; videos lie in `<participant>/videos`."""
    rows = []
    for part in _table(path):
        start, end = (_seconds(path, part[f"{at}_timestamp"]) for at in ("start", "stop"))
        if not start < end:
            raise ValueError(f"{path}: {part['narration_id']} goes from {start} to {end} s, expected it to last.")
        file = file_name(f"{part['participant_id']}/videos/{part['video_id']}", ".MP4")
        labels = (part["verb_class"], part["noun_class"])
        rows.append(Row(part["narration_id"], file, labels, start, end))
    return _once(path, rows)


def read_ucf101(path: Path) -> list[Row]:
    """Lines of a file in the folder of its class; `trainlist01.txt` and its like have the class's number behind it."""
    rows = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        file, _, _ = line.partition(" ")
        if "/" in file:
            rows.append(Row(file, file_name(file, None), (file.partition("/")[0],)))
        elif line.strip():
            raise ValueError(f"{path}, line {number} is {line!r}, expected a file in the folder of its class.")
    return _once(path, rows)


def read_objectron(path: Path) -> list[Row]:
    """Lines such as `cereal_box/batch-3/14`, of a folder in which the video is `video.MOV`."""
    rows = []
    for number, line in enumerate(_text(path).split(), start=1):
        if line.count("/") != 2:
            raise ValueError(f"{path}, line {number} is {line!r}, expected a class, a batch and a number.")
        rows.append(Row(line, file_name(f"{line}/video", ".MOV"), (line.partition("/")[0],)))
    return _once(path, rows)


def _seconds(path: Path, text: str) -> float:
    parts = text.split(":")
    if len(parts) != 3:
        raise ValueError(f"{path}: the time {text!r} is not of the form HH:MM:SS.ss.")
    hours, minutes, seconds = (_number(path, part, f"a part of the time {text!r}") for part in parts)
    return round(3600 * hours + 60 * minutes + seconds, 3)


# Readers of classes: names by keys, in the order of their numbers


def _ordered(path: Path, numbers: Mapping[str, int]) -> dict[str, str]:
    """Classes in the order of their numbers, which must be 0, 1, 2, ..."""
    found = sorted(numbers.items(), key=lambda item: item[1])
    if [number for _, number in found] != list(range(len(found))):
        raise ValueError(
            f"{path}: the classes have the numbers {sorted(numbers.values())[:5]}..., expected 0, 1, 2, ..."
        )
    return {key: key for key, _ in found}


def moments_classes(path: Path) -> dict[str, str]:
    """Lines of class and number between commas."""
    pairs = [line.rpartition(",") for line in _text(path).splitlines() if line.strip()]
    return _ordered(path, {name: int(_number(path, number, f"the number of {name!r}")) for name, _, number in pairs})


def something_classes(path: Path) -> dict[str, str]:
    """Templates without brackets, and their numbers, which are written as text."""
    pairs = json.loads(_text(path)).items()
    return _ordered(path, {name: int(_number(path, number, f"the number of {name!r}")) for name, number in pairs})


def charades_classes(path: Path) -> dict[str, str]:
    """Lines of a code, c000 and so on, and what it means."""
    pairs = dict(line.strip().partition(" ")[::2] for line in _text(path).splitlines() if line.strip())
    ordered = _ordered(path, {code: int(_number(path, code[1:], f"the code {code!r} after its c")) for code in pairs})
    return {code: pairs[code] for code in ordered}


def epic_classes(path: Path) -> dict[str, str]:
    """A table of numbers and the word that stands for each class."""
    names = {row["id"]: row["key"] for row in _table(path)}
    return {number: names[number] for number in _ordered(path, {number: int(number) for number in names})}


def ucf101_classes(path: Path) -> dict[str, str]:
    """Lines of a number, from 1 on, and a class."""
    pairs = [line.strip().partition(" ") for line in _text(path).splitlines() if line.strip()]
    return _ordered(
        path, {name: int(_number(path, number, f"the number of {name!r}")) - 1 for number, _, name in pairs}
    )


READERS: dict[str, Callable[[Path], list[Row]]] = {
    "kinetics": read_kinetics,
    "moments": read_moments,
    "something_something": read_something,
    "charades": read_charades,
    "epic_kitchens": read_epic,
    "ucf101": read_ucf101,
    "objectron": read_objectron,
}
CLASSES: dict[str, Callable[[Path], dict[str, str]]] = {
    "moments": moments_classes,
    "something_something": something_classes,
    "charades": charades_classes,
    "epic_kitchens": epic_classes,
    "ucf101": ucf101_classes,
}


# The reverse, for rehearsals


def stand_in(
    folder: Path,
    *,
    rows: int,
    corpus: Corpus,
    splits: Mapping[str, Mapping[str, Any]],
    classes: Mapping[str, Mapping[str, Any]],
    **_: object,
) -> StandIn:
    """See `download.StandIn`: one drawn clip of ten seconds under many names; lists of classes are as long."""
    clip = encode(folder / "clip.mkv", 100, size=(160, 120), key_every=12)  # FFmpeg goes by content, not by names
    for kind, each in classes.items():
        if each.get("file"):
            (folder / each["file"]).parent.mkdir(parents=True, exist_ok=True)
            (folder / each["file"]).write_text(CLASS_WRITERS[corpus](kind, each["number"]))
    changed, labels = {}, set()
    for split, files in splits.items():
        lists = _files(files)
        each = -(-rows // len(lists))
        for name in lists:
            annotations = folder / name
            annotations.parent.mkdir(parents=True, exist_ok=True)
            annotations.write_text(WRITERS[corpus](Path(name).name if len(lists) > 1 else split, each))
            for row in READERS[corpus](annotations):
                labels.update(row.labels)
                path = folder / files["videos"] / row.file
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.exists():
                    shutil.copyfile(clip, path)
        changed[split] = {**files, "rows": each * len(lists)}
    listed = {kind: each if each.get("file") else {**each, "number": len(labels)} for kind, each in classes.items()}
    config = {"splits": changed, "classes": listed, "cache": str(folder), "max_missing": 0.0}
    return StandIn(config, {split: files.get("rows") for split, files in splits.items()})


def _lines(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)


def _kinetics(split: str, rows: int) -> str:
    named = (f"{'ab'[n % 2]} action,{split[:4]:_<4}{n:07d},{n},{n + 10},{split}" for n in range(rows))
    return _lines("label,youtube_id,time_start,time_end,split", *named)


def _charades(split: str, rows: int) -> str:
    """The first video without an action, the others with all that the official list has."""
    said = [";".join(f"c{n:03d} 0.50 3.00" for n in range(157) if row and n % (rows - 1) == row - 1)
            for row in range(rows)]  # fmt: skip
    return _lines("id,actions,length", *(f"{split.upper()}{n},{actions},10.00" for n, actions in enumerate(said)))


def _epic(split: str, rows: int) -> str:
    head = "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,verb_class,noun_class"
    parts = (
        f"{split}_{n},P01,P01_01,00:00:0{n % 5}.25,00:00:0{n % 5 + 3}.50,{n % 2},{n // 2 % 2}" for n in range(rows)
    )
    return _lines(head, *parts)


WRITERS: dict[str, Callable[[str, int], str]] = {
    "kinetics": _kinetics,
    "moments": lambda split, rows: _lines(*(f"class{n % 2}/{split}{n}.mp4,class{n % 2},3,0" for n in range(rows))),
    "something_something": lambda split, rows: json.dumps(
        [{"id": f"{split}{n}", "template": f"Class {n % 2} of [something]"} for n in range(rows)]
    ),
    "charades": _charades,
    "epic_kitchens": _epic,
    "ucf101": lambda split, rows: _lines(*(f"Class{n % 2}/v_Class{n % 2}_{split}_c{n:02d}.avi" for n in range(rows))),
    "objectron": lambda name, rows: _lines(*(f"{name.partition('_annotations')[0]}/batch-0/{n}" for n in range(rows))),
}
CLASS_WRITERS: dict[str, Callable[[str, int], str]] = {
    "moments": lambda _, number: _lines(*(f"class{n},{n}" for n in range(number))),
    "something_something": lambda _, number: json.dumps({f"Class {n} of something": str(n) for n in range(number)}),
    "charades": lambda _, number: _lines(*(f"c{n:03d} Doing thing {n}" for n in range(number))),
    "epic_kitchens": lambda kind, number: _lines(
        "id,key,instances,category", *(f"{n},{kind}{n},," for n in range(number))
    ),
    "ucf101": lambda _, number: _lines(*(f"{n + 1} Class{n}" for n in range(number))),
}
