"""ImageNet-1k (ILSVRC 2012): 1,281,167 training and 50,000 validation images in 1,000 classes, as JPEG.

Read `prepare` first. A class is the rank of its WordNet id (wnid) in sorted order, as everywhere in the field. Images
are stored as they come; `pictures.decode` also opens the few that are CMYK or PNG under a JPEG name.
"""

import io
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from lightning_modules.datasets import pictures, storage
from lightning_modules.datasets.download import StandIn, fetch, find
from lightning_modules.files import replace_folder
from lightning_modules.settings import Share

TRAIN_TAR, VAL_TAR, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
HUB_SPLITS = {"train": "train", "val": "validation"}

Row = tuple[str, bytes, int]  # name of the file, its content, label


def prepare(
    folder: Path,
    *,
    form: str,
    splits: Mapping[str, int],
    images_per_class: int | None,
    num_classes: int,
    files: Mapping[str, Mapping[str, str]],
    mirror: str | Path | None = None,
    cache: str | Path,
    max_broken: Share = 0.0,
) -> None:
    """Writes our shards from a copy of your own, image by image: the data set is never in memory.

    `folders` and `tars` give the same rows, in the order of file names; `parquet` keeps the order of its files.

    Args:
        folder: the prepared data set.
        form: `folders`: `train/<wnid>/*.JPEG`, `val/<wnid>/*.JPEG`; `tars`: the official archives with the development
            kit; `parquet`: `data/{train,validation}-*.parquet` as on the Hugging Face Hub.
        splits: which of `train` and `val` to write, and how many images the copy must have of each.
        images_per_class: keep only the first so many of each class; None keeps all.
        num_classes: how many classes the copy must have: with one missing, all later labels would be wrong.
        files: checksums of the archives, for the form `tars`; see `download.fetch`.
        mirror: local folder that holds the copy, as it is or below `imagenet/`.
        cache: another place where the copy may lie.
        max_broken: largest share of a split's images that cannot be decoded and are left out.

    Raises:
        DataUnavailable: the copy is not there or an archive is altered.
        ValueError: the copy does not have the announced form, or an image cannot be decoded.
    """
    copy = _Copy(form, num_classes, files, mirror, Path(cache))
    with replace_folder(folder) as new:
        written = {}
        for split, count in splits.items():
            rows = _first_of_each_class(_checked(copy.rows(split), count, num_classes), images_per_class)
            written[split] = storage.write_blocks(new, split, storage.numbered_blocks(rows, max_broken), "jpeg")
        storage.write_card(
            new,
            name="imagenet",
            splits=written,
            codec="jpeg",
            shape=None,
            num_classes=num_classes,
            source="ImageNet, ILSVRC 2012 classification",
        )


def stand_in(folder: Path, *, rows: int, splits: Mapping[str, int], num_classes: int, **_: object) -> StandIn:
    """See `download.StandIn`: drawn pictures in the form `folders`, the first classes having one more than the last."""
    for split in splits:
        wnids = [f"n{number:08d}" for number in range(num_classes)]
        for wnid in wnids:
            (folder / split / wnid).mkdir(parents=True)
        for number in range(rows):
            wnid = wnids[number % num_classes]
            (folder / split / wnid / f"{wnid}_{number}.JPEG").write_bytes(pictures.drawn_jpeg(number))
    return StandIn({"form": "folders", "splits": dict.fromkeys(splits, rows), "cache": str(folder)}, dict(splits))


@dataclass(frozen=True)
class _Copy:
    """Where a copy of ImageNet lies and in which form."""

    form: str
    num_classes: int
    files: Mapping[str, Mapping[str, str]]
    mirror: str | Path | None
    cache: Path

    def rows(self, split: str) -> Iterator[Row]:
        match self.form, split:
            case "folders", "train" | "val":
                return read_folders(self._find(split), self.num_classes)
            case "tars", "train":
                return read_train_tar(*self._archives(TRAIN_TAR), self.num_classes)
            case "tars", "val":
                return read_val_tar(*self._archives(VAL_TAR, DEVKIT), self.num_classes)
            case "parquet", "train" | "val":
                return read_parquet(self._find("data"), HUB_SPLITS[split])
        raise ValueError(f"form {self.form!r} with split {split!r}: expected folders, tars or parquet, train or val.")

    def _find(self, entry: str) -> Path:
        return find("imagenet", entry, mirror=self.mirror, cache=self.cache)

    def _archives(self, *names: str) -> Iterable[Path]:
        files = {name: self.files[name] for name in names}
        return fetch("imagenet", files, mirrors=[], mirror=self.mirror, cache=self.cache).values()


