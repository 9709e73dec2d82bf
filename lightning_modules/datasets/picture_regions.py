"""Pictures whose regions are described: files of Visual Genome (Krishna et al. 2017), and of RefCOCO, its + and its g.

| form | files | splits |
|---|---|---|
| `visual_genome` | `region_descriptions.json`, `densecap_splits.json`, `<id>.jpg` | DenseCap's train, val, test |
| `refer` | `refs(<by>).p`, `instances.json`, COCO's pictures | of each reference: train, val, test, testA, testB |

Read `prepare` first. A prepared row is a picture with up to `regions` phrases and their boxes; one with more of them
has several rows. An expression of RefCOCO is a region of its own, so a thing with three expressions has three.
"""

import io
import json
import math
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from lightning_modules.datasets import pictures, storage
from lightning_modules.datasets.columns import infer_schema
from lightning_modules.datasets.download import StandIn, find
from lightning_modules.datasets.lists import objects
from lightning_modules.datasets.skipped import Skipped
from lightning_modules.files import replace_folder
from lightning_modules.settings import Count, Share

Form = Literal["visual_genome", "refer"]


@dataclass(frozen=True)
class Region:
    """A phrase and its box in pixels: left, top, width, height, counted from 0."""

    phrase: str
    box: tuple[int | float, int | float, int | float, int | float]


@dataclass(frozen=True)
class Described:
    """A picture: its id, its file, and its regions in the order of the official file."""

    id: int
    file: str
    regions: tuple[Region, ...]


def prepare(
    folder: Path,
    *,
    form: Form,
    by: str | None,
    splits: Mapping[str, Count],
    regions: Count,
    limit: Count | None,
    images: Sequence[str],
    mirror: str | None = None,
    cache: str,
    max_broken: Share = 0.0,
) -> None:
    """Writes our shards from a copy of your own.

    Columns: `id` of the picture; `image`, JPEG; `regions`, a list of phrases; `boxes`, float32 (regions, 4), left,
    top, right, bottom of each as shares of the picture, zeros where there are fewer phrases.

    Args:
        folder: the prepared data set.
        form: of the official files, see above.
        by: who made the splits, a part of the name of RefCOCO's file: unc, umd, google; null for Visual Genome.
        splits: which splits to write, and how many pictures the official files have of each.
        regions: phrases of a row.
        limit: keep only the first so many pictures of each split; null keeps all.
        images: folders of the pictures; a picture is in one of them.
        mirror: local folder that holds all this, as it is or below `<form>/`.
        cache: another place where it may lie.
        max_broken: largest share of a split's pictures that cannot be decoded, and of its boxes that lie outside them;
            these are left out.

    Raises:
        DataUnavailable: a file or folder is not there.
        ValueError: a file does not have the official form, a picture is missing, a split has another number of them, or
            too many pictures or boxes are broken.
    """

    def copy(entry: str) -> Path:
        return find(form, entry, mirror=mirror, cache=Path(cache))

    if (form == "refer") != (by is not None):
        raise ValueError(f"by is {by!r} with form {form!r}: RefCOCO's files need unc, umd or google, others have null.")
    if form == "refer":
        found = read_refer(copy(f"refs({by}).p"), copy("instances.json"))
    else:
        found = read_visual_genome(copy("region_descriptions.json"), copy("densecap_splits.json"))
    chosen = {split: _counted(found, split, count)[:limit] for split, count in splits.items()}
    files = _files([copy(entry) for entry in images], chain(*chosen.values()))
    with replace_folder(folder) as new:
        blocks = {split: _blocks(part, files, regions, max_broken) for split, part in chosen.items()}
        first = {split: next(each) for split, each in blocks.items()}
        schema = infer_schema(next(iter(first.values())))
        written = {
            split: storage.write_blocks(new, split, chain([first[split]], rest), "jpeg", schema=schema)
            for split, rest in blocks.items()
        }
        storage.write_card(
            new, name=form, splits=written, codec="jpeg", shape=None, num_classes=None, schema=schema,
            source="described regions" if by is None else f"referring expressions, splits of {by}",
        )  # fmt: skip


