"""Few-shot questions about mini-ImageNet for language models: pictures with names of classes, and one without.

Read `prepare` first. Two forms are read:

| form | the copy holds |
|---|---|
| `frozen` | `<task>/<task>_shots_<s>_ways_<w>_all_questions.json` and pictures beside it (Tsimpoukelli et al., 2021) |
| `lists` | `fewshot_split/<w>_way_<s>_shot.csv`, `imagenet_class_index.json`, `train/<wnid>/<file>` (V2L-Tokenizer) |

Seen: the page of the first (fh295.github.io/frozen.html) and code that reads its keys `image_<i>`, `caption_<i>`,
`question_image` and `answer`; V2L-Tokenizer's eval_understanding.py, which splits a line at its commas and says that
the last picture is the query. Not seen: the files themselves. That captions of the first are sentences such as "This
is a dax" is recalled; both ways of writing them are read. Names of the second are those of `imagenet_class_index.json`.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from lightning_modules.datasets import pictures, storage
from lightning_modules.datasets.download import StandIn, find
from lightning_modules.datasets.skipped import Skipped
from lightning_modules.datasets.streaming import RowGroups
from lightning_modules.files import replace_folder
from lightning_modules.settings import Count, Share

Form = Literal["frozen", "lists"]
PICTURES = "pictures"
SETTING = re.compile(r"(\d+)_way_(\d+)_shot")
SAID = re.compile(r"this is an? (.*?)\.?", re.IGNORECASE)
NAMES = "imagenet_class_index.json"


class Question(NamedTuple):
    """The pictures of a context, as paths within the copy, with the names of their classes; the query and its name."""

    files: tuple[str, ...]
    names: tuple[str, ...]
    query: str
    answer: str


class Episode(NamedTuple):
    """A question with its pictures, in the order of the context."""

    pictures: list[UInt8[np.ndarray, "h w 3"]]
    names: list[str]
    query: UInt8[np.ndarray, "h w 3"]
    answer: str


def prepare(
    folder: Path,
    *,
    form: Form,
    task: str,
    questions: Mapping[str, Count | None],
    mirror: str | None = None,
    cache: str,
    max_broken: Share = 0.0,
) -> None:
    """Writes our shards from a copy of your own: each picture once, and the questions that refer to them.

    The split `pictures` has `id`, `image` (JPEG, as it is) and `name`, its file. A split such as `2_way_1_shot` has a
    row for each question: `id`, `image`, the query, `name`, the right answer, `support`, the ids of the pictures of the
    context with -1 behind, and `names`, of their classes.

    Args:
        folder: the prepared data set.
        form: of the copy, see above.
        task: of the form `frozen`: `real_name_mi` or `open_ended_mi`, with nonsense names; of `lists` the folder of the
            pictures, such as `train`.
        questions: `<ways>_way_<shots>_shot` -> how many questions the copy must have; None where that is not known.
        mirror: local folder that holds the copy, as it is or below `mini_imagenet/`.
        cache: another place where it may lie.
        max_broken: largest share of pictures that cannot be decoded, and of questions that are left out for it.

    Raises:
        DataUnavailable: a file or folder is not there.
        ValueError: a setting has another form, a file does not have the official form, or pictures are broken.
    """

    def copy(entry: str) -> Path:
        return find("mini_imagenet", entry, mirror=mirror, cache=Path(cache))

    read = _read_frozen if form == "frozen" else _read_lists
    asked = {name: _counted(read(copy, task, *_setting(name)), name, count) for name, count in questions.items()}
    home, most = copy(task), max(len(each.files) for rows in asked.values() for each in rows)
    files = list(dict.fromkeys(file for rows in asked.values() for each in rows for file in (*each.files, each.query)))
    if missing := [file for file in files if not (home / file).is_file()]:
        raise ValueError(f"{len(missing)} pictures are missing in {home}, {missing[0]} first: complete the copy.")
    schema = pa.schema(
        [
            ("id", pa.int64()),
            ("image", pa.binary()),
            ("name", pa.string()),
            ("support", pa.fixed_shape_tensor(pa.int64(), [most])),
            ("names", pa.list_(pa.field("element", pa.string()))),
        ]
    )
    with replace_folder(folder) as new:
        ids: dict[str, int] = {}
        blocks = {PICTURES: _pictures(home, files, ids, most, max_broken)}
        blocks |= {name: _questions(home, rows, ids, most, max_broken) for name, rows in asked.items()}
        written = {
            split: storage.write_blocks(new, split, each, "jpeg", schema=schema) for split, each in blocks.items()
        }
        storage.write_card(
            new, name="mini_imagenet", splits=written, codec="jpeg", shape=None, num_classes=None,
            source=f"few-shot questions about mini-ImageNet, {task}", schema=schema,
        )  # fmt: skip


def stand_in(
    folder: Path, *, rows: int, form: Form, task: str, questions: Mapping[str, int | None], **_: object
) -> StandIn:
    """See `download.StandIn`: drawn pictures that all questions share, each the picture of a class of its own."""
    (folder / task).mkdir(parents=True)
    names = [f"{task}_{number}.jpg" for number in range(rows)] if form == "frozen" else _drawn_classes(folder, rows)
    for number, name in enumerate(names):
        (folder / task / name).parent.mkdir(exist_ok=True)
        (folder / task / name).write_bytes(pictures.drawn_jpeg(number))
    for setting in questions:
        ways, shots = _setting(setting)
        drawn = [
            [names[(question + way) % rows] for way in range(ways) for _ in range(shots)] + [names[question % rows]]
            for question in range(rows)
        ]
        if form == "frozen":
            _write_frozen(folder / task, task, ways, shots, drawn)
        else:
            lines = "".join(f"{','.join(files)},\n" for files in drawn)
            (folder / "fewshot_split").mkdir(exist_ok=True)
            (folder / f"fewshot_split/{setting}.csv").write_text(lines)
    whole = {PICTURES: None, **questions}
    return StandIn({"questions": dict.fromkeys(questions, rows), "cache": str(folder)}, whole)


def episodes(folder: Path, split: str, limit: int | None = None) -> Iterator[Episode]:
    """The questions of a split of a prepared data set, in their order, with their pictures.

    Args:
        folder: the prepared data set.
        split: such as `2_way_1_shot`.
        limit: only the first so many; None for all.

    Raises:
        ValueError: the data set has no such split.
    """
    asked, stored = RowGroups(folder, split), RowGroups(folder, PICTURES, ["image"])
    for number in range(len(asked) if limit is None else min(limit, len(asked))):
        row = asked[np.array([number])]
        support = row["support"][0]
        shown = stored[support[support >= 0]]["image"]
        yield Episode(
            [pictures.decode(image) for image in shown], list(row["names"][0]), pictures.decode(row["image"][0]),
            row["name"][0],
        )  # fmt: skip


def _setting(name: str) -> tuple[int, int]:
    """Ways and shots."""
    found = SETTING.fullmatch(name)
    if found is None or 0 in (numbers := (int(found[1]), int(found[2]))):
        raise ValueError(f"questions has {name!r}, expected <ways>_way_<shots>_shot, such as 2_way_1_shot.")
    return numbers


def _counted(rows: Sequence[Question], name: str, count: int | None) -> Sequence[Question]:
    if not rows or (count is not None and len(rows) != count):
        raise ValueError(f"{name} has {len(rows)} questions, expected {count or 'some'}: complete the copy.")
    return rows


def _read_frozen(copy, task: str, ways: int, shots: int) -> list[Question]:
    path = copy(f"{task}/{task}_shots_{shots}_ways_{ways}_all_questions.json")
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): it was altered or cut.") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} has no list of questions, expected the official form.")
    return [_frozen_question(path, number, entry, ways * shots) for number, entry in enumerate(entries)]


def _frozen_question(path: Path, number: int, entry: Mapping[str, str], count: int) -> Question:
    places = range(1, count + 1)
    needed = [f"{kind}_{place}" for place in places for kind in ("image", "caption")] + ["question_image", "answer"]
    if missing := [name for name in needed if name not in entry]:
        raise ValueError(f"{path}: question {number} has no {', '.join(missing[:3])}.")
    files, names = (tuple(entry[f"{kind}_{place}"] for place in places) for kind in ("image", "caption"))
    return Question(files, tuple(map(_named, names)), entry["question_image"], _named(entry["answer"]))


def _named(caption: str) -> str:
    """The name in a sentence such as "This is a dax.", or the name that it is."""
    text = caption.strip()
    found = SAID.fullmatch(text)
    return found[1] if found else text.removesuffix(".")


def _read_lists(copy, _: str, ways: int, shots: int) -> list[Question]:
    path, count = copy(f"fewshot_split/{ways}_way_{shots}_shot.csv"), ways * shots
    names, found = _class_names(copy(NAMES)), []
    with path.open(newline="", encoding="utf-8-sig") as file:
        for number, line in enumerate(csv.reader(file), start=1):
            files = [field.strip() for field in line if field.strip()]
            if len(files) != count + 1:
                raise ValueError(
                    f"{path}, line {number} has {len(files)} pictures, expected {count} of the context and the query."
                )
            if unknown := [each for each in files if each.partition("/")[0] not in names]:
                raise ValueError(
                    f"{path}, line {number} has {unknown[0]!r}, expected <wnid>/<file> of a class of {NAMES}."
                )
            called = [names[each.partition("/")[0]] for each in files]
            found.append(Question(tuple(files[:-1]), tuple(called[:-1]), files[-1], called[-1]))
    return found


def _class_names(path: Path) -> dict[str, str]:
    """Names by wnid, of a file {number: [wnid, name]}; underscores of names are spaces."""
    try:
        return {wnid: name.replace("_", " ") for wnid, name in json.loads(path.read_text()).values()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} has another form ({error}), expected {{number: [wnid, name]}}.") from error


def _pictures(
    home: Path, files: Iterable[str], ids: dict[str, int], most: int, max_broken: float
) -> Iterator[dict[str, np.ndarray]]:
    """Blocks of the pictures that can be decoded; their ids are put into `ids`."""
    rows = pictures.sound(((file, (home / file).read_bytes()) for file in files), max_broken)
    while block := list(islice(rows, storage.ROW_GROUP)):
        start = len(ids)
        ids |= {file: start + number for number, (file, _) in enumerate(block)}
        nothing = [Question((), (), file, file) for file, _ in block]
        yield _columns(start, [content for _, content in block], nothing, ids, most)


def _questions(
    home: Path, rows: Iterable[Question], ids: Mapping[str, int], most: int, max_broken: float
) -> Iterator[dict[str, np.ndarray]]:
    """Blocks of the questions whose pictures can all be decoded."""
    whole, start = _whole(rows, ids, max_broken), 0
    while block := list(islice(whole, storage.ROW_GROUP)):
        yield _columns(start, [(home / each.query).read_bytes() for each in block], block, ids, most)
        start += len(block)


def _whole(rows: Iterable[Question], ids: Mapping[str, int], max_broken: float) -> Iterator[Question]:
    skipped = Skipped("questions", max_broken)
    for each in rows:
        if broken := [file for file in (*each.files, each.query) if file not in ids]:
            skipped.skip(ValueError(f"a question needs {broken[0]}, which cannot be read as a picture"))
        else:
            skipped.read()
            yield each


def _columns(
    start: int, images: Sequence[bytes], rows: Sequence[Question], ids: Mapping[str, int], most: int
) -> dict[str, np.ndarray]:
    support = np.full((len(rows), most), -1, np.int64)
    for row, each in zip(support, rows, strict=True):
        row[: len(each.files)] = [ids[file] for file in each.files]
    return {
        "id": np.arange(start, start + len(rows)),
        "image": np.array(images, dtype=object),
        "name": np.array([each.answer for each in rows], dtype=object),
        "support": support,
        "names": np.fromiter((list(each.names) for each in rows), dtype=object, count=len(rows)),
    }


def _drawn_classes(folder: Path, rows: int) -> list[str]:
    """The file of the classes' names, a class for each picture; the pictures' files."""
    wnids = [f"n{number:08d}" for number in range(rows)]
    index = {str(number): [wnid, f"drawn_thing_{number}"] for number, wnid in enumerate(wnids)}
    (folder / NAMES).write_text(json.dumps(index))
    return [f"{wnid}/{wnid}_0.JPEG" for wnid in wnids]


def _write_frozen(home: Path, task: str, ways: int, shots: int, drawn: Sequence[Sequence[str]]) -> None:
    entries = []
    for files in drawn:
        entry = {"question": "This is a", "question_image": files[-1], "answer": Path(files[-1]).stem}
        for place, file in enumerate(files[:-1], start=1):
            entry |= {f"image_{place}": file, f"caption_{place}": f"This is a {Path(file).stem}."}
        entries.append(entry)
    (home / f"{task}_shots_{shots}_ways_{ways}_all_questions.json").write_text(json.dumps(entries))
