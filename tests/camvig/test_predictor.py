"""A user's picture along named moves and along pose files."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules.camvig.module import CamViG
from lightning_modules.camvig.paths import AXES
from lightning_modules.camvig.predictor import Animator
from lightning_modules.datasets.video.posed import _drawn
from tests.camvig.test_module import config


@pytest.fixture(scope="module")
def animator():
    torch.manual_seed(0)
    return Animator(CamViG(**config()))


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "mine.png")
    return tmp_path / "mine.png"


def test_a_picture_moves_along_each_named_move(animator, picture):
    assert animator.begin([picture]) == [picture]
    answers = list(animator.answer(picture))
    assert len(answers) == 10 and len({answer["row"] for answer in answers}) == 10
    truck = next(answer for answer in answers if answer["move"] == "truck right")
    assert truck["film"].frames.shape == (5, 16, 16, 3) and truck["frames"].size == (80, 16)
    assert truck["path"][:, 0].tolist() == [0.125, 0.25, 0.375, 0.5]


def test_pose_files_take_the_place_of_named_moves(animator, picture, tmp_path):
    (tmp_path / "walk.txt").write_text(_drawn("walk", 9))
    assert animator.begin([picture, tmp_path / "walk.txt"]) == [picture]
    (answer,) = animator.answer(picture)
    path = answer["path"]
    assert answer["move"] == "walk" and path.shape == (4, len(AXES))
    assert np.linalg.norm(path[:, :3], axis=1).max() == pytest.approx(0.5)
    assert (np.diff(path[:, 4]) > 0).all()  # it pans to the right
    animator.begin([picture])


def test_wrong_files_are_refused(animator, picture, tmp_path):
    with pytest.raises(ValueError, match="there are 1 pose files and no picture"):
        animator.begin([tmp_path / "walk.txt"])
    (tmp_path / "short.txt").write_text(_drawn("short", 3))
    animator.begin([picture, tmp_path / "short.txt"])
    with pytest.raises(ValueError, match=r"short.txt has 3 poses, expected at least 5"):
        list(animator.answer(picture))
    animator.begin([picture])
    with pytest.raises(ValueError, match="nothing"):
        list(animator.answer(tmp_path / "nothing.png"))
    with pytest.raises(ValueError, match="Animator chooses from nothing"):
        animator.begin([picture], among=tmp_path)
