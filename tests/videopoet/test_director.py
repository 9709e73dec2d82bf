"""What VideoPoet answers about a user's files: films that open in a player, by the kind of the file."""

import json
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules.datasets.video.drawn import encode
from lightning_modules.datasets.video.files import evenly, read_frames
from lightning_modules.datasets.video.films import Film, Sound
from lightning_modules.datasets.video.hearing import read_sound
from lightning_modules.datasets.video.sequences import central_square
from lightning_modules.datasets.video.showing import read_shown
from lightning_modules.settings import bind
from lightning_modules.videopoet import predictor
from lightning_modules.videopoet.module import VideoPoet
from lightning_modules.videopoet.predictor import Director
from lightning_modules.videopoet.prompts import Asked, read_asked
from lightning_modules.videopoet.tasks import TASKS as ALL
from stages import predict

TOKENIZER = {"frames": 9, "size": 8, "width": 4, "multipliers": (1, 1, 1), "blocks": 1, "halve_time": (True, True),
             "codebook_size": 16, "norm_groups": 2}  # fmt: skip
CODEC = {"samples": 4608, "rate": 4096, "levels": 2, "codes": 4, "strides": [16, 16], "width": 4, "dim": 8}
NETWORK = {"hidden_size": 16, "layers": 1, "heads": 2, "mlp_dim": 16}
RAFT = {"_target_": "lightning_modules.fgla.raft.FlowTeacher", "network": "small", "weights": "none.pth"}
TASKS = [name for name, task in ALL.items() if not task.guided]  # those that need no further network


def settings(tasks) -> dict:
    return {
        "tokenizer": TOKENIZER, "codec": CODEC, "text": {"words": 133, "dim": 6}, "text_length": 8,
        "network": NETWORK, "tasks": list(tasks),
        "judged_tasks": list(tasks)[:1],
    }  # fmt: skip


def director(tasks=tuple(TASKS)) -> Director:
    torch.manual_seed(0)
    return Director(VideoPoet(**settings(tasks)))


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
    heard, longer = answering.answer(files / "mine.mp4")  # 20 frames, 10 a second: 2 seconds
    assert heard["film"].frames.shape == (16, 8, 8, 3) and heard["film"].rate == 8
    assert heard["sound"].samples.shape == (2 * 4096,) and heard["film"].sound is heard["sound"]
    assert heard["read"] == longer["read"] == "all 16 frames at 8 a second"
    written = 9 - 1 - (answering.module.given - 1) * 4
    assert len(longer["film"].frames) == 16 + answering.module.segments * written and longer["film"].sound is None
    np.testing.assert_array_equal(longer["film"].frames[:16], heard["film"].frames)
    (moving,) = answering.answer(files / "mine.png")
    assert moving["film"].frames.shape == (9, 8, 8, 3) and moving["film"].sound is not None
    (seen,) = answering.answer(files / "mine.wav")
    np.testing.assert_array_equal(seen["film"].sound.samples, read_sound(files / "mine.wav", 0.0, 4608, 4096))
    staged = list(answering.answer(files / "mine.txt"))
    assert [answer["caption"] for answer in staged] == ["a red circle moving left", "a blue square moving up"]
    again = list(answering.answer(files / "mine.txt"))
    np.testing.assert_array_equal(staged[1]["film"].frames, again[1]["film"].frames)


def test_a_video_goes_on_after_its_end_and_is_heard_to_it(files, monkeypatch):
    answering = director()
    seen = read_shown(files / "mine.mp4", np.arange, partial(central_square, short_side=8, size=8), rate=8.0).frames
    heard, longer = answering.answer(files / "mine.mp4")
    np.testing.assert_array_equal(heard["film"].frames, seen)
    end = torch.from_numpy(seen[-answering.module.known_frames :]).permute(3, 0, 1, 2)[None] / 255
    expected = answering.module.extended(end, answering.module.segments)[0, :, len(end[0, 0]) :]
    written = torch.from_numpy(longer["film"].frames[16:]).permute(3, 0, 1, 2)
    torch.testing.assert_close(written / 255, expected, rtol=0, atol=0.003)
    assert set(heard["sound"].samples[-1024:].tolist()) != {0}
    monkeypatch.setattr(predictor, "CLIPS", 1)
    _, longer = answering.answer(files / "mine.mp4")
    assert longer["read"] == "the last 9 of 16 frames at 8 a second"
    np.testing.assert_array_equal(longer["film"].frames[:9], seen[-9:])


