import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from lightning_modules.datasets import cifar10, storage
from lightning_modules.datasets.download import DataUnavailable

NAMES = [*cifar10.MEMBERS["train"], *cifar10.MEMBERS["test"]]
ROWS = 4


def records(seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 256, (ROWS, cifar10.RECORD), dtype=np.uint8)
    values[:, 0] %= 10
    return values


def prepare(folder: Path, members: dict[str, bytes], checksum: str | None = None) -> Path:
    """Prepares an archive with the official layout that holds these members."""
    with tarfile.open(folder / cifar10.ARCHIVE, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    found = hashlib.md5((folder / cifar10.ARCHIVE).read_bytes(), usedforsecurity=False).hexdigest()
    files = {cifar10.ARCHIVE: {"md5": checksum or found}}
    target = folder / "datasets" / "cifar10"
    cifar10.prepare(target, files=files, mirrors=[], mirror=folder, cache=folder / "cache")
    return target


def members(**changes: bytes) -> dict[str, bytes]:
    return {name: records(seed).tobytes() for seed, name in enumerate(NAMES)} | changes


def test_planes_become_channels_and_batches_one_split(tmp_path):
    folder = prepare(tmp_path, members())
    assert storage.card(folder)["splits"] == {"train": 5 * ROWS, "test": ROWS}
    train, test = storage.read(folder, "train"), storage.read(folder, "test")
    np.testing.assert_array_equal(test["label"], records(5)[:, 0])
    np.testing.assert_array_equal(train["label"][ROWS : 2 * ROWS], records(1)[:, 0])
    for row, y, x, channel in [(0, 0, 0, 0), (1, 3, 31, 1), (3, 31, 0, 2)]:
        assert train["image"][row, y, x, channel] == records(0)[row, 1 + channel * 1024 + y * 32 + x]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_batch_3.bin": bytes(cifar10.RECORD - 1)}, r"data_batch_3\.bin .* has 3072 bytes"),
        ({"test_batch.bin": bytes([10]) * cifar10.RECORD}, r"test_batch\.bin .* labels up to 10"),
    ],
)
def test_malformed_batches_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, members() | change)
    assert not list((tmp_path / "datasets").iterdir())


def test_the_pickled_version_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no member cifar-10-batches-bin/data_batch_1\.bin"):
        prepare(tmp_path, {"data_batch_1": b"a pickle"})


def test_altered_archive_is_refused(tmp_path):
    with pytest.raises(DataUnavailable, match=r"cifar-10-binary\.tar\.gz: altered or cut off: md5 is"):
        prepare(tmp_path, members(), checksum="0" * 32)
    assert not (tmp_path / "datasets").exists()
