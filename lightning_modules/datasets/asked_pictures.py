"""Pictures with texts about them, written as rows of one data set: what VQA 2.0, SNLI-VE, NLVR2 and captions share."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from lightning_modules.datasets import pictures, storage
from lightning_modules.datasets.columns import infer_schema
from lightning_modules.datasets.lists import objects
from lightning_modules.datasets.skipped import Skipped

Row = tuple[Path, Mapping[str, Any]]  # a picture file and what the other columns hold: a number, or a list of texts


def write(new: Path, splits: Mapping[str, Iterable[Row]], max_broken: float, *, name: str, source: str) -> None:
    """Writes the shards and the card of a data set whose rows are pictures: `image`, as it is, and the other columns.

    Args:
        new: the new folder, see `files.replace_folder`.
        splits: rows of each split, all with the same columns.
        max_broken: largest share of a split's pictures that are missing or cannot be decoded; they are left out.
        name: of the data set.
        source: what it was made of.

    Raises:
        ValueError: too many pictures are broken, or a split has none.
    """
    blocks, first = {split: _blocks(rows, max_broken) for split, rows in splits.items()}, {}
    for split, each in blocks.items():
        if (block := next(each, None)) is None:
            raise ValueError(f"no picture of the split {split!r} of {name} can be read: complete the copy.")
        first[split] = block
    schema = infer_schema(next(iter(first.values())))
    written = {
        split: storage.write_blocks(new, split, chain([first[split]], rest), "jpeg", schema=schema)
        for split, rest in blocks.items()
    }
    storage.write_card(
        new, name=name, splits=written, codec="jpeg", shape=None, num_classes=None, source=source, schema=schema
    )


def _blocks(rows: Iterable[Row], max_broken: float) -> Iterator[dict[str, np.ndarray]]:
    sound = pictures.sound(_contents(rows, max_broken), max_broken)
    while block := list(islice(sound, storage.ROW_GROUP)):
        columns = {"image": objects(content for _, content, _ in block)}
        for name, value in block[0][2].items():
            values = [row[name] for *_, row in block]
            columns[name] = np.array(values) if isinstance(value, int) else objects(values)
        yield columns


def _contents(rows: Iterable[Row], max_broken: float) -> Iterator[tuple[Path, bytes, Mapping[str, Any]]]:
    skipped = Skipped("picture files", max_broken)
    for path, columns in rows:
        try:
            content = path.read_bytes()
        except OSError as error:
            skipped.skip(ValueError(f"{path} cannot be read: {error.strerror}"))
            continue
        skipped.read()
        yield path, content, columns


def read_text(path: Path) -> str:
    """The content of a text file.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}): save it so, or fetch it again.") from error


def read_json(path: Path, key: str | None = None) -> Any:
    """The content of a JSON file, or what stands under one of its keys.

    Raises:
        ValueError: it is no JSON, or has no such key.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}): it was altered or cut.") from error
    if key is None:
        return content
    if not isinstance(content, dict) or key not in content:
        raise ValueError(f"{path} has no {key!r}: it does not have the official form.")
    return content[key]


def read_lines(path: Path, needed: tuple[str, ...]) -> list[dict[str, Any]]:
    """The objects of a file with one on each line.

    Raises:
        ValueError: it is not UTF-8, a line is no JSON object, or a key is missing; or there is none.
    """
    found = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # a sentence may have U+2028 in it
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} of {path} is not JSON ({error}): it was altered or cut.") from error
        if missing := [key for key in needed if not isinstance(entry, dict) or key not in entry]:
            raise ValueError(
                f"line {number} of {path} has no {', '.join(missing)}: it does not have the official form."
            )
        found.append(entry)
    if not found:
        raise ValueError(f"{path} has no lines, expected one JSON object on each.")
    return found


def expect(path: Path, found: int, count: int | None, what: str) -> None:
    """Refuse another number than is expected.

    Raises:
        ValueError: see above.
    """
    if count is not None and found != count:
        raise ValueError(f"{path} has {found} {what}, expected {count}: is it the whole file?")
