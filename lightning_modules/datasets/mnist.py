"""MNIST (Y. LeCun, C. Cortes, C. Burges): 70,000 grey images of 28 x 28, in the original IDX files."""

import gzip
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lightning_modules.datasets import storage
from lightning_modules.datasets.download import StandIn, fetch
from lightning_modules.files import replace_folder, sha256

SHAPE = (28, 28, 1)
FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
UNSIGNED_BYTE = 0x08


def prepare(
    folder: Path,
    *,
    files: Mapping[str, Mapping[str, str]],
    mirrors: Sequence[str],
    mirror: str | Path | None = None,
    cache: str | Path,
) -> None:
    """Writes the splits `train` (60,000) and `test` (10,000).

    Args:
        folder: the prepared data set.
        files: checksum of every file; see `download.fetch`, as for the remaining arguments.
        mirrors: web addresses of folders with the four files.
        mirror: local folder tried first.
        cache: where downloads are kept.

    Raises:
        DataUnavailable: a file is not available anywhere.
        ValueError: a file is not what its name promises.
    """
    paths = fetch("mnist", files, mirrors=mirrors, mirror=mirror, cache=Path(cache))
    with replace_folder(folder) as new:
        splits = {
            split: storage.write(new, split, _columns(paths[images], paths[labels]), "raw", SHAPE)
            for split, (images, labels) in FILES.items()
        }
        storage.write_card(
            new,
            name="mnist",
            splits=splits,
            codec="raw",
            shape=SHAPE,
            num_classes=10,
            source="MNIST, original IDX files (LeCun, Cortes, Burges)",
        )


def stand_in(folder: Path, *, rows: int, **_: object) -> StandIn:
    """See `download.StandIn`: files of noise."""
    random = np.random.default_rng(0)
    for images, labels in FILES.values():
        for name, shape, values in ((images, (rows, *SHAPE[:2]), 256), (labels, (rows,), 10)):
            header = bytes([0, 0, UNSIGNED_BYTE, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
            content = random.integers(0, values, shape, np.uint8).tobytes()
            (folder / name).write_bytes(gzip.compress(header + content, mtime=0))
    files = {name: {"sha256": sha256(folder / name)} for names in FILES.values() for name in names}
    return StandIn({"files": files, "mirrors": [], "cache": str(folder)}, {"train": 60_000, "test": 10_000})


def read_idx(path: Path, dims: int) -> np.ndarray:
    """Reads a gzip-compressed IDX file of unsigned bytes with `dims` axes.

    The format: two zero bytes, the type (8 = unsigned byte), the number of axes, each length as a big-endian uint32,
    then the values in C order and nothing else.

    Raises:
        ValueError: magic number, number of axes or length differ.
    """
    with gzip.open(path) as file:
        content = file.read()
    magic, expected = content[:4], bytes([0, 0, UNSIGNED_BYTE, dims])
    if magic != expected:
        raise ValueError(
            f"{path} begins with {magic.hex()}, expected {expected.hex()}: IDX, unsigned bytes, {dims} axes."
        )
    header = 4 + 4 * dims
    if len(content) < header:
        raise ValueError(f"{path} ends after {len(content)} bytes, inside its header of {header}: get the file again.")
    shape = tuple(int.from_bytes(content[start : start + 4], "big") for start in range(4, header, 4))
    if len(content) - header != math.prod(shape):
        raise ValueError(
            f"{path} holds {len(content) - header} values, but its header promises {math.prod(shape)} {shape}: "
            "get the file again."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _columns(images_path: Path, labels_path: Path) -> dict[str, np.ndarray]:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels) or images.shape[1:] != SHAPE[:2] or labels.max(initial=0) > 9:
        raise ValueError(
            f"{images_path} {images.shape} and {labels_path} {labels.shape} with labels up to {labels.max(initial=0)} "
            f"do not belong together, expected as many images of {SHAPE[:2]} as labels of 0 to 9."
        )
    return {"id": np.arange(len(labels)), "image": images[..., None], "label": labels.astype(np.int64)}
