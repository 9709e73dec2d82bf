"""The measurement of cameras, calibrated where the truth is known."""

import os
import subprocess
import sys

import numpy as np
import pytest

from lightning_modules.camvig import measuring
from lightning_modules.camvig.paths import path_of, poses_of
from lightning_modules.datasets.world.camera import MOVES, CameraClips
from lightning_modules.datasets.world.scenes import Stream

DEPTHS = {1: 4.0, 2: 2.0}
ROWS = 48


def clips():
    columns = CameraClips(image_size=16, frames=5, moving=0).columns(Stream(5, "camera/calibration", 0))
    return {name: values[:ROWS] for name, values in columns.items()}


def shifts(drawn, rows=ROWS):
    flows = [measuring.flows(video) for video in drawn["video"][:rows]]
    return np.stack([measuring.shifts(*each, DEPTHS) for each in zip(flows, drawn["layers"], strict=False)])


@pytest.fixture(scope="module")
def drawn():
    return clips()


def test_optical_flow_finds_the_shifts_that_the_pinhole_camera_asks_for(drawn):
    found = shifts(drawn)
    asked = np.stack([measuring.expected(*each, DEPTHS, 1.0)
                      for each in zip(drawn["poses"], drawn["layers"], strict=True)])  # fmt: skip
    both = np.isfinite(found) & np.isfinite(asked)
    assert np.corrcoef(found[both], asked[both])[0, 1] > 0.9
    assert np.median(np.abs(found - asked)[both]) < 0.1
    other = np.roll(asked, 1, 0)  # the control: paths of other clips
    assert abs(np.corrcoef(found[both & np.isfinite(other)], other[both & np.isfinite(other)])[0, 1]) < 0.5


def test_a_truck_shows_parallax_and_a_pan_none(drawn):
    apart = (shifts(drawn)[:, 1] - shifts(drawn)[:, 0])[:, -1, 0]
    kinds = np.array(MOVES)[drawn["label"]]
    trucks = np.char.startswith(kinds, "truck")
    assert np.nanmean(np.abs(apart[trucks])) > 0.8
    assert np.nanmean(np.abs(apart[np.char.startswith(kinds, "pan")])) < 0.4


def test_a_pose_is_found_again_from_where_points_are_seen():
    draw = np.random.default_rng(0)
    at, depth = draw.uniform(10, 54, (60, 2)), draw.choice([2.0, 3.0, 4.0], 60)
    for path in draw.uniform(-0.15, 0.15, (5, 6)):
        to = measuring.seen(at, depth, poses_of(path[None])[1], 64.0, 32.0)
        assert measuring.camera(at, to, depth, 64.0, 32.0) == pytest.approx(path, abs=0.02)
    assert measuring.camera(at, at, depth, 64.0, 32.0) == pytest.approx(np.zeros(6))


def test_the_essential_matrix_tells_turn_and_direction_but_not_how_far():
    draw = np.random.default_rng(1)
    at, depth = draw.uniform(0, 128, (200, 2)), draw.uniform(2, 6, 200)
    path = np.array([0.5, 0.1, 0.2, 0.05, -0.1, 0.02])
    to = measuring.seen(at, depth, poses_of(path[None])[1], 128.0, 64.0)
    found = measuring.from_points(at, to, np.full(2, 128.0), np.full(2, 64.0))
    assert measuring.turn_between(found.rotation, path[3:]) < 0.5
    assert measuring.angle_between(found.direction, path[:3]) < 3
    assert np.linalg.norm(found.direction) == pytest.approx(1)
    assert measuring.turn_between(np.zeros(3), path[3:]) > 5  # the control: a camera that did not turn
    assert measuring.from_points(at[:5], to[:5], np.full(2, 128.0), np.full(2, 64.0)) is None


def test_a_textured_room_gives_an_essential_matrix_and_a_bare_wall_none():
    draw = np.random.default_rng(2)
    texture = np.kron(draw.integers(0, 256, (40, 40), np.uint8), np.ones((6, 6), np.uint8))
    first, later = (np.repeat(texture[20:148, 20 + shift : 148 + shift, None], 3, 2) for shift in (0, 5))
    found = measuring.between(first, later, np.full(2, 128.0), np.full(2, 64.0))
    assert found is None or np.isfinite(found.rotation).all()
    bare = np.full((128, 128, 3), 90, np.uint8)
    assert measuring.between(bare, bare, np.full(2, 128.0), np.full(2, 64.0)) is None


def test_angles():
    assert measuring.angle_between(np.array([1.0, 0, 0]), np.array([0, 2.0, 0])) == pytest.approx(90)
    assert np.isnan(measuring.angle_between(np.zeros(3), np.ones(3)))
    assert measuring.turn_between(np.array([0, 0.1, 0]), np.array([0, -0.1, 0])) == pytest.approx(np.degrees(0.2))


def test_other_instructions_of_the_processor_give_the_same_bytes(drawn):
    code = (
        "import stages\nfrom tests.camvig.test_measuring import clips, shifts\n"
        "import hashlib\nprint(hashlib.sha256(shifts(clips(), 6).tobytes()).hexdigest())"
    )
    seen = set()
    for off in ("", "AVX512_SKX,AVX512F,AVX2,FP16"):
        ran = subprocess.run([sys.executable, "-c", code], env=os.environ | {"OPENCV_CPU_DISABLE": off},
                             capture_output=True, text=True, check=True)  # fmt: skip
        seen.add(ran.stdout.strip())
    assert len(seen) == 1


def test_a_thing_that_is_not_there_has_no_shift(drawn):
    assert np.isnan(measuring.shifts(np.zeros((4, 16, 16, 2)), np.zeros((16, 16), int), DEPTHS)).all()


def test_paths_of_the_world_are_read_from_its_poses(drawn):
    assert path_of(drawn["poses"]).shape == (ROWS, 4, 6)