def stand_in(
    folder: Path,
    *,
    rows: int,
    form: Form,
    by: str | None,
    splits: Mapping[str, int],
    images: Sequence[str],
    **_: object,
) -> StandIn:
    """See `download.StandIn`: drawn pictures with one described region each."""
    place = folder / images[0]
    place.mkdir(parents=True, exist_ok=True)
    numbered = list(enumerate(split for split in splits for _ in range(rows)))
    for number, _split in numbered:
        (place / f"{number}.jpg").write_bytes(pictures.drawn_jpeg(number))
    if form == "visual_genome":
        described = [
            {"id": number, "regions": [{"phrase": f"sort {number}", "x": 1, "y": 1, "width": 200, "height": 150}]}
            for number, _ in numbered
        ]
        parts = {split: [number for number, of in numbered if of == split] for split in splits}
        (folder / "region_descriptions.json").write_text(json.dumps(described))
        (folder / "densecap_splits.json").write_text(json.dumps(parts))
    else:
        kept = [{"id": number, "file_name": f"{number}.jpg"} for number, _ in numbered]
        marked = [{"id": number, "image_id": number, "bbox": [0, 0, 200, 150]} for number, _ in numbered]
        refs = [
            {"ann_id": number, "image_id": number, "split": split, "sentences": [{"sent": f"sort {number}"}]}
            for number, split in numbered
        ]
        (folder / "instances.json").write_text(json.dumps({"images": kept, "annotations": marked}))
        (folder / f"refs({by}).p").write_bytes(pickle.dumps(refs, protocol=2))
    return StandIn({"splits": dict.fromkeys(splits, rows), "cache": str(folder), "images": [images[0]]}, dict(splits))


def read_visual_genome(descriptions: Path, splits: Path) -> dict[str, list[Described]]:
    """The pictures of each of DenseCap's splits. Places in the file count from 1, as DenseCap's own reader takes them.

    Raises:
        ValueError: a file has another form, or a split names a picture that is not described.
    """
    entries = _json(descriptions, list)
    with _form(descriptions):
        described = {
            entry["id"]: Described(
                entry["id"],
                f"{entry['id']}.jpg",
                tuple(
                    Region(each["phrase"].strip(), _box(each["x"] - 1, each["y"] - 1, each["width"], each["height"]))
                    for each in entry["regions"]
                ),
            )
            for entry in entries
        }
    parts = _json(splits, dict)
    if unknown := [number for part in parts.values() for number in part if number not in described]:
        raise ValueError(f"{splits} names {len(unknown)} pictures that {descriptions} has not, {unknown[0]} first.")
    return {split: [described[number] for number in part] for split, part in parts.items()}


def read_refer(refs: Path, instances: Path) -> dict[str, list[Described]]:
    """The pictures of each split, with one region for each expression. A picture may be in several splits (google's).

    Raises:
        ValueError: a file has another form, or an expression belongs to no thing.
    """
    known = _json(instances, dict)
    with _form(instances):
        names = {image["id"]: image["file_name"] for image in known["images"]}
        boxes = {thing["id"]: _box(*thing["bbox"]) for thing in known["annotations"]}
    found: dict[str, dict[int, list[Region]]] = {}
    entries = _plain_pickle(refs)
    with _form(refs):
        for ref in entries:
            if ref["ann_id"] not in boxes or ref["image_id"] not in names:
                raise ValueError(f"{refs} refers to thing {ref['ann_id']}, which {instances} has not: do they match?")
            kept = found.setdefault(ref["split"], {}).setdefault(ref["image_id"], [])
            kept += [Region(said["sent"].strip(), boxes[ref["ann_id"]]) for said in ref["sentences"]]
    return {
        split: [Described(number, names[number], tuple(kept)) for number, kept in part.items()]
        for split, part in found.items()
    }


