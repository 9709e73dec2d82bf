"""Test sequences of video coding: files in MCL-JCV's form, as they lie in a copy, and what is wrong with others."""

import json

import numpy as np
import pytest

from lightning_modules.datasets.download import DataUnavailable
from lightning_modules.datasets.video.corpora import read_index
from lightning_modules.datasets.video.drawn import encode, numbers
from lightning_modules.datasets.video.files import BrokenVideo
from lightning_modules.datasets.video.raw_sequences import prepare, read_sequence, rgb, shrunk

WHITE, RED = (255, 255, 255), (255, 0, 0)


def planes(colour, height=4, width=6):
    """A frame of one colour as `yuv420p`, by the rule of BT.709."""
    red, green, blue = (value / 255 for value in colour)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    stored = [16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748]
    y, u, v = (np.uint8(round(value)) for value in stored)
    rows = height // 4
    parts = [np.full((height, width), y), np.full((rows, width), u), np.full((rows, width), v)]
    return np.concatenate(parts).astype(np.uint8)


def written(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"".join(planes(colour).tobytes() for colour in (WHITE, RED, WHITE)))
    return folder


def prepared(tmp_path, sequences=2, **changed):
    settings = {"name": "mcl_jcv", "videos": "videos", "prefix": "videoSRC", "sequences": sequences, "height": 4,
                "width": 6, "cache": str(tmp_path / "copy")} | changed  # fmt: skip
    prepare(tmp_path / "prepared", **settings)
    return read_index(tmp_path / "prepared", "test")


def test_names_of_raw_files_say_their_size_and_rate(tmp_path):
    folder = written(tmp_path / "copy/videos", ["videoSRC02_6x4_24.yuv", "videoSRC01_6x4_30.yuv", "videoSRC01_01.mp4"])
    (folder / "readme.txt").write_text("about")
    found = prepared(tmp_path)
    assert found["file"].tolist() == ["videoSRC01_6x4_30.yuv", "videoSRC02_6x4_24.yuv"]
    assert found["frames"].tolist() == [3, 3] and found["rate"].tolist() == [30.0, 24.0]
    assert found["height"].tolist() == [4, 4] and found["width"].tolist() == [6, 6]
    card = json.loads((tmp_path / "prepared/card.json").read_text())
    assert card["splits"]["test"]["rows"] == 2 and card["classes"] == {}


def test_frames_have_the_colours_that_were_stored(tmp_path):
    folder = written(tmp_path, ["videoSRC01_6x4_30.yuv"])
    frames = list(read_sequence(folder / "videoSRC01_6x4_30.yuv", 4, 6))
    assert len(frames) == 3 and frames[0].shape == (4, 6, 3)
    for frame, colour in zip(frames, (WHITE, RED, WHITE), strict=True):
        assert np.abs(frame.astype(int) - colour).max() <= 2


def test_each_colour_counts_for_the_pixels_around_it():
    frame = planes(WHITE)
    frame[4:, :] = 128
    frame[5, 0] = 240  # red, of the upper left 2 x 2 pixels
    found = rgb(frame)
    changed = (found != 255).any(-1)
    assert changed[:2, :2].all() and changed.sum() == 4


def test_encoded_copies_are_read_too(tmp_path):
    clip = encode(tmp_path / "copy/videos/videoSRC01.mkv", 6, size=(48, 32))
    found = prepared(tmp_path, sequences=1, height=32, width=48)
    assert found["frames"].tolist() == [6] and found["rate"].tolist() == [10.0]
    frames = np.stack(list(read_sequence(clip, 32, 48)))
    assert frames.shape == (6, 32, 48, 3) and (np.diff(numbers(frames)) == 1).all()


def test_pixels_are_means_of_larger_ones():
    picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    assert shrunk(picture, 1) is picture
    assert np.array_equal(shrunk(picture, 2)[0, 0], np.floor(picture[:2, :2].mean((0, 1)) + 0.5))
    with pytest.raises(ValueError, match="shrink is 4, but frames have 6 x 4 pixels: expected a divisor of both"):
        shrunk(picture, 4)


def test_what_is_wrong_with_a_copy_is_said(tmp_path):
    with pytest.raises(DataUnavailable, match="videos could not be had"):
        prepared(tmp_path)
    folder = written(tmp_path / "copy/videos", ["videoSRC01_6x4_30.yuv"])
    with pytest.raises(ValueError, match=r"has 1 sequences videoSRC<number> .* expected 2: complete the copy"):
        prepared(tmp_path)
    with pytest.raises(ValueError, match="has 6 x 4 pixels, expected 6 x 8: take the source sequences"):
        prepared(tmp_path, sequences=1, height=8)
    encode(folder / "videoSRC01.mp4", 2)
    with pytest.raises(ValueError, match=r"has videoSRC01 as videoSRC01\.mp4 and videoSRC01_6x4_30\.yuv: keep one"):
        prepared(tmp_path, sequences=1)
    (folder / "videoSRC01.mp4").unlink()
    (folder / "videoSRC02_6x4_30.yuv").write_bytes(bytes(50))
    with pytest.raises(ValueError, match="has 50 bytes, which are no whole number of frames of 6 x 4 pixels"):
        prepared(tmp_path)
    with pytest.raises(BrokenVideo, match="ends within a frame of 6 x 4 pixels"):
        list(read_sequence(folder / "videoSRC02_6x4_30.yuv", 4, 6))
    with pytest.raises(BrokenVideo, match="cannot be read"):
        list(read_sequence(folder / "videoSRC03_6x4_30.yuv", 4, 6))
    (folder / "videoSRC02_6x4_30.yuv").rename(folder / "videoSRC02_5x4_30.yuv")
    with pytest.raises(ValueError, match="said to be 5 x 4 pixels, expected even numbers"):
        prepared(tmp_path)
