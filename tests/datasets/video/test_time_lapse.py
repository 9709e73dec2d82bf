"""Time lapses in their authors' forms, small and written here."""

import json

import numpy as np
import pytest
from PIL import Image

from lightning_modules import settings
from lightning_modules.datamodules.video_clips import VideoClips
from lightning_modules.datasets.download import MIRROR_VARIABLE, DataUnavailable
from lightning_modules.datasets.video import time_lapse
from lightning_modules.datasets.video.corpora import read_index
from lightning_modules.datasets.video.drawn import encode

SKY = {"form": "folders", "splits": {"train": {"videos": "sky_train"}, "test": {"videos": "sky_test"}}, "frames": 9}
QST = {"form": "listed", "splits": {"train": {"videos": "clips", "listed": "train_urls.txt"}}, "frames": 9}
FILES = {"form": "files", "splits": {"train": {"videos": "mine"}}, "frames": 9}


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """Four clips of every split and form."""
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    for form in (SKY, QST, FILES):
        time_lapse.stand_in(tmp_path / "lapses", rows=4, **form)
    return tmp_path


def prepare(copy, given, /, **changes):
    values = {"name": "lapses", **given, "mirror": str(copy), "cache": str(copy / "cache")} | changes
    block = {"_target_": "lightning_modules.datasets.video.time_lapse.prepare", **values}
    settings.bind(block, "conf/dataset/lapses/paper.yaml")(copy / "index")
    return {split: read_index(copy / "index", split) for split in values["splits"]}


def clips(copy, **changes):
    options = {"splits": {"train": {"source": "train", "rows": None}}, "frames": 4, "stride": 2, "size": 16,
               "short_side": 24, "vary": False, "batch_size": 2, "evaluation_batch_size": 3, "mirror": str(copy),
               "max_broken": 0.0}  # fmt: skip
    return VideoClips(folder=copy / "index", seed=0, **options | changes)


def test_a_clip_of_sky_time_lapse_is_a_folder_of_pictures(copy):
    found = prepare(copy, SKY)
    assert found["train"]["scene"].tolist() == [f"sky_train/train{video}/{clip}" for video in "01" for clip in "01"]
    files = found["test"]["files"][3]
    assert list(files) == [f"sky_test/test1/1/test1_frames_{number:08d}.jpg" for number in range(9)]
    [batch, _] = clips(copy).evaluation_batches("train")
    assert batch["video"].shape == (3, 3, 4, 16, 16) and batch["labels"].tolist() == [0, 0, 0]


def test_frames_are_in_the_order_of_their_numbers_and_short_clips_are_left_out(copy):
    folder = copy / "lapses/sky_train/own/0"
    folder.mkdir(parents=True)
    for number in (10, 9, 100, *range(8)):
        Image.new("RGB", (16, 16)).save(folder / f"frame{number}.PNG")
    (folder / ".frame5.png").write_bytes(b"")  # as macOS leaves them
    (folder / "thumbs.db").write_bytes(b"")
    found = prepare(copy, SKY, frames=10, splits={"train": {"videos": "sky_train"}})["train"]
    assert found["scene"].tolist() == ["sky_train/own/0"]
    assert [file.rpartition("frame")[2] for file in found["files"][0]][-3:] == ["9.PNG", "10.PNG", "100.PNG"]
    assert json.loads((copy / "index/card.json").read_text())["splits"]["train"]["short"] == 4


def test_all_numbers_of_a_name_count():
    names = ["f10_640x360.jpg", "f9_640x360.jpg", "f100_640x360.jpg"]
    assert sorted(names, key=time_lapse.numbered) == [names[1], names[0], names[2]]


def test_a_line_of_quick_sky_times_list_is_a_video_in_the_folder_of_its_first_word(copy):
    found = prepare(copy, QST)["train"]
    assert found["file"].tolist() == [f"train{n // 2}/train{n // 2} {n % 2}.mp4" for n in range(4)]
    [batch, _] = clips(copy).evaluation_batches("train")
    assert batch["video"].shape == (3, 3, 4, 16, 16)