def test_a_video_shorter_than_a_clip_is_heard_and_goes_on(files):
    encode(files / "short.mp4", 3)
    heard, longer = director().answer(files / "short.mp4")
    assert len(heard["film"].frames) == 2 and len(heard["sound"].samples) == 1024
    assert len(longer["film"].frames) == 2 + 2 * 4


def test_an_arm_answers_with_the_tasks_that_it_has_learnt_and_says_if_there_are_none(files):
    (staged, _) = director(["t2v"]).answer(files / "mine.txt")
    assert staged["film"].sound is None and "sound" not in staged
    for name in ("mine.png", "mine.wav", "mine.mp4"):
        with pytest.raises(ValueError, match="the network has learnt t2v, of which nothing can be made of"):
            list(director(["t2v"]).answer(files / name))
    with pytest.raises(ValueError, match="Save it as UTF-8"):
        (files / "bad.txt").write_bytes(b"\xff\xfe\x00")
        list(director().answer(files / "bad.txt"))


def test_texts_can_be_moved_away_from_and_ended_alike(files):
    """Section 3.5: a negative prompt and an ending. Moved away from nothing said, it is what guidance always was."""
    (files / "mine.txt").write_text(
        "also: up\nguidance: 2\na red circle moving\nnot: a blue square moving up\na red circle moving\n"
        "Not:\na red circle moving\nalso:\nguidance:\na red circle moving\n"
    )
    asked = read_asked(files / "mine.txt")
    told = "a red circle moving up"
    avoided = "a blue square moving up"
    assert asked == [
        Asked(told, "", 2.0),
        Asked(told, avoided, 2.0),
        Asked(told, "", 2.0),
        Asked("a red circle moving"),
    ]
    answering = director()
    with torch.no_grad():
        for parameter in answering.module.network.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    plain, away, again = (answering.written(each) for each in asked[:3])
    assert torch.equal(plain, again) and not torch.equal(plain, away)
    same = answering.written(Asked(told, told, 5.0))  # moved away from itself: as without guidance
    assert torch.equal(same, answering.written(Asked(told, "", 0.0)))
    assert [each["caption"] for each in answering.answer(files / "mine.txt")] == [each.caption for each in asked]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "has 0 lines and no caption: write one on each line"),
        ("only.txt", b"not: a red circle\nguidance: 2\n", "has 2 lines and no caption"),
        ("much.txt", b"guidance: much\na circle\n", "the line 'guidance: much', expected a number from 0 on"),
        ("less.txt", b"guidance: -1\na circle\n", "the line 'guidance: -1', expected a number from 0 on"),
        ("endless.txt", b"guidance: inf\na circle\n", "the line 'guidance: inf', expected a number"),
        ("idle.txt", b"guidance: 0\nnot: a square\na circle\n", "'a square' is to be avoided, but guidance is 0"),
        ("long.txt", b"a red circle moving left and up and down\n", "takes 11 tokens .*, but this model reads 8"),
        ("bad.txt", b"\xff\xfe\x00", "bad.txt cannot be read as text.*Save it as UTF-8"),
        ("nothing.txt", None, "nothing.txt cannot be read as text"),
        ("bad.png", b"no picture", "bad.png cannot be read as a picture"),
        ("nothing.png", None, "nothing.png cannot be read as a picture"),
        ("bad.mp4", b"no video", "bad.mp4"),
        ("nothing.mp4", None, "nothing.mp4"),
        ("bad.pdf", b"%PDF-1.4", "bad.pdf"),
        ("bad.wav", b"no sound", "bad.wav cannot be decoded"),
        ("nothing.wav", None, "nothing.wav cannot be decoded"),
    ],
)
def test_a_file_that_cannot_be_answered_is_named_in_one_line(files, name, content, message):
    if content is not None:
        (files / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as found:
        list(director().answer(files / name))
    assert len(str(found.value).splitlines()) == 1


def test_a_sound_that_is_too_short_is_refused(files):
    with (files / "short.wav").open("wb") as file:
        Sound(np.zeros(1000, np.int16), 4096).save(file)
    with pytest.raises(ValueError, match=r"short.wav ends before the clip does: 1000 of 4608 samples are there"):
        list(director().answer(files / "short.wav"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tasks": []}, "tasks"),
        ({"tasks": ["t2w"]}, "the task 't2w' is unknown"),
        ({"judged_tasks": ["stylise"]}, "stylise is among the tasks, but guides is null"),
        ({"weights": {"i2v": 0}}, "weights"),
        ({"tasks": ["t2v"], "weights": {"i2v": 2.0}}, r"weights has 'i2v', which is not among the tasks \(t2v\)"),
        ({"tasks": ["t2v", "t2v"]}, "the task 't2v' is named twice"),
        ({"judged_tasks": ["t2v", "t2v"]}, "the task 't2v' is named twice"),
        ({"tasks": ["t2v", "stylise"]}, "stylise is among the tasks, but guides is null"),
        ({"tasks": ["t2v", "stylise"], "guides": {"flow": {}, "depth": "d"}}, "guides.reach"),
        ({"tasks": ["stylise"], "guides": {"flow": {}, "depth": "d", "reach": 0.1}}, "guides.flow has no `_target_`"),
        ({"tasks": ["stylise"], "guides": {"flow": RAFT | {"weight": ""}, "depth": "d", "reach": 0.1}}, "'weight'"),
        ({"tasks": ["stylise"], "guides": {"flow": RAFT, "depth": "d", "reach": 0.1}}, "none.pth, the weights of RAFT"),
        ({"turn": 1.0}, "turn"),
        ({"first": 1.5}, "first"),
        ({"batches": "packed"}, "batches"),
        ({"mixed": 0}, "mixed"),
        ({"given": 3}, "given is 3, expected less than the latent frames of a clip"),
        ({"text_drop": -0.1}, "text_drop"),
        ({"decoding": {"temprature": 1.0}}, "decoding.temprature: unknown key"),
        ({"decoding": {"top_k": 1.5}}, "decoding.top_k is 1.5"),
        ({"published": {"i3dd": "file"}}, "unknown key 'i3dd'"),
        (
            {"network": NETWORK | {"hiden_size": 16}},
            "model.network: unknown key 'hiden_size'; did you mean 'hidden_size'",
        ),
        ({"network": NETWORK | {"layers": 0}}, "network.layers is 0"),
        ({"tokenizer": TOKENIZER | {"widht": 4}}, "model.tokenizer: unknown key 'widht'; did you mean 'width'"),
        ({"codec": CODEC | {"stride": [16]}}, "model.codec: unknown key 'stride'; did you mean 'strides'"),
        ({"codec": CODEC | {"strides": []}}, "strides is"),
        ({"codec": CODEC | {"samples": 0}}, "samples is 0"),
        ({"codec": CODEC | {"dim": 0}}, "dim is 0"),
        ({"codec": CODEC | {"quantiser": {"comitment": 1.0}}}, "quantiser: unknown key 'comitment'"),
        ({"codec": CODEC | {"quantiser": {"restart": 2.0}}}, "quantiser.restart is 2.0"),
        ({"text": {"words": 9, "dim": 6, "word": 9}}, "model.text: unknown key 'word'"),
        ({"text": {"words": 9, "dim": 0}}, "model.text.dim is 0"),
        ({"decoding": {"guidance": -1.0}}, "guidance"),
        ({"segments": 0}, "segments"),
        ({"text": {"words": 9, "dim": 6, "hub": "google/t5-v1_1-xl"}}, "give hub alone"),
        ({"text": {}}, "give hub alone"),
        ({"codec": CODEC | {"strides": [16, 15]}}, "strides"),
        ({"codec": CODEC | {"levels": 0}}, "levels"),
        ({"network": {"hidden_size": 16, "layers": 1, "heads": 3, "mlp_dim": 16}}, "heads"),
        ({"marks": ["bos"]}, "the special 'bos' is named twice"),
        ({"mark": []}, "mark"),
    ],
)
def test_a_wrong_setting_is_answered_in_one_line(changed, message):
    block = {"_target_": "lightning_modules.videopoet.module.VideoPoet", **settings(tuple(TASKS)), **changed}
    with pytest.raises(ValueError, match=message) as found:
        bind(block, "conf/system/videopoet/tiny.yaml: model")()
    assert len(str(found.value).splitlines()) == 1


def clips(**changed):
    blank = {"video": torch.zeros(2, 3, 9, 8, 8), "audio": torch.zeros(2, 4608, dtype=torch.int16),
             "caption": torch.zeros(2, 8, dtype=torch.long), "caption_mask": torch.ones(2, 8).bool()}  # fmt: skip
    return {name: x for name, x in (blank | changed).items() if x is not None}


@pytest.mark.parametrize(
    ("name", "changed", "options", "message"),
    [
        ("t2w", {}, {}, "the task 't2w' is unknown; did you mean 't2v'"),
        ("t2v", {"caption": None}, {}, "t2v needs video, caption, caption_mask: 'caption' is absent"),
        ("t2v", {"caption": torch.zeros(2, 5, dtype=torch.long)}, {}, r"'caption' is \(2, 5\), expected \(2, 8\)"),
        ("i2v", {"video": None}, {}, "'video' is absent"),
        ("i2v", {"video": torch.zeros(2, 3, 5, 8, 8)}, {}, r"'video' is \(2, 3, 5, 8, 8\), expected \(2, 3, 9, 8, 8\)"),
        ("i2v", {"video": torch.zeros(2, 3, 9, 8, 4)}, {}, r"'video' is \(2, 3, 9, 8, 4\)"),
        ("i2v", {"video": torch.zeros(2, 1, 9, 8, 8)}, {}, r"'video' is \(2, 1, 9, 8, 8\)"),
        ("a2v", {"audio": torch.zeros(2, 4600)}, {}, r"'audio' is \(2, 4600\), expected \(2, 4608\)"),
        ("a2v", {"audio": torch.zeros(1, 4608)}, {}, r"'audio' is \(1, 4608\)"),
        ("i2v", {}, {"temprature": 1.0}, "unknown key 'temprature'; did you mean 'temperature'"),
        ("i2v", {}, {"temperature": -1.0}, "temperature is -1.0, expected a number from 0 on"),
        ("i2v", {}, {"top_k": -1}, "top_k is -1"),
        ("stylise", {}, {}, "has no networks of flow and depth: take one with stylise among its tasks"),
    ],
)
def test_a_wrong_call_is_answered_in_one_line(name, changed, options, message):
    with pytest.raises(ValueError, match=message) as found:
        director().module.generate(name, clips(**changed), **options)
    assert len(str(found.value).splitlines()) == 1


@pytest.mark.parametrize(("frames", "segments"), [(3, 1), (9, 0)])
def test_a_clip_that_cannot_go_on_is_refused(frames, segments):
    with pytest.raises(
        ValueError, match=f"a clip of {frames} frames and {segments} segments, expected at least 5 frames"
    ):
        director().module.extended(torch.zeros(1, 3, frames, 8, 8), segments)


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
