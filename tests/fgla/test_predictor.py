"""A user's picture that moves, on its own or as a clip does."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules.datasets.video.drawn import encode
from lightning_modules.fgla.predictor import Landscapes, estimated, middle
from lightning_modules.fgla.warping import accumulate, warp
from tests.fgla.test_module import make

DRIFT = 2


@pytest.fixture
def module():
    found = make().eval()
    with torch.no_grad():
        torch.nn.init.normal_(found.generator.head.weight, std=0.5)
        found.known[0] = True
        found.known_motion[0].normal_(generator=torch.Generator().manual_seed(0))
    return found


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).resize((60, 40)).save(tmp_path / "mine.png")
    return tmp_path / "mine.png"


def test_a_picture_moves_in_its_own_resolution(module, picture):
    landscapes = Landscapes(module)
    assert landscapes.begin([picture]) == [picture]
    (answer,) = landscapes.answer(picture)
    assert (answer["row"], answer["motion"]) == ("recalled", "recalled")
    assert answer["film"].frames.shape == (5, 40, 60, 3) and answer["flow"].shape == (4, 2, 16, 16)
    assert answer["frames"].size == (80, 16) and answer["colours"].size == (64, 16)
    np.testing.assert_array_equal(answer["film"].frames[0], np.asarray(Image.open(picture)))


def test_a_film_at_the_models_size_is_the_models_clip(module, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "small.png")
    (answer,) = Landscapes(module).answer(tmp_path / "small.png")
    frames = np.asarray(answer["frames"]).reshape(16, 5, 16, 3).transpose(1, 0, 2, 3)
    assert np.abs(answer["film"].frames.astype(int) - frames).max() <= 1


def test_an_enlarged_flow_moves_as_far_in_shares_of_the_picture(module):
    picture = torch.rand(1, 3, 32, 64)
    small = Landscapes(module).squeezed(picture)
    flows = torch.zeros(1, 4, 2, 16, 16)
    flows[:, :, 0] = 1.0
    low = torch.cat([small[:, :, None], *(warp(small, total)[:, :, None] for total in accumulate(flows).unbind(1))], 2)
    film = Landscapes(module).enlarged(picture, small, flows, low)
    torch.testing.assert_close(film[:, :, 2, :, :-8], picture[..., 8:])  # 2 of 16 pixels are 8 of 64


def test_clips_take_the_place_of_what_is_recalled(module, picture, tmp_path):
    clips = [encode(tmp_path / f"{name}.mp4", 12) for name in ("sea", "sky")]
    landscapes = Landscapes(module, {"data": {"stride": 2}})
    assert landscapes.begin([clips[0], picture, clips[1]]) == [picture]
    assert [answer["motion"] for answer in landscapes.answer(picture)] == ["sea", "sky"]
    codes = landscapes.codes_of(clips[0])
    (answer,) = Landscapes(module).answer(picture)
    assert answer["motion"] == "recalled"  # a clip belongs to one predictor
    landscapes.begin([picture, encode(tmp_path / "short.mp4", 3)])
    assert [len(answer["film"].frames) for answer in landscapes.answer(picture)] == [3]
    assert codes.motion.shape == (1, 4, module.encoder.code_dim, 4, 4) and codes.light is None


def test_a_variational_model_draws_motions(picture):
    found = make(encoder={"variational": True}).eval()
    found.known[0] = True
    answers = list(Landscapes(found).answer(picture, top=2))
    assert [answer["row"] for answer in answers] == ["recalled", "by-chance-0", "by-chance-1"]


def test_clips_of_a_folder_are_clips(module, picture, tmp_path):
    (tmp_path / "clips").mkdir()
    for name in ("sea", "sky"):
        encode(tmp_path / f"clips/{name}.mp4", 6)
    landscapes = Landscapes(module)
    assert landscapes.begin([picture, tmp_path / "clips"]) == [picture]
    assert [answer["row"] for answer in landscapes.answer(picture)] == ["sea", "sky"]


def test_the_light_stays_where_motion_is_drawn():
    found = make(encoder={"variational": True}, appearance={"width": 4, "code_dim": 2}).eval()
    found.known[0] = True
    small = torch.rand(1, 3, 16, 16)
    told = dict(Landscapes(found).motions(small, 1))
    assert told["recalled"].light is not None and told["by chance 0"].light is None


def test_opencvs_flow_leads_back_to_the_frame_before():
    grain = np.random.default_rng(0).normal(size=(48, 48, 3))
    for axis in (0, 1):
        grain = sum(np.roll(grain, n, axis) for n in range(-3, 4))
    frame = np.clip(128 + 12 * grain, 0, 255).astype(np.uint8)
    found = estimated(np.stack([frame, np.roll(frame, DRIFT, 1)]))
    assert found.shape == (1, 1, 2, 48, 48)
    inner = found[0, 0, :, 12:-12, 12:-12].mean((1, 2))
    assert inner.tolist() == pytest.approx([-DRIFT, 0], abs=0.3)


def test_frames_of_a_clip_lie_around_its_middle():
    assert middle(20, 5, 2).tolist() == [5, 7, 9, 11, 13]
    assert middle(7, 5, 4).tolist() == [1, 2, 3, 4, 5]
    assert middle(5, 5, 1).tolist() == [0, 1, 2, 3, 4]
    assert middle(3, 5, 2).tolist() == [0, 1, 2]


def test_a_picture_that_is_too_narrow_for_a_film_is_refused(module, tmp_path):
    for width, height in ((66, 2), (2, 66)):
        Image.new("RGB", (width, height)).save(tmp_path / "narrow.png")
        with pytest.raises(ValueError, match=f"narrow.png has {width} x {height} pixels, expected sides of which one"):
            next(Landscapes(module).answer(tmp_path / "narrow.png"))
    Image.new("RGB", (64, 2)).save(tmp_path / "narrow.png")
    with (tmp_path / "film.mp4").open("wb") as file:
        next(Landscapes(module).answer(tmp_path / "narrow.png"))["film"].save(file)
    assert (tmp_path / "film.mp4").stat().st_size


def test_wrong_files_are_refused(module, picture, tmp_path):
    landscapes = Landscapes(module)
    with pytest.raises(ValueError, match="there are 1 clips and no picture: give a picture to be animated"):
        landscapes.begin([tmp_path / "sea.mp4"])
    with pytest.raises(ValueError, match=r"films of two clips would be called 'sea': rename one"):
        landscapes.begin([picture, tmp_path / "sea.mp4", tmp_path / "other/sea.MOV"])
    with pytest.raises(ValueError, match=r"films of two clips would be called 'a-b': rename one of the clips"):
        landscapes.begin([picture, tmp_path / "a b.mp4", tmp_path / "a-b.mp4"])
    (tmp_path / "outer/inner").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"inner lies in a folder and is one itself: give it as an input of its own"):
        landscapes.begin([picture, tmp_path / "outer"])
    with pytest.raises(ValueError, match="the model remembers no training clip, so nothing can be recalled"):
        list(Landscapes(make()).answer(picture))
    landscapes.begin([picture, encode(tmp_path / "short.mp4", 1)])
    with pytest.raises(
        ValueError, match=r"short.mp4: it has 1 frame, but motion lies between at least 2: give a longer"
    ):
        list(landscapes.answer(picture))
    landscapes.begin([picture, tmp_path / "nothing.mp4"])
    with pytest.raises(ValueError, match=r"nothing.mp4"):
        list(landscapes.answer(picture))
    landscapes.begin([picture])
    with pytest.raises(ValueError, match=r"nothing.png cannot be read as a picture"):
        list(landscapes.answer(tmp_path / "nothing.png"))
    with pytest.raises(ValueError, match="Landscapes chooses from nothing"):
        landscapes.begin([picture], tmp_path)
