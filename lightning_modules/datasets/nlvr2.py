"""NLVR2 (Suhr et al. 2019): whether a sentence is true of two pictures.

Read `prepare` first. Files are the official ones (lil-lab/nlvr): `train.json`, `dev.json`, `test1.json` with one object
on each line, and pictures `<split>-<set>-<pair>-img0.png` (left) and `-img1.png` (right), below a folder for each
split, those of the training in one for each `directory`. Some of these files are no PNGs, whatever their names say.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.datasets import asked_pictures, pictures
from lightning_modules.datasets.download import StandIn, find
from lightning_modules.datasets.skipped import Skipped
from lightning_modules.files import replace_folder
from lightning_modules.settings import STRICT, Count, Share

SIDES = ("img0", "img1")  # left and right
TRUTHS = {"true": "true", "false": "false"}


class Files(TypedDict):
    """Of one split: its file, its folder of pictures, and how many sentences and pairs it must have."""

    __pydantic_config__ = STRICT
    file: str
    images: str
    rows: Count | None


@dataclass(frozen=True)
class Pair:
    """Two pictures with what is said of them: sentence, its number, and whether it is true."""

    left: str
    right: str
    said: tuple[tuple[str, str, str], ...]


def prepare(
    folder: Path,
    *,
    splits: dict[str, Files],
    limit: Count | None,
    mirror: str | None = None,
    cache: str,
    max_broken: Share = 0.0,
) -> None:
    """Writes our shards from a copy of your own: two rows for each pair, the left picture and then the right one.

    Columns: `id`, the number of the pair; `image`; and lists with a text for each sentence, which the right picture
    has empty: `statements`, `labels` (true, false) and `groups`, which sentence it is, for consistency.

    Args:
        folder: the prepared data set.
        splits: files of each split, and how many sentences with a pair it must have.
        limit: keep only the first so many pairs of each split; null keeps all.
        mirror: local folder that holds all this, as it is or below `nlvr2/`.
        cache: another place where it may lie.
        max_broken: largest share of a split's pairs with a picture that is missing or cannot be decoded; they are left
            out. (The authors estimate that 5 % cannot be fetched any more.)

    Raises:
        DataUnavailable: a file or folder is not there.
        ValueError: a file does not have the official form, or a split has another number of sentences.
    """

    def copy(entry: str) -> Path:
        return find("nlvr2", entry, mirror=mirror, cache=Path(cache))

    found = {}
    for split, files in splits.items():
        path = copy(files["file"])
        found[split] = read_pairs(path)
        asked_pictures.expect(path, sum(len(pair.said) for pair in found[split]), files["rows"], "sentences")
    places = {split: copy(files["images"]) for split, files in splits.items()}
    with replace_folder(folder) as new:
        rows = {split: _rows(_whole(islice(pairs, limit), places[split], max_broken)) for split, pairs in found.items()}
        asked_pictures.write(new, rows, 0.0, name="nlvr2", source="NLVR2")


def stand_in(folder: Path, *, rows: int, splits: Mapping[str, Files], **_: object) -> StandIn:
    """See `download.StandIn`: drawn pairs with a true and a false sentence each."""
    config: dict[str, Files] = {}
    for split, files in splits.items():
        place = folder / files["images"]
        place.mkdir(parents=True, exist_ok=True)
        lines = []
        for number in range(max(1, rows // 2)):
            name = f"{split}-{number}-0"
            for side, ending in enumerate(SIDES):
                (place / f"{name}-{ending}.png").write_bytes(pictures.drawn_jpeg(2 * number + side))
            lines += [
                {"sentence": f"They are {truth}.", "identifier": f"{name}-{which}", "label": truth}
                for which, truth in enumerate(("True", "False"))
            ]
        (folder / files["file"]).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        config[split] = {**files, "rows": len(lines)}
    return StandIn({"splits": config, "limit": None, "cache": str(folder)}, dict.fromkeys(splits))


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a split in the order in which they are first spoken of.

    Raises:
        ValueError: the file does not have the official form.
    """
    found: dict[str, list[tuple[str, str, str]]] = {}
    numbers: dict[str, int] = {}
    for line, entry in enumerate(asked_pictures.read_lines(path, ("sentence", "identifier", "label")), start=1):
        parts = str(entry["identifier"]).rsplit("-", 2)
        truth = TRUTHS.get(str(entry["label"]).lower())
        if len(parts) != 3 or truth is None:
            raise ValueError(
                f"line {line} of {path} has the identifier {entry['identifier']!r} and the label {entry['label']!r}, "
                "expected <split>-<set>-<pair>-<sentence> and True or False."
            )
        before, pair, sentence = parts
        directory = f"{entry['directory']}/" if "directory" in entry else ""
        group = numbers.setdefault(f"{before}-{sentence}", len(numbers))
        found.setdefault(f"{directory}{before}-{pair}", []).append((entry["sentence"], truth, str(group)))
    return [Pair(*(f"{name}-{side}.png" for side in SIDES), tuple(said)) for name, said in found.items()]


def _whole(pairs: Iterable[Pair], place: Path, max_broken: float) -> Iterator[tuple[int, Pair, Path, Path]]:
    """The pairs both of whose pictures can be decoded."""
    skipped = Skipped("pairs of pictures", max_broken)
    for number, pair in enumerate(pairs):
        files = [place / name for name in (pair.left, pair.right)]
        try:
            for file in files:
                pictures.read(file)
        except pictures.BrokenPicture as error:
            skipped.skip(error)
            continue
        skipped.read()
        yield number, pair, *files


def _rows(pairs: Iterable[tuple[int, Pair, Path, Path]]) -> Iterator[asked_pictures.Row]:
    for number, pair, left, right in pairs:
        columns = dict(zip(("statements", "labels", "groups"), map(list, zip(*pair.said, strict=True)), strict=True))
        yield left, {"id": number, **columns}
        yield right, {"id": number, **{name: [] for name in columns}}
