"""BAIR's TFRecords in their official form, small and written here."""

import json

import numpy as np
import pytest
from PIL import Image

from lightning_modules import settings
from lightning_modules.datasets import tfrecords
from lightning_modules.datasets.download import MIRROR_VARIABLE, DataUnavailable
from lightning_modules.datasets.video import bair
from lightning_modules.datasets.video.corpora import read_index
from lightning_modules.datasets.video.files import BrokenVideo


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)


def frames(value, number=5):
    return np.full((number, 64, 64, 3), value, np.uint8) + np.arange(number, dtype=np.uint8)[:, None, None, None]


def write(copy, split, values):
    """A trajectory for each value, two in a file."""
    for start in range(0, len(values), 2):
        drawn = [bair.trajectory(frames(value), "image_aux1") for value in values[start : start + 2]]
        tfrecords.write(copy / f"bair/soft/{split}/traj_{start}_to_{start + 1}.tfrecords", drawn)


def prepare(folder, copy, **changes):
    splits = {"train": {"records": "soft/train", "rows": 3}, "test": {"records": "soft/test"}}
    values = {"name": "bair", "splits": splits, "mirror": str(copy), "cache": str(copy / "cache")} | changes
    block = {"_target_": "lightning_modules.datasets.video.bair.prepare", **values}
    settings.bind(block, "conf/dataset/bair/paper.yaml")(folder)


def test_the_index_says_where_each_trajectory_lies(tmp_path):
    write(tmp_path, "train", [10, 20, 30])
    write(tmp_path, "test", [40])
    prepare(tmp_path / "index", tmp_path)
    found = read_index(tmp_path / "index", "train")
    assert found["file"].tolist() == ["traj_0_to_1.tfrecords"] * 2 + ["traj_2_to_3.tfrecords"]
    for row, value in enumerate([10, 20, 30]):
        path = tmp_path / "bair/soft/train" / found["file"][row]
        stored = bair.read_frames(path, int(found["at"][row]), int(found["length"][row]), "image_aux1")
        assert np.array_equal([bair.pixels(frame) for frame in stored], frames(value))
    card = json.loads((tmp_path / "index/card.json").read_text())
    assert {split: facts["rows"] for split, facts in card["splits"].items()} == {"train": 3, "test": 1}


def test_a_frame_may_be_a_picture_file(tmp_path):
    picture = np.zeros((64, 64, 3), np.uint8) + np.array([200, 30, 60], np.uint8)
    Image.fromarray(picture).save(tmp_path / "frame.png")
    assert np.array_equal(bair.pixels((tmp_path / "frame.png").read_bytes()), picture)
    with pytest.raises(BrokenVideo, match="a frame of 4 bytes is neither pixels of 64 x 64 nor a picture"):
        bair.pixels(b"text")


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"splits": {"train": {"records": "soft/train", "rows": 4}}}, ValueError,
     r"split 'train' has 3 trajectories in .*, expected 4: complete"),
    ({"camera": "image_side"}, BrokenVideo, r"has no feature 0/image_side/encoded at byte 12, only 0/action"),
    ({"splits": {"train": {"records": "soft/none"}}}, DataUnavailable, "bair: soft/none could not be had"),
])  # fmt: skip
def test_what_cannot_be_prepared_is_refused(tmp_path, changes, error, message):
    write(tmp_path, "train", [10, 20, 30])
    write(tmp_path, "test", [40])
    with pytest.raises(error, match=message):
        prepare(tmp_path / "index", tmp_path, **changes)
    assert not (tmp_path / "index").exists()


def test_a_damaged_trajectory_is_a_broken_video(tmp_path):
    write(tmp_path, "train", [10])
    path = tmp_path / "bair/soft/train/traj_0_to_1.tfrecords"
    [place] = tfrecords.places(path)
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(BrokenVideo, match="the checksum of the record at byte 12 is wrong"):
        bair.read_frames(path, *place, "image_aux1")
