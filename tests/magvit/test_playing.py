"""Clips on the page: animated PNGs that play all frames, and the stills of them."""

from base64 import b64decode
from io import BytesIO

import numpy as np
from PIL import Image

from lightning_modules.video_tokens.playing import LARGEST, LASTS, MOST, playing
from stages.page.moving import still


def frames(number, side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, side, side, 3), np.uint8)


def opened(png):
    return Image.open(BytesIO(b64decode(png)))


def decoded(picture):
    """Every frame of a file, and how long each is shown."""
    found, times = [], []
    for number in range(getattr(picture, "n_frames", 1)):
        picture.seek(number)
        found.append(np.asarray(picture.convert("RGB")))
        times.append(picture.info.get("duration"))
    return np.array(found), times


def test_a_clip_plays_all_its_frames_without_end():
    clip = frames(4, 16)
    exhibit = playing("generated", clip)
    with opened(exhibit.picture.png) as picture:
        assert picture.info["loop"] == 0  # for ever
        found, times = decoded(picture)
    assert np.array_equal(found, clip) and times == [LASTS / 4] * 4
    assert exhibit.label == "generated" and exhibit.picture.alt == "generated: a clip of 4 frames, played in a loop"


def test_a_large_or_long_clip_is_made_smaller():
    with opened(playing("real", frames(40, 128)).picture.png) as picture:
        found, _ = decoded(picture)
    assert found.shape == (MOST, LARGEST, LARGEST, 3)
    assert np.array_equal(found[0], frames(40, 128)[0, ::2, ::2]) and np.array_equal(
        found[-1], frames(40, 128)[-1, ::2, ::2]
    )


def test_who_wants_no_motion_sees_the_first_frame():
    clip = frames(3, 16)
    png = still(playing("real", clip).picture.png)
    with opened(png) as picture:
        found, _ = decoded(picture)
    assert np.array_equal(found, clip[:1]) and still(png) is None


def test_a_clip_in_which_nothing_moves_is_a_picture():
    exhibit = playing("given", np.repeat(frames(1, 16), 4, 0))
    with opened(exhibit.picture.png) as picture:
        assert np.array_equal(decoded(picture)[0], frames(1, 16))
    assert still(exhibit.picture.png) is None and exhibit.picture.alt == "given: a clip of 4 frames, all alike"


def test_part_of_a_frame_may_stay_as_it_was():
    clip = np.repeat(frames(1, 16), 4, 0)
    clip[2, 3:5, 6:9] = 7
    with opened(playing("real", clip).picture.png) as picture:
        found, times = decoded(picture)
    assert (
        sum(times) == LASTS
        and np.array_equal(found[[0, -1]], clip[[0, -1]])
        and (found == clip[2]).all((1, 2, 3)).any()
    )
