"""COCO captions (Chen et al. 2015) in the splits of Karpathy and Fei-Fei (2015): 123,287 images, mostly five each.

Read `prepare` first. `train` has the 82,783 images of train2014; val2014 is divided into `val` and `test`, 5,000 each,
and `restval`, which many papers train on as well; the official code of unified-t2i-i2t does not. Files of captions and
results are the official ones: `captions_{train,val}2014.json`, `dataset_coco.json`, and the result file that the
evaluation of coco-caption reads.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from lightning_modules.datasets import pictures, storage
from lightning_modules.datasets.columns import infer_schema
from lightning_modules.datasets.download import StandIn, find
from lightning_modules.files import replace_folder
from lightning_modules.settings import Count, Share

SPLITS = ("train", "restval", "val", "test")
GRID_TOKENS, GRID_CHANNELS = 64, 2048  # 8 x 8 places of the grid features, and what X-LXMERT's have of each


@dataclass(frozen=True)
class CocoImage:
    """An image, its Karpathy split, its file such as `val2014/COCO_val2014_000000391895.jpg`, and its captions."""

    id: int
    split: str
    file: str
    captions: tuple[str, ...]


def prepare(
    folder: Path,
    *,
    splits: Mapping[str, Count],
    limit: Count | None,
    text: Literal["tokens", "raw"],
    features: Mapping[str, str] | None,
    mirror: str | None = None,
    cache: str,
    max_broken: Share = 0.0,
) -> None:
    """Writes our shards from a copy of your own: images as they are, with all captions, and grid features if asked for.

    Columns: `id`, of COCO; `image`, JPEG; `captions`, a list; possibly `features`, float32 (64, channels).

    Args:
        folder: the prepared data set.
        splits: which splits to write, and how many images `dataset_coco.json` must have of each.
        limit: keep only the first so many images of each split; None keeps all.
        text: `tokens`: the lower-case words of `dataset_coco.json`, joined; `raw`: sentences as they were written.
        features: folder of the images (`train2014`, `val2014`) -> file of their grid features, see `GridFeatures`; None
            leaves them out.
        mirror: local folder that holds `dataset_coco.json`, `train2014/` and `val2014/`, as they are or below
            `coco_captions/`.
        cache: another place where they may lie.
        max_broken: largest share of a split's images that cannot be decoded and are left out.

    Raises:
        DataUnavailable: a file or folder is not there.
        ValueError: a file does not have the official form, images are missing or broken, or a split has another number
            of them.
    """

    def copy(entry: str) -> Path:
        return find("coco_captions", entry, mirror=mirror, cache=Path(cache))

    images = read_karpathy(copy("dataset_coco.json"), text)
    chosen = {split: _counted(images, split, count)[:limit] for split, count in splits.items()}
    grids = {half: GridFeatures(copy(file)) for half, file in (features or {}).items()}
    halves = {half: copy(half) for half in sorted({_half(image) for part in chosen.values() for image in part})}
    _all_there(halves, chain(*chosen.values()))
    with replace_folder(folder) as new:
        blocks = {split: _blocks(part, halves, grids, max_broken) for split, part in chosen.items()}
        first = {split: next(each) for split, each in blocks.items()}
        schema = infer_schema(next(iter(first.values())))
        written = {
            split: storage.write_blocks(new, split, chain([first[split]], rest), "jpeg", schema=schema)
            for split, rest in blocks.items()
        }
        storage.write_card(
            new, name="coco_captions", splits=written, codec="jpeg", shape=None, num_classes=None,
            source="COCO 2014 with captions, Karpathy's splits", schema=schema,
        )  # fmt: skip


def stand_in(
    folder: Path, *, rows: int, splits: Mapping[str, int], features: Mapping[str, str] | None, **_: object
) -> StandIn:
    """See `download.StandIn`: drawn pictures with five captions each, and noise as grid features if asked for.

    Raises:
        ModuleNotFoundError: features are asked for, and h5py is not installed.
    """
    entries = []
    for number, split in enumerate(split for split in splits for _ in range(rows)):
        half = "train2014" if split == "train" else "val2014"
        said = [f"a drawn picture number {number} of sort {sort}" for sort in range(5)]
        sentences = [{"raw": f"{text.capitalize()}.", "tokens": text.split()} for text in said]
        image = {"filepath": half, "filename": f"COCO_{half}_{number:012d}.jpg", "cocoid": number, "split": split}
        entries.append(image | {"sentences": sentences})
        path = folder / half / image["filename"]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pictures.drawn_jpeg(number))
    (folder / "dataset_coco.json").write_text(json.dumps({"images": entries, "dataset": "coco"}))
    for half, file in (features or {}).items():
        h5py, random = _h5py(), np.random.default_rng(0)
        with h5py.File(folder / file, "w") as grids:
            for image in (image for image in entries if image["filepath"] == half):
                grid = random.random((8, 8, GRID_CHANNELS), np.float32)
                grids[f"{Path(image['filename']).stem}/features"] = grid
    counts = dict.fromkeys(splits, rows)
    return StandIn({"splits": counts, "cache": str(folder)}, dict(splits))


def _all_there(halves: Mapping[str, Path], images: Iterable[CocoImage]) -> None:
    missing = [path for image in images if not (path := halves[_half(image)].parent / image.file).is_file()]
    if missing:
        raise ValueError(f"{len(missing)} images are missing, {missing[0]} first: complete the copy.")


def _half(image: CocoImage) -> str:
    return image.file.partition("/")[0]


def _counted(images: Iterable[CocoImage], split: str, count: int) -> list[CocoImage]:
    found = of_split(images, split)
    if len(found) != count:
        raise ValueError(f"split {split!r} has {len(found)} images, expected {count}: is dataset_coco.json complete?")
    return found


def _blocks(
    images: Sequence[CocoImage], halves: Mapping[str, Path], grids: Mapping[str, "GridFeatures"], max_broken: float
) -> Iterator[dict[str, np.ndarray]]:
    files = (halves[_half(image)].parent / image.file for image in images)
    rows = pictures.sound(((file, file.read_bytes(), of) for file, of in zip(files, images, strict=True)), max_broken)
    while block := list(islice(rows, storage.ROW_GROUP)):
        columns = {
            "id": np.array([image.id for _, _, image in block]),
            "image": _objects(content for _, content, _ in block),
            "captions": _objects(list(image.captions) for _, _, image in block),
        }
        if grids:
            columns["features"] = np.stack([grids[_half(image)](image) for _, _, image in block])
        yield columns


def _objects(values: Iterable[Any]) -> np.ndarray:
    values = list(values)
    return np.fromiter(values, dtype=object, count=len(values))


def read_karpathy(path: Path, text: Literal["tokens", "raw"] = "tokens") -> list[CocoImage]:
    """The images of `dataset_coco.json` in its order.

    Raises:
        ValueError: the file has another form, an unknown split, an image twice or one without captions.
    """
    entries = _entries(path, "images", ("cocoid", "split", "filepath", "filename", "sentences"))
    images = [
        CocoImage(
            entry["cocoid"],
            entry["split"],
            f"{entry['filepath']}/{entry['filename']}",
            tuple(" ".join(said["tokens"]) if text == "tokens" else said["raw"] for said in entry["sentences"]),
        )
        for entry in entries
    ]
    if unknown := {image.split for image in images} - set(SPLITS):
        raise ValueError(f"{path} has the splits {sorted(unknown)}, expected {', '.join(SPLITS)}.")
    _no_repeats(path, (image.id for image in images))
    if silent := [image.id for image in images if not image.captions]:
        raise ValueError(f"{path}: {len(silent)} images have no captions, {silent[0]} first: complete the file.")
    return images


def of_split(images: Iterable[CocoImage], split: str) -> list[CocoImage]:
    """The images of one split; the official code of unified-t2i-i2t asks whether a name is part of another.

    Raises:
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} must be one of {', '.join(SPLITS)}.")
    return [image for image in images if image.split == split]


