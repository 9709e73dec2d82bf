"""COCO's captions and Visual Genome's regions in one data set: what models of pictures and language are pre-trained on.

Read `prepare` first. A region's phrase is a text about the whole picture here. Pictures of Visual Genome that are
judged on are left out: those of COCO's splits `val` and `test` for search, all of val2014 for the questions of VQA.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lightning_modules.datasets import asked_pictures, coco_captions, pictures
from lightning_modules.datasets.download import StandIn, find
from lightning_modules.files import replace_folder
from lightning_modules.settings import Count, Share

SPLITS = ("train", "val", "test")
RESTVAL = "restval"  # Karpathy's split of the pictures of val2014 that neither `val` nor `test` has
GENOME = 1_000_000_000  # is added to the ids of Visual Genome's pictures, which COCO's have as well
KARPATHY, REGIONS, KNOWN = "dataset_coco.json", "region_descriptions.json", "image_data.json"


def prepare(
    folder: Path,
    *,
    splits: Mapping[str, Count | None],
    restval: bool,
    visual_genome: list[str] | None,
    limit: Count | None,
    mirror: str | None = None,
    cache: str,
    max_broken: Share = 0.0,
) -> None:
    """Writes our shards from a copy of your own: `id`, `image`, and `captions`, a list.

    Args:
        folder: the prepared data set.
        splits: which of train, val and test to write, and how many pictures of COCO each must have; null for any
            number.
        restval: whether `train` has Karpathy's `restval`, too. Without it nothing of val2014 is in `train`, neither
            from COCO nor from Visual Genome, so that VQA's split `val` can be judged.
        visual_genome: folders of the pictures of Visual Genome, all of which are in `train`; null to leave them out.
        limit: keep only the first so many pictures of each split and of each of both; null keeps all.
        mirror: local folder that holds all this, as it is or below `coco_and_visual_genome/`.
        cache: another place where it may lie.
        max_broken: largest share of a split's pictures that are missing or cannot be decoded, and are left out.

    Raises:
        DataUnavailable: a file or folder is not there.
        ValueError: a file does not have the official form, or a split has another number of pictures.
    """

    def copy(entry: str) -> Path:
        return find("coco_and_visual_genome", entry, mirror=mirror, cache=Path(cache))

    if unknown := sorted(set(splits) - set(SPLITS)):
        raise ValueError(f"splits has {', '.join(unknown)}, expected some of {', '.join(SPLITS)}.")
    path = copy(KARPATHY)
    images = coco_captions.read_karpathy(path, "raw")
    parts = {split: {split, RESTVAL} if split == "train" and restval else {split} for split in SPLITS}
    chosen = {split: [image for image in images if image.split in parts[split]] for split in splits}
    for split, count in splits.items():
        asked_pictures.expect(path, len(chosen[split]), count, f"pictures of {split}")
    halves = {half: copy(half) for half in ("train2014", "val2014")}
    judged = {image.id for image in images if image.split not in parts["train"]}
    regions = [] if visual_genome is None else read_regions(copy(REGIONS), copy(KNOWN), judged)
    folders = [copy(entry) for entry in visual_genome or []]
    with replace_folder(folder) as new:
        rows = {split: _captioned(part[:limit], halves) for split, part in chosen.items()}
        if "train" in rows:
            rows["train"] = _both(rows["train"], _described(regions[:limit], folders))
        asked_pictures.write(new, rows, max_broken, name="coco_and_visual_genome", source="COCO 2014, Visual Genome")


def stand_in(
    folder: Path, *, rows: int, splits: Mapping[str, Any], visual_genome: list[str] | None, **_: object
) -> StandIn:
    """See `download.StandIn`: COCO's, and as many pictures with two regions each."""
    coco_captions.stand_in(folder, rows=rows, splits=dict.fromkeys(splits, rows), features=None)
    (folder / "val2014").mkdir(exist_ok=True)
    if visual_genome is not None:
        place = folder / visual_genome[0]
        place.mkdir(parents=True)
        for number in range(rows):
            (place / f"{number}.jpg").write_bytes(pictures.drawn_jpeg(number))
        told = [
            {"id": number, "regions": [{"phrase": f"{part} of {number}"} for part in ("left", "right")]}
            for number in range(rows)
        ]
        (folder / REGIONS).write_text(json.dumps(told))
        (folder / KNOWN).write_text(json.dumps([{"image_id": number, "coco_id": None} for number in range(rows)]))
    config, whole = {"splits": dict.fromkeys(splits, rows), "cache": str(folder), "limit": None}, dict(splits)
    if visual_genome is not None:  # how many of its pictures have regions, and are not judged on, is not known
        config["visual_genome"] = visual_genome[:1]
        whole["train"] = None
    return StandIn(config, whole)


def read_regions(descriptions: Path, known: Path, without: set[int]) -> list[tuple[int, tuple[str, ...]]]:
    """The id and the phrases of each described picture of Visual Genome.

    Args:
        descriptions: `region_descriptions.json`.
        known: `image_data.json`, which says which of them are COCO's.
        without: ids of COCO whose pictures are left out.

    Raises:
        ValueError: a file does not have the official form.
    """
    try:
        coco = {entry["image_id"]: entry["coco_id"] for entry in asked_pictures.read_json(known)}
        found = [
            (entry["id"], tuple(phrase for each in entry["regions"] if (phrase := each["phrase"].strip())))
            for entry in asked_pictures.read_json(descriptions)
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{descriptions} or {known} does not have the official form ({type(error).__name__}: {error})."
        ) from error
    if unknown := [number for number, _ in found if number not in coco]:
        raise ValueError(f"{known} does not have {len(unknown)} pictures of {descriptions}, {unknown[0]} first.")
    return [(number, phrases) for number, phrases in found if phrases and coco[number] not in without]


def _captioned(images: Sequence[coco_captions.CocoImage], halves: Mapping[str, Path]) -> Iterator[asked_pictures.Row]:
    for image in images:
        half, _, name = image.file.partition("/")
        yield halves[half] / name, {"id": image.id, "captions": list(image.captions)}


def _described(regions: Sequence[tuple[int, tuple[str, ...]]], folders: Sequence[Path]) -> Iterator[asked_pictures.Row]:
    for number, phrases in regions:
        places = [path for place in folders if (path := place / f"{number}.jpg").is_file()]
        yield (places or [folders[0] / f"{number}.jpg"])[0], {"id": GENOME + number, "captions": list(phrases)}


def _both(first: Iterator[asked_pictures.Row], second: Iterator[asked_pictures.Row]) -> Iterator[asked_pictures.Row]:
    """Both in turn by row groups, so that few rows of a rehearsal, and each window of a training, have both."""
    size = 8
    while True:
        block = [*islice(first, size), *islice(second, size)]
        if not block:
            return
        yield from block
