"""RealEstate10K: pose files in the official form, and the videos that they belong to."""

import json

import numpy as np
import pytest
import torch

from lightning_modules.camvig.paths import path_of
from lightning_modules.camvig.videos import PosedVideos, among, at_times
from lightning_modules.datasets.video import posed
from lightning_modules.datasets.video.corpora import read_index
from lightning_modules.datasets.video.files import BrokenVideo

SPLITS = {
    "train": {"poses": "poses/train", "videos": "videos", "rows": None},
    "test": {"poses": "poses/test", "videos": "videos", "rows": None},
    "broad": {"poses": None, "videos": "broad", "rows": None},
}
FRAMES = 5


def written(folder, rows):
    """A copy with so many clips of each split, and what `prepare` reads it with."""
    made = posed.stand_in(folder, rows=rows, splits=SPLITS, frames=FRAMES)
    return {"name": "realestate10k", "splits": SPLITS, "frames": FRAMES, **made.config}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("realestate")
    return folder, written(folder, 4)


@pytest.fixture(scope="module")
def prepared(copy):
    folder, config = copy
    posed.prepare(folder / "prepared", **config)
    return folder / "prepared"


def of_new_files(folder):
    """The data of 16 clips of each kind that are written anew."""
    if not (folder / "prepared").exists():
        posed.prepare(folder / "prepared", **written(folder / "copy", 16))
    return data(folder / "prepared", batch_size=8, frames=3, stride=1)


def data(prepared, **changes):
    options = {"splits": {"train": {"source": "train", "rows": None}, "val": {"source": "test", "rows": None}},
               "broad": "broad", "share": 0.5, "frames": FRAMES, "stride": 2, "rate": 10.0, "size": 16,
               "batch_size": 4, "evaluation_batch_size": 2, "max_broken": 0.0}  # fmt: skip
    return PosedVideos(folder=prepared, seed=0, **options | changes)


def test_the_index_has_times_lenses_and_poses(prepared):
    index = read_index(prepared, "train")
    assert list(index["file"]) == [f"train-{n}.mp4" for n in range(4)]
    assert [len(times) for times in index["times"]] == [15] * 4 and index["times"][0][1] == 100_000
    assert list(index["focal"][0]) == [0.5, 0.9] and len(index["poses"][0]) == 15 * 12
    broad = read_index(prepared, "broad")
    assert list(broad["file"]) == [f"broad-{n}.mp4" for n in range(4)] and len(broad["times"][0]) == 0


def test_clips_have_the_path_of_the_frames_that_they_show(prepared):
    (first, second) = list(data(prepared).evaluation_batches("val"))
    assert first["video"].shape == (2, 3, FRAMES, 16, 16) and first["posed"].all() and len(second["video"]) == 2
    index = read_index(prepared, "test")
    poses = np.reshape(index["poses"][0], (-1, 3, 4))[among(15, FRAMES, 2, None)]
    assert first["path"][0].numpy() == pytest.approx(path_of(poses), abs=1e-6)
    assert first["focal"][0].numpy() == pytest.approx([0.5 * 48 / 32, 0.9])  # of the central square of 48 x 32 pixels
    brightness = first["video"][0].float().mean((0, 2, 3))  # frame n has the brightness 20 + 5 n
    assert torch.diff(brightness).numpy() == pytest.approx(np.full(FRAMES - 1, 10.0), abs=2.5)


def test_a_training_mixes_both_kinds(prepared):
    made = data(prepared)
    assert len(made.shown("train").files) == 8 and len(data(prepared, share=1.0).shown("train").files) == 4
    found = [made.shown("train").read(row, (row, 1, 2)) for row in range(8)]
    assert [bool(clip["posed"]) for clip in found] == [True] * 4 + [False] * 4
    assert all((clip["path"] == 0).all() for clip in found[4:])


def test_poses_are_a_stride_apart_or_as_far_as_there_are_enough():
    assert among(15, 5, 2, None).tolist() == [3, 5, 7, 9, 11]
    assert among(6, 5, 4, None).tolist() == [1, 2, 3, 4, 5] or among(6, 5, 4, None).tolist() == [0, 1, 2, 3, 4]
    for word in range(20):
        chosen = among(15, 5, 3, word)
        assert chosen[0] >= 0 and chosen[-1] <= 14 and (np.diff(chosen) == 3).all()


def test_times_behind_the_end_of_a_video_break_it():
    times = np.array([0, 100_000, 1_000_000])
    assert at_times(11, times, 10.0).tolist() == [0, 1, 10] and at_times(10, times, 10.0).tolist() == [0, 1, 9]
    with pytest.raises(BrokenVideo, match=r"there are 5 frames at 10\.0 a second, but a pose has number 10"):
        at_times(5, times, 10.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("address\n1 2 3\n", "expected an address, and then lines of 19 numbers"),
        ("address\n1 a\n", "cannot be read as a pose file of RealEstate10K"),
        ("address\n", "expected an address, and then lines of 19 numbers"),
        ("address\n" + " ".join(["0"] * 19) + "\n", "has a pose whose first three columns are no rotation"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, text, message):
    (tmp_path / "one.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        posed.read_poses(tmp_path / "one.txt")


def test_videos_that_are_missing_are_counted_and_bounded(copy, tmp_path):
    folder, config = copy
    splits = {"train": SPLITS["train"] | {"videos": "broad"}}
    with pytest.raises(ValueError, match=r"the videos of 4 of 4 clips of split 'train' are not in .*max_missing"):
        posed.prepare(tmp_path / "one", **config | {"splits": splits})
    with pytest.raises(ValueError, match="split 'train' has 4 clips, 4 of them with videos and 5 frames, expected 9"):
        posed.prepare(tmp_path / "two", **config | {"splits": {"train": SPLITS["train"] | {"rows": 9}}})
    extra = folder / "poses/train/lost.txt"
    extra.write_text(posed._drawn("lost", 15))
    try:
        posed.prepare(tmp_path / "three", **config | {"splits": {"train": SPLITS["train"]}, "max_missing": 0.5})
        assert json.loads((tmp_path / "three/card.json").read_text())["splits"]["train"]["rows"] == 4
    finally:
        extra.unlink()


def test_a_share_without_broad_video_is_refused(prepared):
    with pytest.raises(ValueError, match=r"share is 0.5, but broad is null"):
        data(prepared, broad=None)