def shares(region: Region, size: tuple[int, int]) -> Float32[np.ndarray, "4"]:
    """Left, top, right and bottom of a box as shares of a picture of this width and height, cut off at its edges.

    Raises:
        ValueError: nothing of the box is inside.
    """
    left, top, width, height = region.box
    corners = np.array([left, top, left + width, top + height], np.float32) / np.array([*size, *size], np.float32)
    corners = corners.clip(0, 1)
    if corners[0] >= corners[2] or corners[1] >= corners[3]:
        raise ValueError(f"the box {region.box} of {region.phrase!r} has no part in a picture of {size} pixels.")
    return corners


def _box(left: Any, top: Any, width: Any, height: Any) -> tuple[int | float, int | float, int | float, int | float]:
    for x in (left, top, width, height):
        if isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x):
            raise TypeError(f"a box has {x!r}, expected numbers")
    return left, top, width, height


class _form:
    """Turns a key that is not there, or a value of another kind, into a message about the file."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, KeyError | TypeError | AttributeError):
            raise ValueError(f"{self.path} does not have the official form ({kind.__name__}: {error}).") from error


class _Plain(pickle.Unpickler):
    """Reads numbers, texts, lists and dictionaries alone: a pickle that names a class could run anything."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, and lists of expressions need no class")


def _plain_pickle(path: Path) -> list[dict[str, Any]]:
    try:
        content = _Plain(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError) as error:
        raise ValueError(f"{path} cannot be read as RefCOCO's list of expressions: {error}.") from error
    if not isinstance(content, list):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected RefCOCO's list of expressions.")
    return content


def _json(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): it was altered or cut.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read as text: {error}. Save it as UTF-8.") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}. Give the official file.") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a {kind.__name__}: is it the right file?")
    return content


def _counted(found: Mapping[str, list[Described]], split: str, count: int) -> list[Described]:
    if split not in found:
        raise ValueError(f"split {split!r} must be one of {', '.join(sorted(found))}.")
    if len(found[split]) != count:
        raise ValueError(f"split {split!r} has {len(found[split])} pictures, expected {count}: is the copy complete?")
    return [picture for picture in found[split] if picture.regions]


def _files(folders: Sequence[Path], wanted: Iterable[Described]) -> dict[str, Path]:
    """Where each picture lies.

    Raises:
        ValueError: pictures are in none of the folders.
    """
    names = {picture.file for picture in wanted}
    files = {name: folder / name for folder in reversed(folders) for name in names if (folder / name).is_file()}
    if missing := sorted(names - files.keys()):
        raise ValueError(f"{len(missing)} pictures are missing, {missing[0]} first: complete the copy.")
    return files


def _blocks(
    described: Sequence[Described], files: Mapping[str, Path], regions: int, max_broken: float
) -> Iterator[dict[str, np.ndarray]]:
    sources = ((files[of.file], files[of.file].read_bytes(), of) for of in described)
    skipped = Skipped("boxes", max_broken)
    rows = (
        (of.id, content, *part)
        for _, content, of in pictures.sound(sources, max_broken)
        for part in _parts(of, content, regions, skipped)
    )
    while block := list(islice(rows, storage.ROW_GROUP)):
        numbers, contents, phrases, boxes = zip(*block, strict=True)
        yield {
            "id": np.array(numbers),
            "image": objects(contents),
            "regions": objects(phrases),
            "boxes": np.stack(boxes),
        }


def _parts(
    of: Described, content: bytes, regions: int, skipped: Skipped
) -> Iterator[tuple[list[str], Float32[np.ndarray, "regions 4"]]]:
    """Phrases and boxes of each row of a picture; boxes that lie outside it are left out."""
    from PIL import Image

    kept = []
    with Image.open(io.BytesIO(content)) as image:
        for region in of.regions:
            try:
                kept.append((region.phrase, shares(region, image.size)))
                skipped.read()
            except ValueError as error:
                skipped.skip(ValueError(f"{of.file}: {error}"))
    for start in range(0, len(kept), regions):
        part = kept[start : start + regions]
        boxes = np.zeros((regions, 4), np.float32)
        boxes[: len(part)] = [box for _, box in part]
        yield [phrase for phrase, _ in part], boxes