def read_folders(folder: Path, num_classes: int) -> Iterator[Row]:
    """Reads `<wnid>/*.JPEG`."""
    wnids = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    ranks = _ranks(wnids, num_classes, folder)
    for path in sorted(folder.glob("[!.]*/[!.]*.JPEG"), key=lambda path: path.name):
        yield str(path), path.read_bytes(), ranks[path.parent.name]


def read_train_tar(path: Path, num_classes: int) -> Iterator[Row]:
    """Reads the training archive: one inner archive `<wnid>.tar` per class."""
    with tarfile.open(path) as outer:
        classes = _files(outer, ".tar")
        ranks = _ranks([Path(member.name).stem for member in classes], num_classes, path)
        for member in classes:
            with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                for image in _files(inner, ".JPEG"):
                    yield image.name, inner.extractfile(image).read(), ranks[Path(member.name).stem]


def read_val_tar(path: Path, devkit: Path, num_classes: int) -> Iterator[Row]:
    """Reads the validation archive: its i-th image by name has the i-th label of the development kit."""
    labels = validation_labels(devkit, num_classes)
    with tarfile.open(path) as tar:
        images = _files(tar, ".JPEG")
        if len(images) != len(labels):
            raise ValueError(f"{path} has {len(images)} images, but {devkit} has {len(labels)} labels for them.")
        for image, label in zip(images, labels, strict=True):
            yield image.name, tar.extractfile(image).read(), label


def validation_labels(devkit: Path, num_classes: int) -> list[int]:
    """Labels of the validation images, from ids of the challenge to ranks of wnids.

    The ids (`ILSVRC2012_ID`) have an order of their own; `meta.mat` maps those of the leaves to wnids.
    """
    from scipy.io import loadmat

    with tarfile.open(devkit) as tar:
        synsets = loadmat(io.BytesIO(_member(tar, "/data/meta.mat")), squeeze_me=True)["synsets"]
        truth = _member(tar, "/data/ILSVRC2012_validation_ground_truth.txt").split()
    nodes = zip(synsets["ILSVRC2012_ID"], synsets["WNID"], synsets["num_children"], strict=True)
    leaves = {int(number): str(wnid) for number, wnid, children in nodes if children == 0}
    ranks = _ranks(list(leaves.values()), num_classes, devkit)
    return [ranks[leaves[int(number)]] for number in truth]


def read_parquet(folder: Path, split: str) -> Iterator[Row]:
    """Reads the Hub's form: columns `image: struct<bytes, path>` and `label`, already the rank of the wnid."""
    for path in storage.shards(folder, split):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(storage.ROW_GROUP, columns=["image", "label"]):
                images, labels = batch["image"].to_pylist(), batch["label"].to_pylist()
                for image, label in zip(images, labels, strict=True):
                    yield image["path"] or path.name, image["bytes"], label


def _ranks(wnids: Sequence[str], num_classes: int, source: Path) -> dict[str, int]:
    if len(wnids) != num_classes:
        raise ValueError(f"{source} has {len(wnids)} classes, expected {num_classes}: complete the copy.")
    return {wnid: rank for rank, wnid in enumerate(sorted(wnids))}


def _files(tar: tarfile.TarFile, suffix: str) -> list[tarfile.TarInfo]:
    """The members with this suffix, by name."""
    return sorted((member for member in tar if member.name.endswith(suffix)), key=lambda member: member.name)


def _member(tar: tarfile.TarFile, suffix: str) -> bytes:
    found = _files(tar, suffix)
    if len(found) != 1:
        raise ValueError(f"{tar.name} has {len(found)} members *{suffix}, expected one: is it {DEVKIT}?")
    return tar.extractfile(found[0]).read()


def _checked(rows: Iterator[Row], count: int, num_classes: int) -> Iterator[Row]:
    """Passes rows on, and refuses a copy that was cut off, holds no images, or has other labels."""
    seen = 0
    for seen, (name, image, label) in enumerate(rows, start=1):
        if image is None:
            raise ValueError(f"{name}, image {seen} of label {label}, has no bytes: the copy holds paths only.")
        if not 0 <= label < num_classes:
            raise ValueError(f"label {label} is outside 0 to {num_classes - 1}: the split has no labels, or others.")
        yield name, image, label
    if seen != count:
        raise ValueError(f"the copy has {seen} images, expected {count}: complete it.")


def _first_of_each_class(rows: Iterator[Row], limit: int | None) -> Iterator[Row]:
    taken = Counter()
    for name, image, label in rows:
        if limit is None or taken[label] < limit:
            taken[label] += 1
            yield name, image, label
