"""What VideoPoet answers about a user's files: films that open in a player, by the kind of the file."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules.datasets.video.drawn import encode
from lightning_modules.datasets.video.files import evenly, read_frames
from lightning_modules.datasets.video.films import Film, Sound
from lightning_modules.datasets.video.hearing import read_sound
from lightning_modules.videopoet.module import VideoPoet
from lightning_modules.videopoet.predictor import Director
from lightning_modules.videopoet.tasks import TASKS
from stages import predict

TOKENIZER = {"frames": 9, "size": 8, "width": 4, "multipliers": (1, 1, 1), "blocks": 1, "halve_time": (True, True),
             "codebook_size": 16, "norm_groups": 2}  # fmt: skip
CODEC = {"samples": 4608, "rate": 4096, "levels": 2, "codes": 4, "strides": [16, 16], "width": 4, "dim": 8}


def director(tasks=tuple(TASKS)) -> Director:
    torch.manual_seed(0)
    module = VideoPoet(
        tokenizer=TOKENIZER, codec=CODEC, text={"words": 133, "dim": 6}, text_length=8, tasks=list(tasks),
        network={"hidden_size": 16, "layers": 1, "heads": 2, "mlp_dim": 16}, judged_tasks=list(tasks)[:1],
    )  # fmt: skip
    return Director(module)


@pytest.fixture
def files(tmp_path):
    encode(tmp_path / "mine.mp4", 20)
    Image.new("RGB", (30, 20), (200, 10, 10)).save(tmp_path / "mine.png")
    (tmp_path / "mine.txt").write_text("a red circle moving left\n\na blue square moving up\n")
    tone = (9000 * np.sin(np.arange(6000) / 3)).astype(np.int16)
    with (tmp_path / "mine.wav").open("wb") as file:
        Sound(tone, 4096).save(file)
    return tmp_path


def test_each_kind_of_file_has_its_films(files):
    answering = director()
    heard, longer = answering.answer(files / "mine.mp4")
    assert heard["film"].frames.shape == (9, 8, 8, 3) and heard["film"].rate == 8
    assert heard["sound"].samples.shape == (4608,) and heard["film"].sound is heard["sound"]
    written = 9 - 1 - (answering.module.given - 1) * 4
    assert len(longer["film"].frames) == 9 + answering.module.segments * written and longer["film"].sound is None
    np.testing.assert_array_equal(longer["film"].frames[:9], heard["film"].frames)
    (moving,) = answering.answer(files / "mine.png")
    assert moving["film"].frames.shape == (9, 8, 8, 3) and moving["film"].sound is not None
    (seen,) = answering.answer(files / "mine.wav")
    np.testing.assert_array_equal(seen["film"].sound.samples, read_sound(files / "mine.wav", 0.0, 4608, 4096))
    staged = list(answering.answer(files / "mine.txt"))
    assert [answer["caption"] for answer in staged] == ["a red circle moving left", "a blue square moving up"]
    again = list(answering.answer(files / "mine.txt"))
    np.testing.assert_array_equal(staged[1]["film"].frames, again[1]["film"].frames)


def test_an_arm_answers_with_the_tasks_that_it_has_learnt_and_says_if_there_are_none(files):
    (staged, _) = director(["t2v"]).answer(files / "mine.txt")
    assert staged["film"].sound is None and "sound" not in staged
    for name in ("mine.png", "mine.wav", "mine.mp4"):
        with pytest.raises(ValueError, match="the network has learnt t2v, of which nothing can be made of"):
            list(director(["t2v"]).answer(files / name))
    with pytest.raises(ValueError, match="Save it as UTF-8"):
        (files / "bad.txt").write_bytes(b"\xff\xfe\x00")
        list(director().answer(files / "bad.txt"))


def test_the_command_writes_films_and_sounds(files, monkeypatch, capsys):
    monkeypatch.setattr(predict.predictors, "load", lambda _: director())
    arguments = ["predict", "model", str(files / "mine.png"), "--out", str(files / "out"), "--json"]
    monkeypatch.setattr(sys, "argv", arguments)
    predict.main()
    (answer,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answer["film"] == str(files / "out/0-mine-film.mp4") and answer["sound"].endswith("0-mine-sound.wav")
    frames = read_frames(files / "out/0-mine-film.mp4", lambda total: evenly(total, 9), 8)
    assert frames.shape == (9, 8, 8, 3)
    assert len(read_sound(files / "out/0-mine-sound.wav", 0.0, 4608, 4096)) == 4608
    monkeypatch.setattr(sys, "argv", [*arguments[:3], "--json"])
    predict.main()
    (answer,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answer["film"] == "[9, 8, 8], see --out" and answer["sound"] == "[4608], see --out"


def test_small_frames_are_enlarged_for_players(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    with (tmp_path / "film.mp4").open("wb") as file:
        Film(frames, 8.0).save(file)
    seen = read_frames(tmp_path / "film.mp4", lambda total: evenly(total, 3), 128)
    assert np.abs(seen.astype(int) - frames.repeat(16, 1).repeat(16, 2)).mean() < 25
