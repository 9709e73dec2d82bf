"""The exported committee on files: what it reads, what it refuses, and that it answers as the module does."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules.clip_vip.retriever import Retriever
from lightning_modules.committees.network import Committee, CommitteePredictor
from lightning_modules.datasets.pictures import stored
from lightning_modules.datasets.video.drawn import encode
from lightning_modules.datasets.video.files import read_frames
from lightning_modules.ensembling.members import Member, Normalise, build_network, rebuild
from lightning_modules.files import write_json
from stages import predict
from tests.committees.test_network import write

SHAPE = (1, 8, 8)


@pytest.fixture
def committee(tmp_path):
    """Two small MLPs with made weights, exported as the evaluation does."""
    torch.manual_seed(0)
    networks = [build_network("mlp", width, 2, SHAPE, 10) for width in (8, 16)]
    members = [Member(Normalise(16, [0.3], [0.4]), network, 8) for network in networks]
    record = {
        "num_classes": 10,
        "images": {"shape": list(SHAPE), "scale": 16},
        "members": [
            {"name": f"mlp-h{width}#0", "family": "mlp", "width": width, "depth": 2, "resolution": "8"}
            for width in (8, 16)
        ],
    }
    made = Committee(members, macs=[10, 30], thresholds=[-0.8]).eval()
    write(made, tmp_path, **record)
    write_json(tmp_path / "predictor.json", {"loader": "lightning_modules.committees.network.CommitteePredictor"})
    return tmp_path, made


def run(monkeypatch, capsys, *arguments, failed=None):
    """The answers; with `failed`, also what stands in the other stream."""
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments), "--json"])
    if failed is None:
        predict.main()
    else:
        with pytest.raises(ValueError, match=failed):
            predict.main()
    out, errors = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    return lines if failed is None else (lines, errors.splitlines())


def test_answers_are_those_of_the_module_with_member_and_cost(committee, monkeypatch, capsys):
    folder, made = committee
    images = np.random.default_rng(0).integers(0, 17, (40, 8, 8)).astype(np.uint8)
    np.save(folder / "rows.npy", images)
    lines = run(monkeypatch, capsys, folder, folder / "rows.npy")
    with torch.inference_mode():
        expected = made(torch.from_numpy(images[:, None].astype(np.float32)))
    assert [line["class"] for line in lines] == expected.probabilities.argmax(1).tolist()
    assert [line["members_asked"] - 1 for line in lines] == expected.exit_stage.tolist()
    assert {line["answered_by"] for line in lines} == {"mlp-h8#0", "mlp-h16#0"}
    assert {line["macs"] for line in lines} == {10, 40}


def test_an_image_file_is_brought_to_the_committees_size_and_scale(tmp_path):
    Image.new("RGB", (50, 30), (255, 255, 255)).save(tmp_path / "white.png")
    images = stored(tmp_path / "white.png", SHAPE, 16)
    assert images.shape == (1, *SHAPE)
    assert np.allclose(images, 16)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((2, 9, 9)), r"shape \(2, 9, 9, 1\); the model expects \(rows, 8, 8, 1\)"),
        (np.zeros(3), r"shape \(3,\); the model expects"),
    ],
)
def test_an_array_of_another_shape_is_refused(tmp_path, content, message):
    np.save(tmp_path / "x.npy", content)
    with pytest.raises(ValueError, match=message):
        stored(tmp_path / "x.npy", SHAPE, 16)


def test_other_files_and_folders_are_refused(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(ValueError, match=r"x\.png cannot be read as a picture"):
        stored(tmp_path / "x.png", SHAPE, 16)
    (tmp_path / "x.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x\.npy cannot be read as an array"):
        stored(tmp_path / "x.npy", SHAPE, 16)
    monkeypatch.setattr(sys, "argv", ["predict", str(tmp_path), "x.png"])
    with pytest.raises(ValueError, match=r"holds no predictor\.json"):
        predict.main()


def test_the_model_in_mlflow_answers_as_the_module(committee):
    folder, made = committee
    images = np.random.default_rng(1).integers(0, 17, (5, 8, 8, 1)).astype(np.uint8)
    with torch.inference_mode():
        expected = made(torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))).probabilities
    np.testing.assert_array_equal(CommitteePredictor(folder).predict(images), expected.numpy())


def test_the_members_are_rebuilt_as_listed(committee):
    folder, _ = committee
    members = rebuild(json.loads((folder / "committee.json").read_text()))
    assert [member.network.layers[0].out_features for member in members] == [8, 16]


def test_of_a_folder_the_good_files_are_answered_and_the_others_named(committee, tmp_path, monkeypatch, capsys):
    model, _ = committee
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "b.webp", "c.bmp"):
        Image.new("L", (9, 9), 200).save(folder / name)
    odd = {".DS_Store": b"\0\0\0\1Bud1", "notes.txt": b"digits", "side.json": b"{}", "._a.png": b"\0\5\x16\7"}
    whole = (folder / "a.png").read_bytes()
    broken = {"cut.png": whole[:50], "empty.jpg": b"", "page.png": b"<html>"}
    for name, content in (odd | broken).items():
        (folder / name).write_bytes(content)
    lines, errors = run(monkeypatch, capsys, model, folder, failed="7 of 10 files could not be answered, see above")
    assert [line["input"] for line in lines] == [str(folder / name) for name in ("a.png", "b.webp", "c.bmp")]
    assert len(errors) == 7 and all(any(f"{folder / name} cannot" in line for line in errors) for name in odd | broken)


def test_a_folder_inside_a_folder_is_named(committee, tmp_path, monkeypatch, capsys):
    model, _ = committee
    picture = tmp_path / "pictures/more/a.png"
    picture.parent.mkdir(parents=True)
    Image.new("L", (9, 9), 200).save(picture)
    lines, errors = run(monkeypatch, capsys, model, tmp_path / "pictures", failed="1 of 1 files could not be answered")
    assert not lines and errors == [
        f"no answer: {picture.parent} lies in a folder and is one itself: give it as an input of its own"
    ]
    assert [line["input"] for line in run(monkeypatch, capsys, model, picture.parent)] == [str(picture)]


@pytest.fixture
def retriever(monkeypatch):
    """Ranks sentences by their words, after it has read the video."""

    def rank(self, path, sentences):
        read_frames(path, lambda total: np.arange(2), 8)
        return [(sentence, float(len(sentence.split()))) for sentence in sentences]

    monkeypatch.setattr(Retriever, "rank", rank)
    monkeypatch.setattr(Retriever, "load", lambda folder: Retriever.__new__(Retriever))


def test_of_a_folder_of_videos_too(retriever, tmp_path, monkeypatch, capsys):
    write_json(tmp_path / "predictor.json", {"loader": "lightning_modules.clip_vip.retriever.Retriever.load"})
    folder = tmp_path / "videos"
    for name in ("a.mp4", "12:30:05.mp4", "b.avi"):
        encode(folder / name, 10)
    Image.new("RGB", (32, 32)).save(folder / "poster.jpg")
    odd = {
        ".DS_Store": b"\0\0\0\1Bud1",
        "a.srt": b"1\n00:00:01,000 --> 00:00:02,000\nhello\n",
        "side.txt": b"a b\n" * 99,
    }
    broken = {"cut.mp4": (folder / "a.mp4").read_bytes()[:400], "empty.mp4": b"", "page.mp4": b"<html>"}
    for name, content in (odd | broken).items():
        (folder / name).write_bytes(content)
    said = tmp_path / "said.txt"
    answers = []
    for mark in (b"", b"\xef\xbb\xbf"):
        said.write_bytes(mark + b"a dog\n\n a cat runs \n")
        lines, errors = run(monkeypatch, capsys, tmp_path, folder, said, failed="7 of 10 files could not be answered")
        assert [line["input"] for line in lines[::2]] == [str(folder / n) for n in ("12:30:05.mp4", "a.mp4", "b.avi")]
        assert len(errors) == 7 and all(any(str(folder / name) in line for line in errors) for name in odd | broken)
        answers.append(lines)
    assert answers[0] == answers[1] and [line["sentence"] for line in lines[:2]] == ["a dog", "a cat runs"]


def test_without_sentences_or_videos_nothing_is_ranked(retriever, tmp_path, monkeypatch, capsys):
    write_json(tmp_path / "predictor.json", {"loader": "lightning_modules.clip_vip.retriever.Retriever.load"})
    (tmp_path / "said.txt").write_text("\n")
    run(monkeypatch, capsys, tmp_path, tmp_path / "said.txt", failed="got 0 videos or folders, 1 text files and 0 sent")
