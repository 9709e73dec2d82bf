"""SNLI-VE (Xie et al. 2019): what a sentence says of a picture of Flickr30k follows, contradicts it, or neither.

Read `prepare` first. The data set is made of SNLI 1.0 and two lists of pictures, by the rule of its authors
(`vet/tools/snli_ve_generator.py` of necla-ml/SNLI-VE, commit e6cf745): the last thousand pictures of the first list are
the split `dev`. A copy of what they made, `snli_ve_<split>.jsonl`, is read as well.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from lightning_modules.datasets import asked_pictures, pictures
from lightning_modules.datasets.download import StandIn, find
from lightning_modules.files import replace_folder
from lightning_modules.settings import Count, Share

LABELS = ("contradiction", "neutral", "entailment")
LISTS = {"train_val": "flickr30k_train_val.lst", "test": "flickr30k_test.lst"}
HELD = 1000  # pictures at the end of the first list that are the split dev
SPLITS = ("train", "dev", "test")
FOLDER = "flickr30k-images"
UNSURE = "-"  # label of what people do not agree about
Statements = dict[str, list[tuple[str, str]]]  # picture -> sentences and their labels


def prepare(
    folder: Path,
    *,
    form: Literal["snli", "snli_ve"],
    splits: Mapping[str, Count | None],
    limit: Count | None,
    mirror: str | None = None,
    cache: str,
    max_broken: Share = 0.0,
) -> None:
    """Writes our shards from a copy of your own: a row is a picture with its sentences.

    Columns: `id`, the number in the name of the picture; `image`; and lists with a text for each sentence:
    `statements` and `labels` (contradiction, neutral, entailment).

    Args:
        folder: the prepared data set.
        form: `snli_ve` for the authors' files, `snli` for `snli_1.0_<split>.jsonl` and the two lists of pictures.
        splits: which of train, dev and test to write, and how many sentences each must have; null for any number.
        limit: keep only the first so many pictures of each split; null keeps all.
        mirror: local folder that holds the files and the pictures, as they are or below `snli_ve/`.
        cache: another place where they may lie.
        max_broken: largest share of a split's pictures that are missing or cannot be decoded, and are left out.

    Raises:
        DataUnavailable: a file or folder is not there.
        ValueError: a file does not have the official form, or a split has another number of sentences.
    """

    def copy(entry: str) -> Path:
        return find("snli_ve", entry, mirror=mirror, cache=Path(cache))

    if unknown := sorted(set(splits) - set(SPLITS)):
        raise ValueError(f"splits has {', '.join(unknown)}, expected some of {', '.join(SPLITS)}.")
    if form == "snli_ve":
        found = {split: read_snli_ve(copy(f"snli_ve_{split}.jsonl")) for split in splits}
    else:
        files = [copy(f"snli_1.0_{split}.jsonl") for split in SPLITS]
        found = make_snli_ve(files, {name: copy(file) for name, file in LISTS.items()})
    for split, count in splits.items():
        told = sum(map(len, found[split].values()))
        asked_pictures.expect(Path(f"the split {split} of SNLI-VE"), told, count, "sentences")
    place = copy(FOLDER)
    with replace_folder(folder) as new:
        rows = {split: _rows(found[split], place, limit) for split in splits}
        asked_pictures.write(new, rows, max_broken, name="snli_ve", source="SNLI-VE on Flickr30k")


def stand_in(folder: Path, *, rows: int, form: str, splits: Mapping[str, Any], **_: object) -> StandIn:
    """See `download.StandIn`: drawn pictures with a sentence of each label, in the authors' files."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    for part, split in enumerate(splits):
        lines = []
        for number in range(part * rows, (part + 1) * rows):
            (folder / FOLDER / f"{number}.jpg").write_bytes(pictures.drawn_jpeg(number))
            lines += [
                {"Flickr30K_ID": str(number), "gold_label": label, "sentence2": f"It is {number} {label}."}
                for label in LABELS
            ]
        (folder / f"snli_ve_{split}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    counts = {split: len(LABELS) * rows for split in splits}
    return StandIn({"form": "snli_ve", "splits": counts, "limit": None, "cache": str(folder)}, dict.fromkeys(splits))


def read_snli_ve(path: Path) -> Statements:
    """The sentences about each picture, from a file of the authors.

    Raises:
        ValueError: it does not have the official form, a picture has no number, or a label is unknown.
    """
    found: Statements = {}
    for number, entry in enumerate(asked_pictures.read_lines(path, ("gold_label", "sentence2")), start=1):
        picture = entry.get("Flickr30K_ID", entry.get("Flikr30kID"))  # the authors' own parser has the second name
        if picture is None:
            raise ValueError(f"line {number} of {path} has no Flickr30K_ID: it does not have the official form.")
        found.setdefault(_picture(path, number, str(picture).removesuffix(".jpg")), []).append(
            (entry["sentence2"], _label(path, number, entry))
        )
    return found


def make_snli_ve(files: list[Path], lists: Mapping[str, Path]) -> dict[str, Statements]:
    """The three splits from those of SNLI 1.0, whose own splits do not count, and from the two lists of pictures.

    Sentences without a label that most people agree on are left out, and so are those about pictures of Visual Genome.

    Raises:
        ValueError: a file does not have the official form.
    """
    told: Statements = {}
    for path in files:
        entries = asked_pictures.read_lines(path, ("gold_label", "pairID", "sentence2"))
        for number, entry in enumerate(entries, start=1):
            if entry["gold_label"] == UNSURE or "vg_" in str(entry["pairID"]):
                continue
            name, _, _ = str(entry["pairID"]).partition(".jpg")
            told.setdefault(_picture(path, number, name), []).append((entry["sentence2"], _label(path, number, entry)))
    first, test = (read_list(lists[name]) for name in LISTS)
    parts = {"train": first[:-HELD], "dev": first[-HELD:], "test": test}
    return {split: {name: told[name] for name in names if name in told} for split, names in parts.items()}


def read_list(path: Path) -> list[str]:
    """The names of pictures in a list of the authors, without ending.

    Raises:
        ValueError: it has none, or a line is no number.
    """
    names = asked_pictures.read_text(path).split()
    if wrong := [name for name in names if not name.isdecimal()]:
        raise ValueError(f"{path} has {wrong[0]!r}, expected the number of a picture of Flickr30k on each line.")
    if not names:
        raise ValueError(f"{path} is empty, expected the number of a picture of Flickr30k on each line.")
    return names


def _picture(path: Path, number: int, name: str) -> str:
    if not name.isdecimal():
        raise ValueError(f"line {number} of {path} has the picture {name!r}, expected a number of Flickr30k.")
    return name


def _label(path: Path, number: int, entry: Mapping[str, Any]) -> str:
    if entry["gold_label"] not in LABELS:
        raise ValueError(f"line {number} of {path} has the label {entry['gold_label']!r}, not of {', '.join(LABELS)}.")
    return entry["gold_label"]


def _rows(found: Statements, place: Path, limit: int | None) -> Iterator[asked_pictures.Row]:
    for picture, told in list(found.items())[:limit]:
        yield (
            place / f"{picture}.jpg",
            {
                "id": int(picture),
                "statements": [sentence for sentence, _ in told],
                "labels": [label for _, label in told],
            },
        )