def test_videos_of_ones_own_are_read_wherever_they_lie(copy):
    encode(copy / "lapses/mine/more/deep/last.MOV", 12)
    found = prepare(copy, FILES)["train"]["file"].tolist()
    assert found[0] == "more/deep/last.MOV" and len(found) == 5
    assert clips(copy).shown("train").read(0, None)["video"].shape == (4, 16, 16, 3)


def test_missing_videos_of_a_list_are_bounded(copy):
    (copy / "lapses/clips/train1/train1 0.mp4").unlink()
    with pytest.raises(ValueError, match=r"1 of 4 videos of split 'train' are not in .*such as train1/train1 0.mp4"):
        prepare(copy, QST)
    assert len(prepare(copy, QST, max_missing=0.25)["train"]["file"]) == 3


def test_a_list_that_names_a_clip_twice_or_is_no_text_is_refused(copy):
    path = copy / "lapses/train_urls.txt"
    path.write_text(path.read_text() + "train0 1\n")
    with pytest.raises(ValueError, match=r"train_urls.txt names 1 clips more than once: keep one line of each"):
        prepare(copy, QST)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"train_urls.txt cannot be read as a list of clips"):
        prepare(copy, QST)


def test_frames_one_above_the_other_are_refused(copy):
    for path in (copy / "lapses/sky_train/train0/0").iterdir():
        path.unlink()
        Image.fromarray(np.zeros((9 * 16, 16, 3), np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"is 16 x 144 pixels: frames lie one above the other.*Cut them into"):
        prepare(copy, SKY)


def test_a_picture_that_is_cut_off_is_a_broken_clip(copy):
    prepare(copy, SKY)
    target = copy / "lapses/sky_train/train0/0/train0_frames_00000003.jpg"
    content = target.read_bytes()
    target.unlink()
    target.write_bytes(content[: len(content) // 2])
    [*batches] = clips(copy, max_broken=0.5).evaluation_batches("train")
    assert sum(len(batch["video"]) for batch in batches) in (3, 4)  # not all of it is shown
    with pytest.raises(ValueError, match="broken, more than max_broken"):
        list(clips(copy, stride=1, frames=9).evaluation_batches("train"))


@pytest.mark.parametrize(("form", "changes", "error", "message"), [
    (SKY, {"splits": {"train": {"videos": "sky_train", "rows": 2392}}}, ValueError,
     r"split 'train' has 4 folders of pictures in .*expected 2392: complete the copy"),
    (SKY, {"frames": 10}, ValueError, r"split 'train' has 4 folders .*0 of them with at least 10 frames"),
    (SKY, {"form": "files"}, ValueError, r"split 'train' has 0 clips, 0 of them in .*expected some"),
    (SKY, {"form": "listed"}, ValueError, r"splits.train.listed is None, but form is 'listed': name the list"),
    (QST, {"form": "files"}, ValueError, r"splits.train.listed is 'train_urls.txt', but form is 'files'"),
    (QST, {"splits": {"train": {"videos": "clips", "listed": "none.txt"}}}, DataUnavailable, "none.txt could not be"),
    (QST, {"splits": {"train": {"videos": "clips", "listed": "train_urls.txt", "rows": 9}}}, ValueError,
     r"split 'train' has 4 clips, 4 of them in .*expected 9"),
    (FILES, {"form": "folder"}, ValueError, "form"),
    (FILES, {"splits": {"train": {"videos": "elsewhere"}}}, DataUnavailable, "lapses: elsewhere could not be had"),
])  # fmt: skip
def test_what_cannot_be_prepared_is_refused(copy, form, changes, error, message):
    with pytest.raises(error, match=message):
        prepare(copy, form, **changes)
    assert not (copy / "index").exists()