def _entries(path: Path, key: str | None, needed: Sequence[str]) -> list[dict[str, Any]]:
    """The list of objects in an official file, or below one of its keys."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): it was altered or cut.") from error
    entries = content.get(key) if isinstance(content, dict) and key else None if key else content
    if not isinstance(entries, list):
        raise ValueError(f"{path} has no list{f' {key!r}' if key else ''}, expected the official form.")
    for number, entry in enumerate(entries):
        if missing := [name for name in needed if name not in entry]:
            raise ValueError(f"{path}: entry {number} of {key or 'the list'} has no {', '.join(missing)}.")
    return entries


def _no_repeats(path: Path, ids: Iterable[int]) -> None:
    if twice := [image for image, times in Counter(ids).items() if times > 1]:
        raise ValueError(f"{path} has {len(twice)} images more than once, {twice[0]!r} first.")


def _h5py() -> ModuleType:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("grid features are HDF5 files, read with h5py: pip install h5py") from error
    return h5py


class GridFeatures:
    """Grid features of the official file, one group for each image: `h5["COCO_val2014_000000391895/features"]`.

    Raises:
        ModuleNotFoundError: h5py is not installed.
        ValueError: the file is no HDF5 file.
    """

    def __init__(self, path: Path):
        h5py, self.path = _h5py(), path
        try:
            self.file = h5py.File(path, "r")
        except OSError as error:
            raise ValueError(f"{path} cannot be read as HDF5 ({error}).") from error

    def __call__(self, image: CocoImage) -> np.ndarray:
        """The features of an image, row by row of its grid; float32 (64, channels).

        Raises:
            ValueError: the file has none of this image, or of another grid.
        """
        name = f"{Path(image.file).stem}/features"
        if name not in self.file:
            raise ValueError(f"{self.path} has no {name!r}: is it the file of {_half(image)}?")
        features = self.file[name][()]
        if features.size % GRID_TOKENS or features.ndim < 2 or np.prod(features.shape[:-1]) != GRID_TOKENS:
            raise ValueError(f"{name} of {self.path} has shape {features.shape}, expected 8 x 8 places of channels.")
        return features.reshape(GRID_TOKENS, -1).astype(np.float32)
