"""Images of your own: a folder for each split, in it a folder for each class, in it JPEG or PNG files.

Hidden files and folders, and files that are no images, are passed over. `pictures` says how an image is read.

A configuration in `conf/dataset/<name>/` names the folders; ImageNet, with its other forms, has `imagenet`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from lightning_modules.datasets import pictures, storage
from lightning_modules.datasets.download import StandIn, find
from lightning_modules.files import replace_folder
from lightning_modules.settings import Share

CODECS = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png"}
UNREADABLE = (".heic", ".heif", ".jxl")  # pictures that Pillow does not know


def prepare(
    folder: Path,
    *,
    name: str,
    splits: Mapping[str, str],
    source: str,
    mirror: str | Path | None = None,
    cache: str | Path,
    max_broken: Share = 0.0,
) -> None:
    """Writes our shards file by file, as they are. No split is ever in memory.

    Classes are numbered in the order of their names, rows in that of `<class>/<file>`.

    Args:
        folder: the prepared data set.
        name: of the data set.
        splits: for each of our splits the folder it is in, for example `{train: train, val: validation}`.
        source: where the images come from, for the card.
        mirror: local folder that holds those folders, as they are or below `<name>/`.
        cache: another place where they may lie.
        max_broken: largest share of a split's images that cannot be decoded and are left out.

    Raises:
        DataUnavailable: a folder is not there.
        ValueError: splits differ in their classes, or files in their format; an image lies elsewhere than in the folder
            of a class, or cannot be decoded.
    """
    folders = {split: find(name, entry, mirror=mirror, cache=Path(cache)) for split, entry in splits.items()}
    classes, codec = _classes(folders), _codec(folders)
    with replace_folder(folder) as new:
        written = {
            split: storage.write_blocks(new, split, storage.numbered_blocks(_rows(path, classes), max_broken), codec)
            for split, path in folders.items()
        }
        storage.write_card(
            new, name=name, splits=written, codec=codec, shape=None, num_classes=len(classes), source=source
        )


def stand_in(folder: Path, *, rows: int, splits: Mapping[str, str], **_: object) -> StandIn:
    """See `download.StandIn`: drawn pictures of ten classes."""
    for entry in splits.values():
        for number in range(max(rows, 10)):
            path = folder / entry / f"class-{number % 10}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pictures.drawn_jpeg(number))
    return StandIn({"cache": str(folder)}, dict.fromkeys(splits))


def _images(folder: Path) -> list[Path]:
    """The JPEG and PNG files of all classes.

    Raises:
        ValueError: an image has another format, or lies elsewhere than in the folder of a class.
    """
    from PIL import Image

    known = {*Image.registered_extensions(), *UNREADABLE}
    below = (path for top in folder.iterdir() for path in (top, *top.rglob("*")))  # folders of classes may be links
    found = [path for path in sorted(below) if path.suffix.lower() in known and path.is_file()]
    images = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    for problem, paths in (
        ("are neither JPEG nor PNG", [path for path in images if path.suffix.lower() not in CODECS]),
        ("do not lie in the folder of a class", [path for path in images if path.parent.parent != folder]),
    ):
        if paths:
            raise ValueError(f"{len(paths)} images of {folder} {problem}, {paths[0]} first: convert or move them.")
    return images


def _rows(folder: Path, classes: list[str]) -> Iterator[tuple[str, bytes, int]]:
    numbers = {name: number for number, name in enumerate(classes)}
    return ((str(path), path.read_bytes(), numbers[path.parent.name]) for path in _images(folder))


def _classes(folders: Mapping[str, Path]) -> list[str]:
    """The names of the classes, which all splits must have in common: else their labels would not agree."""
    of_split = {split: {path.parent.name for path in _images(folder)} for split, folder in folders.items()}
    classes = set.union(*of_split.values())
    for split, found in of_split.items():
        if missing := sorted(classes - found):
            raise ValueError(
                f"{folders[split]} has no image of {', '.join(missing)}, but another split has: complete it, or remove "
                "these classes everywhere."
            )
    return sorted(classes)


def _codec(folders: Mapping[str, Path]) -> storage.Codec:
    codecs = {CODECS[path.suffix.lower()] for folder in folders.values() for path in _images(folder)}
    if len(codecs) != 1:
        raise ValueError(
            f"{', '.join(map(str, folders.values()))} must hold images of one format, JPEG or PNG, "
            f"but {'both are there' if codecs else 'there are none'}."
        )
    return codecs.pop()
