"""Cameras of the captioned world: what the pinhole camera asks for is what the pixels show."""

import numpy as np
import pytest

from lightning_modules.datasets.world.camera import (
    BEFORE,
    BEHIND,
    CHUNK,
    FAR,
    MOVES,
    NEAR,
    OWN,
    SPEEDS,
    CameraClips,
    Poses,
    move_poses,
)
from lightning_modules.datasets.world.scenes import Stream

SIZE = 32
VIEW = CameraClips(image_size=SIZE, frames=5, moving=4)


@pytest.fixture(scope="module")
def clips():
    return VIEW.columns(Stream(3, "camera/train", 0))


def fast(move, frames=5):
    return move_poses(np.array([MOVES.index(move)]), SPEEDS[-1:], frames)


def centre(picture, colour):
    """The mean place of pixels in which a channel stands out, in sides of the frame."""
    row, column = np.nonzero(picture[..., colour] > 150)
    return (np.array([column.mean(), row.mean()]) + 0.5) / len(picture)


def drawn(poses, depth):
    """A disc in the middle of the frame, at a depth, seen by cameras: how far it covers each pixel."""
    middle = np.full((1, poses.x.shape[1]), 1 << 15)
    return CameraClips(image_size=64, frames=5, moving=0).cover(poses, depth, middle, middle, np.array([0]))[0]


def place(cover):
    total = cover.sum()
    at = (np.arange(len(cover)) + 0.5) / len(cover) - 0.5
    return np.array([(cover.sum(0) * at).sum() / total, (cover.sum(1) * at).sum() / total])


def test_poses_are_rotations_that_begin_with_the_identity(clips):
    turn = clips["poses"][..., :3].astype(np.float64)
    assert np.abs(turn @ turn.swapaxes(-1, -2) - np.eye(3)).max() < 1e-4
    assert np.linalg.det(turn) == pytest.approx(np.ones(turn.shape[:2]), abs=1e-4)
    assert (clips["poses"][:, 0] == np.eye(3, 4)).all()
    assert (clips["poses"][clips["label"] == 0] == np.eye(3, 4)).all()


def test_a_truck_shifts_by_the_focal_length_over_the_depth_and_a_pan_alike_at_all_depths():
    poses = fast("truck right")
    for depth in (FAR, NEAR):
        assert place(drawn(poses, depth)[-1])[0] == pytest.approx(-poses.x[0, -1] / depth, abs=2e-3)
    pans = [place(drawn(fast("pan right"), depth)[-1])[0] for depth in (FAR, NEAR)]
    assert pans == pytest.approx([pans[0]] * 2, abs=2e-3) and pans[0] < -0.15
    assert place(drawn(fast("pedestal up"), NEAR)[-1])[1] == pytest.approx(0.25, abs=2e-3)


def test_a_dolly_scales_by_the_depth_over_what_is_left_of_it():
    poses = fast("dolly in")
    for depth in (FAR, NEAR):
        cover = drawn(poses, depth)
        scale = np.sqrt(cover[-1].sum() / cover[0].sum())
        assert scale == pytest.approx(depth / (depth - poses.z[0, -1]), rel=0.02)


def test_an_orbit_keeps_its_middle_in_the_middle():
    poses = fast("orbit left").matrices()[0].astype(np.float64)
    seen = poses[:, :, :3] @ np.array([0, 0, 3.0]) + poses[:, :, 3]
    assert np.abs(seen[:, :2]).max() < 0.01 and seen[:, 2] == pytest.approx(np.full(5, 3.0), abs=0.01)


def test_a_path_and_its_inverse_lead_back_to_the_first_frame():
    there = fast("orbit right", 3)
    back = Poses(*(np.concatenate([values, values[:, -2::-1]], 1) for values in there))
    middle = np.full((1, 5), 1 << 15)
    cover = VIEW.cover(back, NEAR, middle, middle, np.array([1]))[0]
    assert (cover[0] == cover[-1]).all() and (cover[0] != cover[2]).any()


def test_a_camera_that_rests_sees_the_same_picture_again_and_again(clips):
    still = (clips["label"] == 0) & (clips["moving"] == 0)
    assert still.any() and (clips["video"][still] == clips["video"][still][:, :1]).all()


def test_things_are_where_the_layers_say_and_move_by_themselves_only_in_moving_clips(clips):
    moving = clips["moving"] == 1
    assert moving.sum() == CHUNK // 2 and (clips["label"][moving] == 0).all()
    assert (clips["layers"][moving] != BEFORE).all() and (clips["layers"][~moving] != OWN).all()
    for row in range(20):
        video, layers = clips["video"][row], clips["layers"][row]
        kind, colour = (OWN, 2) if moving[row] else (BEFORE, 0)
        at = (np.argwhere(layers == kind).mean(0)[::-1] + 0.5) / SIZE
        if not moving[row]:
            own = (layers == kind) & (video[0, ..., 1] < 100)
            assert own.sum() > 0.8 * (layers == kind).sum()
        else:
            assert centre(video[0], colour) == pytest.approx(at, abs=0.02)
            way = centre(video[-1], colour) - centre(video[0], colour)
            assert way[0] == pytest.approx(0, abs=0.02)
            assert way[1] == pytest.approx(0.25 if at[1] < 0.49 else -0.25, abs=0.02)
        assert (layers == BEHIND).any()


def test_labels_are_as_frequent_as_one_another_and_independent_of_the_frame(clips):
    counts = np.bincount(clips["label"][clips["moving"] == 0], minlength=len(MOVES))
    assert counts.min() > 4 and counts.max() < 25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 1}, r"frames \(1\) must be at least 2"),
        ({"moving": 9}, r"moving \(9\) must be between 0 and 8"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CameraClips(**{"image_size": 16, "frames": 5, "moving": 4} | options)
