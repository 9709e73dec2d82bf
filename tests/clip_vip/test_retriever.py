"""A model on video files and sentences: as a library, and as `python -m stages.predict`."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from lightning_modules.clip_vip.module import ClipViP
from lightning_modules.clip_vip.retriever import Retriever
from lightning_modules.datasets.video.drawn import encode
from stages import predict

TOWER = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
CLIP = dict(
    hub=None,
    vision={**TOWER, "image_size": 16, "patch_size": 8},
    text={**TOWER, "vocab_size": 133, "max_position_embeddings": 12},
    projection_dim=8,
)
SENTENCES = ["a red circle moving left", "a blue square moving right", "a green triangle moving up"]


@pytest.fixture
def folder(tmp_path):
    """A model as an evaluation writes it, and two videos."""
    torch.manual_seed(0)
    pixels = dict(pixel_scale=255.0, mean=[0.4] * 3, std=[0.3] * 3)
    module = ClipViP(clip=CLIP, preprocess=pixels, frames=3, temporal_std=1.0, loss="V-C", sources={"C": "caption"})
    record = {"tokenizer": None, "model": module.facts()["model"]}
    (tmp_path / "retriever.json").write_text(json.dumps(record))
    (tmp_path / "predictor.json").write_text(
        json.dumps({"loader": "lightning_modules.clip_vip.retriever.Retriever.load"})
    )
    save_file({name: x.numpy() for name, x in module.export().items()}, tmp_path / "retriever.safetensors")
    for name, frames in (("one", 9), ("two", 14)):
        encode(tmp_path / "videos" / f"{name}.mp4", frames)
    (tmp_path / "videos" / "sentences.txt").write_text("\n\n".join(SENTENCES))
    return tmp_path, module.eval()


def test_features_are_those_of_the_model_on_frames_evenly_chosen(folder):
    path, module = folder
    retriever = Retriever.load(path)
    features = retriever.encode_files([path / "videos/one.mp4", path / "videos/two.mp4"])
    assert features.shape == (2, 8)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(2))
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    with torch.no_grad():
        expected = module(torch.from_numpy(frames.transpose(3, 0, 1, 2)[None].copy()))
    torch.testing.assert_close(retriever.encode_frames(frames), expected)


def test_sentences_are_ranked_by_similarity(folder):
    path, _ = folder
    retriever = Retriever.load(path)
    ranked = retriever.rank(path / "videos/one.mp4", SENTENCES)
    assert sorted(sentence for sentence, _ in ranked) == sorted(SENTENCES)
    assert [similarity for _, similarity in ranked] == sorted((s for _, s in ranked), reverse=True)
    own = retriever.encode_texts([ranked[0][0]]) @ retriever.encode_files([path / "videos/one.mp4"]).T
    assert own.item() == pytest.approx(ranked[0][1], abs=1e-6)


def test_the_model_in_mlflow_takes_videos_and_sentences(folder):
    path, _ = folder
    retriever, video = Retriever.load(path), str(path / "videos/one.mp4")
    video_features, *texts = retriever.predict([video, *SENTENCES])
    ranked = dict(retriever.rank(video, SENTENCES))
    found = [float(text @ video_features) for text in texts]
    assert found == pytest.approx([ranked[sentence] for sentence in SENTENCES], abs=1e-6)


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments)])
    predict.main()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_command_line_ranks_sentences_for_a_folder_of_videos(folder, monkeypatch, capsys):
    path, _ = folder
    lines = run(monkeypatch, capsys, path, path / "videos", path / "videos/sentences.txt", "--json", "--top", 2)
    assert [(line["input"].rpartition("/")[2], line["rank"]) for line in lines] == [
        ("one.mp4", 1), ("one.mp4", 2), ("two.mp4", 1), ("two.mp4", 2),
    ]  # fmt: skip
    best = Retriever.load(path).rank(path / "videos/one.mp4", SENTENCES)[0]
    assert (lines[0]["sentence"], lines[0]["similarity"]) == (best[0], pytest.approx(best[1], abs=1e-6))


def test_mistakes_name_what_was_expected(folder, monkeypatch, capsys):
    path, _ = folder
    with pytest.raises(ValueError, match="got 1 videos or folders, 0 text files and 0 sentences"):
        run(monkeypatch, capsys, path, path / "videos")
    with pytest.raises(ValueError, match="got 0 videos or folders, 1 text files and 3 sentences"):
        run(monkeypatch, capsys, path, path / "videos/sentences.txt")
    (path / "sentences.avi").write_text("no video")
    with pytest.raises(ValueError, match="1 of 1 files could not be answered"):
        run(monkeypatch, capsys, path, path / "sentences.avi", path / "videos/sentences.txt")
    assert "sentences.avi cannot be decoded" in capsys.readouterr().err
    (path / "utf-16.txt").write_text("a red circle", "utf-16")
    with pytest.raises(ValueError, match=r"utf-16\.txt cannot be read as text: .* Save it as UTF-8"):
        run(monkeypatch, capsys, path, path / "videos", "--among", path / "utf-16.txt")
    with pytest.raises(ValueError, match=r"holds no retriever\.json"):
        Retriever.load(path / "videos")


def test_frames_that_differ_in_size_are_refused(folder):
    retriever = Retriever.load(folder[0])
    frames = [np.zeros((size, 16, 3), np.uint8) for size in (16, 16, 8)]
    with pytest.raises(ValueError, match=r"must be of one size; got \[\(8, 16, 3\), \(16, 16, 3\)\]"):
        retriever.encode_frames(frames)
    with pytest.raises(ValueError, match=r"videos of \(3, 8, 8\) .* do not fit a CLIP for \(3, 16, 16\)"):
        retriever.encode_frames(np.zeros((3, 8, 8, 3), np.uint8))
