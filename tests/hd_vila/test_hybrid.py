"""Which frames HD-VILA shows and how it cuts them; the numbers are those that its official code gave."""

import numpy as np
import pytest

from lightning_modules.datasets.video.files import BrokenVideo
from lightning_modules.datasets.video.showing import frames_at, scaled
from lightning_modules.hd_vila.hybrid import GREY, Hybrid


def hybrid(frames=7, stride=4, source=(720, 1152), size=(640, 1024), middles="original", **changes) -> Hybrid:
    return Hybrid(frames, stride, source, size, middles, **changes)


@pytest.mark.parametrize(("total", "clips", "frames", "stride", "middles", "first"), [
    (100, 4, 7, 4, [12, 31, 50, 69], [0, 4, 8, 12, 16, 20, 24]),
    (30, 4, 7, 4, [12, 13, 14, 15], [0, 4, 8, 12, 16, 20, 24]),
    (28, 4, 7, 4, [12, 13, 14, 15], [0, 4, 8, 12, 16, 20, 24]),
    (27, 4, 7, 4, [9, 11, 13, 15], [0, 3, 6, 9, 12, 15, 18]),
    (9, 2, 7, 4, [3, 4], [0, 1, 2, 3, 4, 5, 6]),
    (4, 4, 7, 4, [0, 1, 2, 3], [0, 0, 0, 0, 0, 0, 0]),
    (103, 8, 11, 3, [15, 24, 33, 42, 51, 60, 69, 78], [0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30]),
    (51, 8, 5, 2, [4, 9, 14, 19, 24, 29, 34, 39], [0, 2, 4, 6, 8]),
])  # fmt: skip
def test_evaluation_shows_the_frames_of_the_official_code(total, clips, frames, stride, middles, first):
    """`get_sample_idx` of dataset_video_qa.py."""
    shown = hybrid(frames, stride).clip_frames(total, clips)
    assert shown[:, frames // 2].tolist() == middles and shown[0].tolist() == first
    assert shown.shape == (clips, frames) and shown.min() >= 0 and shown.max() < total


def test_training_draws_different_middles_that_all_have_their_neighbours():
    seen = set()
    for word in range(300):
        shown = hybrid().clip_frames(30, 3, word)
        middles = shown[:, 3].tolist()
        assert middles == sorted(set(middles)) and shown.min() >= 0 and shown.max() < 30
        seen |= set(middles)
    assert seen == {*range(12, 18)}


def test_fewer_frames_than_clips_are_too_few():
    with pytest.raises(BrokenVideo, match="3 frames are too few for 4 clips"):
        hybrid().clip_frames(3, 4)
    assert hybrid(1).clip_frames(1, 1).tolist() == [[0]]


def test_the_centre_is_where_the_official_code_cuts_and_other_corners_are_multiples_of_four():
    """(180 - 160) // 2 and (288 - 256) // 2 of the low resolution, four times that of the high one."""
    assert hybrid().corner() == (40, 64)
    corners = {hybrid().corner(int(word)) for word in np.random.default_rng(0).integers(0, 2**63, 3000)}
    tops, lefts = zip(*corners, strict=True)
    assert set(tops) == {*range(0, 84, 4)} and set(lefts) == {*range(0, 132, 4)}


def test_neighbours_have_a_quarter_of_the_middle_in_both_ways():
    picture = np.random.default_rng(0).integers(0, 256, (72, 116, 3)).astype(np.uint8)
    small = hybrid(3, 1, (72, 116), (64, 100))
    shown = np.stack([small.show(picture, (4, 8), mirrored=False)] * 3)[None]
    assert (shown[0, 0] == picture[4:68, 8:108]).all()
    middles, others = small.split(shown)
    assert middles.shape == (1, 64, 100, 3) and others.shape == (1, 2, 16, 25, 3)
    assert (others[0, 0] == scaled(picture[4:68, 8:108], 16, 25, "bicubic")).all() and (middles[0] == shown[0, 1]).all()
    mirrored = small.show(picture, (4, 8), mirrored=True)
    assert (mirrored[:, ::-1] == shown[0, 0]).all()

    again = hybrid(3, 1, (72, 116), (64, 100), "upsampled")
    shown = np.stack([again.show(picture, (4, 8), mirrored=False)] * 3)[None]
    nearest = picture[::4, ::4]
    assert (shown[0, 0] == nearest[1:17, 2:27]).all()
    middles, others = again.split(shown)
    assert others.shape == (1, 2, 16, 25, 3) and (others == shown[:, [0, 2]]).all()
    assert (middles[0] == scaled(shown[0, 1], 64, 100, "bicubic")).all()
    assert hybrid(1).split(np.zeros((2, 1, 640, 1024, 3), np.uint8))[1].shape == (2, 0, 160, 256, 3)


def test_a_padded_frame_keeps_its_aspect_at_the_upper_left():
    picture = np.full((20, 40, 3), 200, np.uint8)
    shown = hybrid(1, 1, (32, 32), (32, 32), padded=True).show(picture, (0, 0), mirrored=False)
    assert (shown[:16] == 200).all() and (shown[16:] == GREY).all()
    tall = hybrid(1, 1, (32, 32), (32, 32), "upsampled", padded=True).show(
        picture.transpose(1, 0, 2), (0, 0), mirrored=False
    )
    assert tall.shape == (8, 8, 3) and (tall[:, :4] == 200).all() and (tall[:, 4:] == GREY).all()


@pytest.mark.parametrize(("changes", "told"), [
    ({"frames": 6}, r"frames \(6\) must be odd"),
    ({"size": (641, 1024)}, r"size \(\[641, 1024\]\) must be multiples of 4"),
    ({"size": (724, 1024)}, r"size \(\[724, 1024\]\) must fit into source_size \(\[720, 1152\]\): it is cut from it"),
    ({"padded": True}, r"padded is true, so source_size"),
])  # fmt: skip
def test_sizes_that_do_not_fit_are_told(changes, told):
    with pytest.raises(ValueError, match=told):
        hybrid(**changes)


def test_cubic_pictures_are_those_of_opencv():
    """What cv2.resize gave of this picture with INTER_CUBIC for fx = fy = 0.25 and 4."""
    picture = (np.arange(8 * 8 * 3, dtype=np.int64).reshape(8, 8, 3) * 37 % 256).astype(np.uint8)
    assert scaled(picture, 2, 2, "bicubic").tolist() == [
        [[152, 128, 103], [72, 124, 158]],
        [[122, 157, 147], [209, 77, 128]],
    ]
    assert scaled(picture, 32, 32, "bicubic")[13, 5:8].tolist() == [[210, 248, 47], [203, 243, 39], [167, 207, 54]]


def test_frames_at_a_rate_are_the_last_ones_before_the_middle_of_their_time():
    seconds = np.arange(12) / 10
    assert frames_at(seconds, None)[0].tolist() == [*range(12)] and frames_at(seconds, 10.0)[0].tolist() == [*range(12)]
    numbers, lasts = frames_at(seconds, 5.0)
    assert numbers.tolist() == [0, 2, 4, 6, 8, 10] and lasts == pytest.approx(1.2)
    assert frames_at(seconds, 20.0)[0].tolist() == [n // 2 for n in range(24)]
    assert frames_at(np.zeros(1), 3.0)[0].tolist() == [0] and frames_at(np.zeros(1), None)[1] == pytest.approx(0.04)
