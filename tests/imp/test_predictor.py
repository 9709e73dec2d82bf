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


def test_the_list_of_texts_may_be_written_in_capitals(nearest, files):
    (files / "texts.txt").rename(files / "TEXTS.TXT")
    assert nearest.begin([files / "mine.png", files / "TEXTS.TXT"]) == [files / "mine.png"]
    assert nearest.texts == TEXTS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zebra quux", "'zebra quux' has no word that the model knows"),
        ("", "'' has no word that the model knows"),
        ("a red circle " * 9, r"'a red circle a red circle [a-z ]{0,40}' takes more than the 8 tokens of the model"),
    ],
)
def test_texts_that_cannot_be_read_are_refused(nearest, files, text, message):
    with pytest.raises(ValueError, match=message):
        nearest.rank(files / "mine.png", [*TEXTS, text])
    (files / "texts.txt").write_text(text or "...")
    with pytest.raises(ValueError, match=message if text else "has no word"):
        nearest.begin([files / "mine.png", files / "texts.txt"])


def told(*trained, **lengths):
    """The content of `predictor.json` of an arm that has learnt some tasks, with the lengths of their texts."""
    tasks = {name: {"data": {"text_length": lengths[name]} if name in lengths else {}} for name in module().tasks}
    return {"data": {"trained": list(trained) or None, "tasks": tasks}}


def test_texts_may_be_as_long_as_those_that_were_learnt(files):
    network = module().eval()
    assert Nearest(network, told(pairs=5, sounding=6)).longest == 6
    assert Nearest(network, told("pairs", pairs=5, sounding=6)).longest == 5
    short = Nearest(network, told("pairs", pairs=5))
    assert len(short.rank(files / "mine.png", ["a red circle"])) == 1  # five tokens with start and end
    with pytest.raises(ValueError, match="takes more than the 5 tokens"):
        short.rank(files / "mine.png", ["a large red circle"])


@pytest.mark.parametrize(
    ("trained", "name", "message"),
    [
        (["clips"], "mine.png", "the model has learnt clips, where no file is compared with texts"),
        (["pairs", "sounds"], "mine.wav", "the model has learnt pairs and sounds, where no spectrogram is compared"),
    ],
)
def test_what_was_never_compared_with_texts_is_refused_although_there_are_weights_for_it(files, trained, name, message):
    with pytest.raises(ValueError, match=message):
        Nearest(module().eval(), told(*trained)).rank(files / name, TEXTS)


def test_vectors_of_texts_are_kept_for_the_next_file(nearest, files, monkeypatch):
    nearest.rank(files / "mine.png", TEXTS)
    monkeypatch.setattr(nearest.module, "embed_texts", lambda *_: pytest.fail("asked again"))
    assert len(nearest.rank(files / "mine.gif", TEXTS)) == 3


def test_vectors_have_length_one(nearest, files):
    vectors = nearest.module.embed(*nearest.opened(files / "mine.png"))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(1))
