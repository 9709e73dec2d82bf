"""CIFAR-10 (A. Krizhevsky): 60,000 colour images of 32 x 32, from the official binary version.

The Python version of the archive is a set of pickles, which may run code when loaded: it is not read.
"""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lightning_modules.datasets import storage
from lightning_modules.datasets.download import StandIn, fetch
from lightning_modules.files import replace_folder, sha256

SHAPE = (32, 32, 3)
ARCHIVE = "cifar-10-binary.tar.gz"
MEMBERS = {"train": [f"data_batch_{index}.bin" for index in range(1, 6)], "test": ["test_batch.bin"]}
RECORD = 1 + 3 * 32 * 32  # the label, then the red, green and blue planes


def prepare(
    folder: Path,
    *,
    files: Mapping[str, Mapping[str, str]],
    mirrors: Sequence[str],
    mirror: str | Path | None = None,
    cache: str | Path,
) -> None:
    """Writes the splits `train` (50,000) and `test` (10,000).

    Args:
        folder: the prepared data set.
        files: checksum of the archive; see `download.fetch`, as for the remaining arguments.
        mirrors: web addresses of folders with the archive.
        mirror: local folder tried first.
        cache: where downloads are kept.

    Raises:
        DataUnavailable: the archive is not available anywhere.
        ValueError: the archive is not in the binary version's format.
    """
    archive = fetch("cifar10", files, mirrors=mirrors, mirror=mirror, cache=Path(cache))[ARCHIVE]
    with replace_folder(folder) as new, tarfile.open(archive) as tar:
        splits = {
            split: storage.write(new, split, _columns(tar, members), "raw", SHAPE) for split, members in MEMBERS.items()
        }
        storage.write_card(
            new,
            name="cifar10",
            splits=splits,
            codec="raw",
            shape=SHAPE,
            num_classes=10,
            source="CIFAR-10 binary version (A. Krizhevsky, 2009)",
        )


def stand_in(folder: Path, *, rows: int, **_: object) -> StandIn:
    """See `download.StandIn`: an archive of noise."""
    random, path = np.random.default_rng(0), folder / ARCHIVE
    with tarfile.open(path, "w:gz") as tar:
        for member in (member for members in MEMBERS.values() for member in members):
            share = -(-rows // len(MEMBERS["train"])) if member in MEMBERS["train"] else rows
            records = random.integers(0, 256, (share, RECORD), np.uint8)
            records[:, 0] %= 10
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{member}")
            info.size = records.nbytes
            tar.addfile(info, io.BytesIO(records.tobytes()))
    config = {"files": {ARCHIVE: {"sha256": sha256(path)}}, "mirrors": [], "cache": str(folder)}
    return StandIn(config, {"train": 50_000, "test": 10_000})


def _columns(tar: tarfile.TarFile, members: Sequence[str]) -> dict[str, np.ndarray]:
    records = np.concatenate([_records(tar, member) for member in members])
    return {
        "id": np.arange(len(records)),
        "image": np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)),
        "label": records[:, 0].astype(np.int64),
    }


def _records(tar: tarfile.TarFile, member: str) -> np.ndarray:
    """The records of one batch file, uint8 (rows, 3073)."""
    name = f"cifar-10-batches-bin/{member}"
    if name not in tar.getnames():
        raise ValueError(f"{tar.name} has no member {name}, expected the binary version of CIFAR-10 ({ARCHIVE}).")
    content = np.frombuffer(tar.extractfile(name).read(), np.uint8)
    if len(content) % RECORD or content[::RECORD].max(initial=0) > 9:
        raise ValueError(
            f"{name} of {tar.name} has {len(content)} bytes and labels up to {content[::RECORD].max(initial=0)}, "
            f"expected records of {RECORD} bytes with labels of 0 to 9: get the archive again."
        )
    return content.reshape(-1, RECORD)
