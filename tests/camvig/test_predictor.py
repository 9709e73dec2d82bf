"""A user's picture along named moves and along pose files."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules.camvig.module import CamViG
from lightning_modules.camvig.paths import AXES
from lightning_modules.camvig.predictor import Animator
from lightning_modules.datasets.video.posed import _drawn
from lightning_modules.settings import bind
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


def test_a_path_that_goes_too_far_is_said_to_be_cut(animator, picture, tmp_path):
    (tmp_path / "walk.txt").write_text("around\n" + "".join(turned(number * 0.2, number) for number in range(9)))
    animator.begin([picture, tmp_path / "walk.txt"])
    (answer,) = animator.answer(picture)
    assert answer["cut"] == "rotation goes up to 1.60, but paths of this model reach to 0.4"
    animator.begin([picture])
    assert not any("cut" in answer for answer in animator.answer(picture))


def turned(angle, number):
    """The line of a pose file of a camera that has turned about its vertical axis."""
    sine, cosine = np.sin(angle), np.cos(angle)
    return f"{number} 0.5 0.9 0.5 0.5 0 0 {cosine} 0 {-sine} 0 0 1 0 0 {sine} 0 {cosine} 0\n"


def test_wrong_files_are_refused(animator, picture, tmp_path):
    with pytest.raises(ValueError, match="there are 1 pose files and no picture"):
        animator.begin([tmp_path / "walk.txt"])
    with pytest.raises(ValueError, match=r"two pose files are called 'walk'.*rename one"):
        animator.begin([picture, tmp_path / "walk.txt", tmp_path / "other/walk.TXT"])
    (tmp_path / "short.txt").write_text(_drawn("short", 3))
    animator.begin([picture, tmp_path / "short.txt"])
    with pytest.raises(ValueError, match=r"short.txt has 3 poses, expected at least 5"):
        list(animator.answer(picture))
    animator.begin([picture])
    with pytest.raises(ValueError, match="nothing"):
        list(animator.answer(tmp_path / "nothing.png"))
    with pytest.raises(ValueError, match="Animator chooses from nothing"):
        animator.begin([picture], among=tmp_path)


LINE = "0 0.5 0.9 0.5 0.5 0 0 1 0 0 0 0 1 0 0 0 0 1 0"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no pose file of RealEstate10K: expected an address, and then lines of 19 numbers each"),
        (b"address\n", "is no pose file of RealEstate10K"),
        (f"address\n{LINE} 7\n".encode(), "is no pose file of RealEstate10K"),
        (f"address\n{LINE.replace('0.9', 'wide')}\n".encode(), "cannot be read as a pose file of RealEstate10K"),
        (f"address\n{LINE.replace('0.9', 'nan')}\n".encode(), "is no pose file of RealEstate10K"),
        (f"address\n{LINE}\n{LINE.removesuffix(' 0')}\n".encode(), "cannot be read as a pose file"),
        (("address\n" + 5 * f"{LINE.replace('0 1 0 0 0 0 1 0', '0 3 0 0 0 0 1 0')}\n").encode(), "are no rotation"),
        (("address\n" + 5 * f"{LINE.replace('0 0 1 0', '0 0 -1 0')}\n").encode(), "are no rotation"),
        (b"\xff\xfe\x00", "cannot be read as a pose file of RealEstate10K"),
    ],
)
def test_a_file_that_is_no_pose_file_is_named(animator, picture, tmp_path, content, message):
    (tmp_path / "walk.txt").write_bytes(content)
    animator.begin([picture, tmp_path / "walk.txt"])
    with pytest.raises(ValueError, match=message) as found:
        list(animator.answer(picture))
    assert "walk.txt" in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_picture_is_named(animator, tmp_path, content):
    (tmp_path / "mine.png").write_bytes(content)
    animator.begin([tmp_path / "mine.png"])
    with pytest.raises(ValueError, match=r"mine.png cannot be read as a picture") as found:
        list(animator.answer(tmp_path / "mine.png"))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"path_tokens": {"encoding": "spline"}}, "encoding"),
        ({"path_tokens": {"codes": 63}}, "codes is 63, expected an even number of bins"),
        ({"path_tokens": {"codes": 0}}, "codes"),
        ({"path_tokens": {"translation": -1.0}}, "translation"),
        ({"path_tokens": {"unit": 0.0}}, "unit"),
        ({"path_tokens": {"reach": 1.0}}, "reach"),
        ({"decoding": {"temperature": -1.0}}, "temperature"),
        ({"decoding": {"top_k": 1.5}}, "top_k"),
        ({"tokenizer": {"widht": 4}}, "model.tokenizer: unknown key 'widht'; did you mean 'width'"),
        ({"network": {"layer": 3}}, "model.network: unknown key 'layer'; did you mean 'layers'"),
        ({"network": {"layers": 0}}, "model.network.layers is 0"),
        ({"path_drop": 1.5}, "path_drop"),
        ({"judged_rows": 0}, "judged_rows"),
        ({"pixel_scale": 0}, "pixel_scale"),
        ({"first_frame": True}, "first_frame"),
    ],
)
def test_a_wrong_setting_is_answered_in_one_line(changed, message):
    good = config()
    settings = {key: {**good[key], **value} if isinstance(value, dict) else value for key, value in changed.items()}
    block = {"_target_": "lightning_modules.camvig.module.CamViG", **good, **settings}
    with pytest.raises(ValueError, match=message) as found:
        bind(block, "conf/system/camvig/tiny.yaml: model")()
    assert len(str(found.value).splitlines()) == 1
