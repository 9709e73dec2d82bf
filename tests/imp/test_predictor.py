"""Answers about a user's pictures, clips and sounds."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules.datasets.sounds import write_wave
from lightning_modules.imp.predictor import Compares, Nearest
from tests.imp.test_module import module

TEXTS = ["a red circle", "a blue square", "a green star"]


@pytest.fixture
def nearest():
    return Nearest(module().eval())


@pytest.fixture
def files(tmp_path):
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (12, 20, 3), np.uint8)).save(tmp_path / "mine.png")
    write_wave(tmp_path / "mine.wav", draw.integers(-9999, 9999, 300).astype(np.int16), 1024)
    frames = [Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(6)]
    frames[0].save(tmp_path / "mine.gif", save_all=True, append_images=frames[1:], duration=100)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    return tmp_path


def test_the_module_is_what_is_asked_of(nearest):
    assert isinstance(nearest.module, Compares)


@pytest.mark.parametrize(
    ("name", "modality"), [("mine.png", "vision"), ("mine.gif", "vision"), ("mine.wav", "spectrogram")]
)
def test_a_file_gets_its_nearest_texts(nearest, files, name, modality):
    (path,) = nearest.begin([files / name, files / "texts.txt"])
    answers = list(nearest.answer(path, top=2))
    assert [answer["rank"] for answer in answers] == [1, 2]
    assert nearest.opened(path)[0] == modality
    similarity = (nearest.module.embed_texts(TEXTS, modality) @ nearest.module.embed(*nearest.opened(path))[0]).tolist()
    assert answers[0]["text"] == TEXTS[int(np.argmax(similarity))]
    assert answers[0]["similarity"] == pytest.approx(max(similarity), abs=1e-5)


def test_a_short_sound_ends_in_silence(nearest, files):
    sound = nearest.opened(files / "mine.wav")[1]["audio"]
    assert sound.shape == (1, 512)
    assert not sound[0, 300:].any()


def test_no_texts_no_answer(nearest, files):
    assert nearest.rank(files / "mine.png", []) == []


@pytest.mark.parametrize("names", [["mine.png"], ["texts.txt"], ["mine.png", "texts.txt", "texts.txt"]])
def test_one_list_of_texts_and_something_else_are_expected(nearest, files, names):
    with pytest.raises(ValueError, match="expected pictures, clips or sounds"):
        nearest.begin([files / name for name in names])


def test_a_file_that_cannot_be_read_is_named(nearest, files):
    (files / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"bad\.png"):
        nearest.rank(files / "bad.png", TEXTS)


def test_a_sound_for_a_model_that_hears_none_is_refused(files):
    deaf = module(
        modalities={name: module().modalities[name] for name in ("vision", "text")},
        tasks={"pairs": module().tasks["pairs"]},
        prompts={},
    )
    with pytest.raises(ValueError, match=r"mine\.wav is a sound, and the model hears none"):
        Nearest(deaf).rank(files / "mine.wav", TEXTS)


def test_vectors_of_texts_are_kept_for_the_next_file(nearest, files, monkeypatch):
    nearest.rank(files / "mine.png", TEXTS)
    monkeypatch.setattr(nearest.module, "embed_texts", lambda *_: pytest.fail("asked again"))
    assert len(nearest.rank(files / "mine.gif", TEXTS)) == 3


def test_vectors_have_length_one(nearest, files):
    vectors = nearest.module.embed(*nearest.opened(files / "mine.png"))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(1))
