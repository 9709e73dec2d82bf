"""Flickr30k (Young et al. 2014) in the splits of Karpathy and Fei-Fei (2015): 31,014 pictures with five captions each.

Read `prepare` first. `dataset_flickr30k.json` has the form of Karpathy's `dataset_coco.json`, without ids and folders.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from lightning_modules.datasets import pictures, storage
from lightning_modules.datasets.columns import infer_schema
from lightning_modules.datasets.download import StandIn, find
from lightning_modules.datasets.lists import objects
from lightning_modules.files import replace_folder
from lightning_modules.settings import Count, Share

FILE, FOLDER = "dataset_flickr30k.json", "flickr30k-images"


@dataclass(frozen=True)
class FlickrImage:
    """A picture: its number in the official file, its split, its file, and its captions as they were written."""

    id: int
    split: str
    file: str
    captions: tuple[str, ...]


def prepare(
    folder: Path,
    *,
    splits: Mapping[str, Count],
    limit: Count | None,
    mirror: str | None = None,
    cache: str,
    max_broken: Share = 0.0,
) -> None:
    """Writes our shards from a copy of your own: `id`, `image` (JPEG) and `captions`, a list.

    Args:
        folder: the prepared data set.
        splits: which splits to write, and how many pictures the official file must have of each.
        limit: keep only the first so many pictures of each split; null keeps all.
        mirror: local folder that holds the file and the folder of pictures, as they are or below `flickr30k/`.
        cache: another place where they may lie.
        max_broken: largest share of a split's pictures that cannot be decoded and are left out.

    Raises:
        DataUnavailable: the file or the folder is not there.
        ValueError: the file does not have the official form, pictures are missing or broken, or a split has another
            number of them.
    """
    images = read_karpathy(find("flickr30k", FILE, mirror=mirror, cache=Path(cache)))
    place = find("flickr30k", FOLDER, mirror=mirror, cache=Path(cache))
    chosen = {split: _counted(images, split, count)[:limit] for split, count in splits.items()}
    if missing := [image.file for image in chain(*chosen.values()) if not (place / image.file).is_file()]:
        raise ValueError(f"{len(missing)} pictures are missing in {place}, {missing[0]} first: complete the copy.")
    with replace_folder(folder) as new:
        blocks = {split: _blocks(part, place, max_broken) for split, part in chosen.items()}
        first = {split: next(each) for split, each in blocks.items()}
        schema = infer_schema(next(iter(first.values())))
        written = {
            split: storage.write_blocks(new, split, chain([first[split]], rest), "jpeg", schema=schema)
            for split, rest in blocks.items()
        }
        storage.write_card(
            new, name="flickr30k", splits=written, codec="jpeg", shape=None, num_classes=None,
            source="Flickr30k, Karpathy's splits", schema=schema,
        )  # fmt: skip


def stand_in(folder: Path, *, rows: int, splits: Mapping[str, int], **_: object) -> StandIn:
    """See `download.StandIn`: drawn pictures with five captions each."""
    (folder / FOLDER).mkdir()
    entries = []
    for number, split in enumerate(split for split in splits for _ in range(rows)):
        said = [{"raw": f"A drawn picture number {number} of sort {sort}."} for sort in range(5)]
        entries.append({"imgid": number, "split": split, "filename": f"{number}.jpg", "sentences": said})
        (folder / FOLDER / f"{number}.jpg").write_bytes(pictures.drawn_jpeg(number))
    (folder / FILE).write_text(json.dumps({"images": entries, "dataset": "flickr30k"}))
    return StandIn({"splits": dict.fromkeys(splits, rows), "cache": str(folder)}, dict(splits))


def read_karpathy(path: Path) -> list[FlickrImage]:
    """The pictures of the official file in its order.

    Raises:
        ValueError: the file has another form, a picture twice or one without captions.
    """
    try:
        images = [
            FlickrImage(
                entry["imgid"], entry["split"], entry["filename"], tuple(said["raw"] for said in entry["sentences"])
            )
            for entry in json.loads(path.read_text(encoding="utf-8"))["images"]
        ]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): it was altered or cut.") from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} does not have the official form ({type(error).__name__}: {error}).") from error
    if twice := [name for name, times in Counter(image.file for image in images).items() if times > 1]:
        raise ValueError(f"{path} has {len(twice)} pictures more than once, {twice[0]} first.")
    if silent := [image.file for image in images if not image.captions]:
        raise ValueError(f"{path}: {len(silent)} pictures have no captions, {silent[0]} first: complete the file.")
    return images


def _counted(images: Iterable[FlickrImage], split: str, count: int) -> list[FlickrImage]:
    found = [image for image in images if image.split == split]
    if len(found) != count:
        raise ValueError(f"split {split!r} has {len(found)} pictures, expected {count}: is {FILE} complete?")
    return found


def _blocks(images: Sequence[FlickrImage], place: Path, max_broken: float) -> Iterator[dict[str, np.ndarray]]:
    files = (place / image.file for image in images)
    rows = pictures.sound(((file, file.read_bytes(), of) for file, of in zip(files, images, strict=True)), max_broken)
    while block := list(islice(rows, storage.ROW_GROUP)):
        yield {
            "id": np.array([image.id for _, _, image in block]),
            "image": objects(content for _, content, _ in block),
            "captions": objects(list(image.captions) for _, _, image in block),
        }
