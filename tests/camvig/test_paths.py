"""Paths: relative to the first frame, six numbers a frame, and tokens."""

from pathlib import Path

import numpy as np
import pytest

from lightning_modules.camvig import paths
from lightning_modules.camvig.paths import Bins, Residual, named_move, path_of, poses_of, relative, scaled
from lightning_modules.datasets.world.camera import MOVES, SPEEDS, move_poses

REACH = {"translation": 1.0, "rotation": 0.4}


def draw(*shape, seed=0, size=0.3):
    return np.random.default_rng(seed).uniform(-size, size, shape)


def test_a_path_and_its_poses_are_the_same():
    path = draw(7, 4, 6)
    poses = poses_of(path)
    assert poses.shape == (7, 5, 3, 4) and (poses[:, 0] == np.eye(3, 4)).all()
    assert path_of(poses) == pytest.approx(path)


def test_a_path_does_not_depend_on_where_the_world_begins():
    path = draw(4, 6)
    world = poses_of(draw(1, 6, seed=1, size=2))[1]
    moved = poses_of(path)
    moved = np.concatenate([moved[..., :3] @ world[:, :3], moved[..., :3] @ world[:, 3:] + moved[..., 3:]], -1)
    assert path_of(moved) == pytest.approx(path)
    assert relative(moved)[0] == pytest.approx(np.eye(3, 4))


def test_names_mean_what_a_filmmaker_means():
    options = {"frames": 3, "translation": 1.0, "rotation": 0.2, "pivot": 3.0}
    assert named_move("truck right", **options)[:, 0].tolist() == [0.5, 1.0]
    assert named_move("pedestal up", **options)[-1].tolist() == [0, -1, 0, 0, 0, 0]  # y goes down
    pan = poses_of(named_move("pan right", **options))[-1]
    assert (pan @ [0, 0, 1, 1])[0] < 0  # what was ahead is seen further left
    tilt = poses_of(named_move("tilt up", **options))[-1]
    assert (tilt @ [0, 0, 1, 1])[1] > 0
    assert (poses_of(named_move("orbit left", **options)) @ [0, 0, 3, 1])[:, :2] == pytest.approx(0)
    with pytest.raises(ValueError, match="there is no move 'pan rigth'; did you mean 'pan right'"):
        named_move("pan rigth", **options)
    with pytest.raises(ValueError, match="more than a quarter of a circle"):
        named_move("orbit left", **options | {"pivot": 0.5})


@pytest.mark.parametrize("move", MOVES)
def test_the_moves_of_the_captioned_world_are_these(move):
    poses = move_poses(np.array([MOVES.index(move)]), SPEEDS[-1:], 5).matrices()[0]
    angle = 31 / 1024 * 2 * np.pi if "orbit" not in move else None
    far = {"dolly in": 0.5, "dolly out": 0.7, "orbit left": 3 * np.sin(27 / 1024 * 2 * np.pi)}
    far["orbit right"] = far["orbit left"]
    asked = named_move(move, 5, translation=far.get(move, 0.5), rotation=angle or 0.0, pivot=3.0)
    assert path_of(poses) == pytest.approx(asked, abs=0.02)


def test_translations_have_a_unit_or_the_longest_of_the_path():
    path = draw(2, 4, 6)
    assert scaled(path, 2.0)[..., :3] == pytest.approx(path[..., :3] / 2)
    longest = np.linalg.norm(scaled(path, None)[..., :3], axis=-1).max(-1)
    assert longest == pytest.approx([1, 1])
    assert (scaled(np.zeros((4, 6)), None) == 0).all()


def test_bins_keep_a_path_to_half_a_bin_and_no_move_is_exactly_none():
    bins, path = Bins(64, **REACH), draw(50, 4, 6)
    tokens = bins.encode(path)
    assert tokens.shape == (50, 4, 6) and tokens.min() >= 0 and tokens.max() <= 63
    widths = np.array([1.0] * 3 + [0.4] * 3) / 32
    assert (np.abs(bins.decode(tokens) - path) <= widths / 2 + 1e-9).all()
    assert (bins.encode(np.zeros((4, 6))) == 32).all() and (bins.decode(np.full((4, 6), 32)) == 0).all()
    assert (bins.encode(np.full((1, 6), 9.0)) == 63).all() and (bins.encode(np.full((1, 6), -9.0)) == 0).all()
    with pytest.raises(ValueError, match="codes is 63, expected an even number"):
        Bins(63, **REACH)


def test_residual_vectors_take_as_many_tokens_and_each_level_comes_nearer():
    residual = Residual(64, **REACH, frames=5)
    path = np.stack([named_move(name, 5, translation=0.6, rotation=0.2, pivot=3.0) for name in paths.MOVES])
    tokens = residual.encode(path)
    assert tokens.shape == (*path.shape[:2], Bins(64, **REACH).levels) and 0 <= tokens.min() <= tokens.max() <= 63
    reach = residual.reach
    parts = [residual.vectors[level][tokens[..., level]] * reach for level in range(6)]
    errors = [np.abs(sum(parts[: n + 1]) - path).mean() for n in range(6)]
    assert errors[-1] < errors[0] / 3 and residual.decode(tokens) == pytest.approx(sum(parts))
    assert (Residual(64, **REACH, frames=5).encode(path) == tokens).all()


def test_clips_of_real_cameras_become_paths():
    files = Path(__file__).parents[3] / "shared/realdata/realestate10k-poses"
    from lightning_modules.datasets.video.posed import read_poses

    if not files.is_dir():
        pytest.skip("the pose files lie beside the repository")
    found = [read_poses(path) for path in sorted(files.glob("*.txt"))]
    assert [len(clip.times) for clip in found] == [16] * 10
    assert found[0].video == "QShWPZxTDoE" and found[0].times[0] == 158692025
    for clip in found:
        path = path_of(clip.poses)
        assert path.shape == (15, 6) and np.abs(path[:, 3:]).max() < 1.5
        assert poses_of(path) == pytest.approx(relative(clip.poses), abs=1e-5)
