import gzip
import hashlib
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lightning_modules.datasets import mnist, storage
from lightning_modules.datasets.download import DataUnavailable

from .conftest import Answer

CONF = Path(__file__).parents[2] / "conf" / "dataset" / "mnist"
TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def configuration(**changes) -> dict:
    config = OmegaConf.to_container(OmegaConf.load(CONF / "tiny.yaml"))
    del config["_target_"]
    return config | {"mirrors": []} | changes


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.astype(np.uint8).tobytes()


def write_files(folder: Path, images: np.ndarray, labels: np.ndarray) -> dict:
    """All four files of a toy MNIST and their checksums."""
    checksums = {}
    for pair in mnist.FILES.values():
        for name, values in zip(pair, (images, labels), strict=True):
            (folder / name).write_bytes(gzip.compress(idx(values)))
            checksums[name] = {"content_md5": hashlib.md5(idx(values), usedforsecurity=False).hexdigest()}
    return checksums


def test_real_mnist(realdata, tmp_path):
    folder = tmp_path / "datasets" / "mnist"
    mnist.prepare(folder, **configuration(mirror=str(realdata), cache=tmp_path / "cache"))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["mnist"]
    for split, counts in {"train": TRAIN_COUNTS, "test": TEST_COUNTS}.items():
        columns = storage.read(folder, split)
        assert columns["image"].shape == (sum(counts), 28, 28, 1)
        assert np.bincount(columns["label"]).tolist() == counts
        original = gzip.decompress((realdata / "mnist" / mnist.FILES[split][0]).read_bytes())
        assert columns["image"].tobytes() == original[16:]
    assert storage.card(folder)["splits"] == {"train": 60_000, "test": 10_000}


@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_damaged_copy_of_the_real_files_is_refused(realdata, tmp_path, damage):
    mirror = tmp_path / "mirror"
    shutil.copytree(realdata / "mnist", mirror / "mnist", copy_function=shutil.copyfile)
    (mirror / "mnist").chmod(0o755)
    labels = mirror / "mnist" / "t10k-labels-idx1-ubyte.gz"
    content = labels.read_bytes()
    other = bytearray(gzip.decompress(content))
    other[-1] ^= 1
    labels.write_bytes(content[:-100] if damage == "cut" else gzip.compress(bytes(other)))
    with pytest.raises(DataUnavailable, match=r"t10k-labels-idx1-ubyte\.gz could not be had"):
        mnist.prepare(tmp_path / "out", **configuration(mirror=mirror, cache=tmp_path / "cache"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mirror"]


def test_prepare_from_the_web_downloads_once(tmp_path, site):
    files = write_files(tmp_path, np.zeros((3, 28, 28)), np.arange(3))
    for name in files:
        site.answers[f"/bad/{name}"] = [Answer(gzip.compress(b"another file"))]
        site.answers[f"/good/{name}"] = [Answer((tmp_path / name).read_bytes())]
    mirrors = [f"{site.address}/bad/", f"{site.address}/good/"]
    for target in ("first", "second"):
        mnist.prepare(tmp_path / target, **configuration(files=files, mirrors=mirrors, cache=tmp_path / "cache"))
        assert storage.read(tmp_path / target, "train")["label"].tolist() == [0, 1, 2]
    assert len(site.requests) == 2 * len(files)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted(files)


@settings(deadline=None, max_examples=50)
@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=3), data=st.data())
def test_idx_round_trip_and_every_cut_is_refused(shape, data):
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(np.uint8)
    content = idx(values)
    with TemporaryDirectory() as folder:
        path = Path(folder, "values.gz")
        path.write_bytes(gzip.compress(content, 1))
        np.testing.assert_array_equal(mnist.read_idx(path, values.ndim), values)
        path.write_bytes(gzip.compress(content[: data.draw(st.integers(0, len(content) - 1))], 1))
        with pytest.raises(ValueError, match=r"values\.gz"):
            mnist.read_idx(path, values.ndim)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\x00\x0d\x01" + bytes(8), "begins with 00000d01, expected 00000801"),
        (idx(np.zeros((2, 2))), "begins with 00000802, expected 00000801"),
        (b"", "begins with , expected"),
        (idx(np.zeros(3)) + b"x", r"holds 4 values, but its header promises 3 \(3,\)"),
        (idx(np.zeros(3))[:6], "ends after 6 bytes, inside its header of 8"),
    ],
)
def test_idx_errors_name_found_and_expected(tmp_path, content, message):
    (tmp_path / "labels.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=message):
        mnist.read_idx(tmp_path / "labels.gz", 1)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((3, 28, 28)), np.zeros(4)),
        (np.zeros((3, 28, 27)), np.zeros(3)),
        (np.zeros((3, 28, 28)), np.full(3, 10)),
    ],
)
def test_files_that_do_not_belong_together_are_refused(tmp_path, images, labels):
    config = configuration(files=write_files(tmp_path, images, labels), mirror=tmp_path, cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="do not belong together"):
        mnist.prepare(tmp_path / "datasets" / "mnist", **config)
    assert not list((tmp_path / "datasets").iterdir())
