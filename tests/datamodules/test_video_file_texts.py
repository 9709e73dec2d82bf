import json
import logging
import os
from itertools import pairwise

import numpy as np
import pytest
import torch

from lightning_modules import settings
from lightning_modules.datamodules import video_file_texts
from lightning_modules.datamodules.video_file_texts import VideoFileBatches
from lightning_modules.datasets.download import MIRROR_VARIABLE, DataUnavailable
from lightning_modules.datasets.splits import Portion
from lightning_modules.datasets.video import corpora
from lightning_modules.datasets.video.drawn import encode, numbers
from tests.batches import loaded, same
from tests.datasets.test_tokenizers import bert_folder

VIDEOS, WORDS = 13, ("red", "circle", "left", "moving")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A copy of a corpus of clips of 12 frames, its index, and a tokenizer."""
    path = tmp_path_factory.mktemp("corpus")
    (path / "tokenizer").mkdir()
    bert_folder(path / "tokenizer")
    names = [f"video{number}" for number in range(VIDEOS)]
    for number, name in enumerate(names):
        encode(path / f"mirror/toy/videos/{name}.mp4", 12, size=(32 + 16 * (number % 2), 32))
    sentences = [{"video_id": name, "caption": f"a {WORDS[number % 4]} circle {number}"}
                 for number, name in enumerate(names)]  # fmt: skip
    more = [{"video_id": name, "caption": "red"} for name in names]
    for file, said in (("one.json", sentences), ("two.json", sentences + more)):
        (path / f"mirror/toy/{file}").write_text(json.dumps({"sentences": said}))
    split = {"auxiliary": None, "videos": None, "rows": VIDEOS}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(MIRROR_VARIABLE, raising=False)  # it wins over `mirror`
        corpora.prepare(
            path / "index",
            name="toy",
            corpus="msr_vtt",
            splits={"train": {"annotations": "two.json", **split}, "test": {"annotations": "one.json", **split}},
            suffix=".mp4",
            videos="videos",
            lists={},
            list_mirrors=[],
            list_cache=str(path / "cache"),
            mirror=str(path / "mirror"),
            cache=str(path / "cache"),
            max_left_out=0.0,
        )
    return path


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: [])  # no workers, unless a test wants them


def data(home, seed=3, **changes):
    values = {
        "splits": {"train": {"source": "train", "rows": None}, "test": {"source": "test", "rows": None}},
        "sources": ["caption"],
        "tokenizer": str(home / "tokenizer"),
        "text_length": 8,
        "frames": 4,
        "image_size": 16,
        "batch_size": 4,
        "evaluation_batch_size": 5,
        "mirror": str(home / "mirror"),
        "max_broken": 0.02,
    } | changes
    block = {"_target_": "lightning_modules.datamodules.video_file_texts.VideoFileTexts", **values}
    return settings.bind(block, "conf/system/toy.yaml: data", folder=home / "index", seed=seed)()


def test_evaluation_has_the_videos_in_order_and_their_even_frames(home):
    found = data(home)
    batches = list(found.evaluation_batches("test"))
    assert [tuple(batch["video"].shape) for batch in batches] == [(n, *found.video_shape) for n in (5, 5, 3)]
    assert batches[0]["video"].dtype == torch.uint8
    for clip in torch.cat([batch["video"] for batch in batches]):
        assert numbers(clip.permute(1, 2, 3, 0).numpy()) == [0, 3, 7, 11]
    said = found.tokenizer.decode(torch.cat([batch["caption_token_ids"] for batch in batches]).numpy())
    assert [sentence.split()[1] for sentence in said[:3]] == ["red", "circle", "left"[:4]]
    assert all(batch["broken"] == 0 for batch in batches)


def test_with_auxiliary_captions_the_middle_frame_comes_too(home):
    clips = data(home).clips("test")
    clips = clips._replace(texts={"auxiliary": clips.texts["caption"]})
    found = clips.read(3, lambda total: torch.arange(2).numpy(), sentence=0)
    assert numbers(found["images"][None].numpy()) == [6] and numbers(found["video"].numpy()) == [0, 1]
    assert "auxiliary_token_ids" in found


def test_training_batches_depend_on_seed_epoch_and_step_alone(home):
    first, again, later = loaded(data(home)), loaded(data(home)), loaded(data(home), epoch=1)
    assert len(first) == VIDEOS // 4
    assert same(first, again) and not same(first, later) and not same(first, loaded(data(home, seed=4)))
    assert data(home).train_dataloader().dataset[1, 2]["video"].equal(later[2]["video"])


def test_workers_change_nothing(home, monkeypatch):
    alone = loaded(data(home))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: [0, 1])
    assert data(home).train_dataloader().num_workers == 2
    assert same(alone, loaded(data(home)))


def test_training_frames_are_jittered_and_sentences_drawn(home):
    found = data(home, batch_size=13)
    batches = [loaded(found, epoch)[0] for epoch in range(6)]
    frames = [numbers(clip.permute(1, 2, 3, 0).numpy()) for batch in batches for clip in batch["video"]]
    assert {shown[0] for shown in frames} == {0, 1, 2, 3, 4} and {shown[-1] for shown in frames} == {7, 8, 9, 10, 11}
    lengths = torch.cat([batch["caption_attention_mask"].sum(1) for batch in batches])
    assert 0.25 < (lengths == 3).float().mean() < 0.75  # the second sentence is one word


def test_processes_and_accumulated_batches_share_a_step(home):
    settings = {"seed": 3, "frames": 2, "batch_size": 6, "max_broken": 0.0}
    whole, *parts = (VideoFileBatches(data(home).clips("train"), portion=Portion(*of), **settings)
                     for of in ((0, 1, 1), (0, 2, 1), (1, 2, 1), (0, 1, 3)))  # fmt: skip
    assert [len(batches) for batches in (whole, *parts)] == [2, 2, 2, 6]
    halves, thirds = [parts[rank][0, 1] for rank in range(2)], [parts[2][0, 3 + place] for place in range(3)]
    for batches in (halves, thirds):
        assert torch.cat([batch["video"] for batch in batches]).equal(whole[0, 1]["video"])
    with pytest.raises(ValueError, match=r"batch_size \(14\) must be between 1 and the number of rows \(13\)"):
        VideoFileBatches(data(home).clips("train"), **settings | {"batch_size": 14})


def test_what_replaces_a_broken_video_is_in_no_other_batch_of_the_step(home):
    batches = [VideoFileBatches(data(home).clips("train"), seed=3, frames=2, batch_size=4, max_broken=0.0,
                                portion=Portion(rank, 2)) for rank in range(2)]  # fmt: skip
    for each in batches:
        each[0, 1]
    candidates = [list(each._candidates(4, 2)) for each in batches]
    assert [len(rows) for rows in candidates] == [2 + 5, 2 + 4]
    assert sorted(candidates[0] + candidates[1]) == list(range(VIDEOS))


def test_a_smaller_last_batch_is_kept_and_cut_into_equal_parts(home):
    settings = {"seed": 3, "frames": 2, "batch_size": 6, "max_broken": 0.0, "keep_last": True}
    whole, *parts = (VideoFileBatches(data(home).clips("train"), portion=Portion(*of), **settings)
                     for of in ((0, 1, 1), (0, 2, 1), (1, 2, 1)))  # fmt: skip
    assert [len(batches) for batches in (whole, *parts)] == [3, 3, 3]
    assert [len(whole[0, place]["video"]) for place in range(3)] == [6, 6, 1]
    last = [part[0, 2]["video"] for part in parts]
    assert last[0].equal(whole[0, 2]["video"]) and last[1].equal(whole[0, 0]["video"][:1])
    with pytest.raises(ValueError, match=r"keep_last is true, .* 2 accumulated ones: set accumulate"):
        VideoFileBatches(data(home).clips("train"), portion=Portion(0, 1, 2), **settings)


def test_last_batches_make_the_steps_of_the_official_code(home):
    found = data(home, batch_size=128, keep_last=True)
    found.rows = {"train": ("train", np.arange(9000))}
    assert found.max_steps(100) == 7032  # official code: ceil(100 x 9,000 / 128), with 71 batches in an epoch
    assert data(home).max_steps(100) == found.max_steps(0) == -1


def test_frames_at_a_fixed_rate(home):
    found = data(home, frames=3, sample_rate=2)
    for clip in next(found.evaluation_batches("test"))["video"]:
        assert numbers(clip.permute(1, 2, 3, 0).numpy()) == [4, 6, 8]
    shown = [numbers(clip.permute(1, 2, 3, 0).numpy()) for batch in loaded(found) for clip in batch["video"]]
    assert len({tuple(each) for each in shown}) > 3
    assert all(1 <= b - a <= 3 for each in shown for a, b in pairwise(each))


def test_several_sentences_of_a_video_are_different_ones(home):
    found = data(home, sentences=2)
    batches = [loaded(found, epoch) for epoch in range(2)]
    for batch in batches[0]:
        assert batch["caption_token_ids"].shape == batch["caption_attention_mask"].shape == (4, 2, 8)
        lengths = batch["caption_attention_mask"].sum(2)
        assert ((lengths == 3).sum(1) == 1).all()  # the one of a word, and the other
    orders = [torch.cat([batch["caption_attention_mask"].sum(2)[:, 0] == 3 for batch in epoch]) for epoch in batches]
    assert 0 < orders[0].sum() < len(orders[0]) and not orders[0].equal(orders[1])
    with pytest.raises(ValueError, match=r"has 2 sentences of 'caption', but data.sentences is 3"):
        loaded(data(home, sentences=3))


def test_an_auxiliary_caption_and_a_subtitle_are_joined(home, monkeypatch):
    index = {"file": np.array(["a.mp4", "b.mp4"]), "subtitle": [["left"], ["moving"]],
             "auxiliary_caption": [["red"], ["circle"]]}  # fmt: skip
    index = {name: np.array(column, dtype=object) for name, column in index.items()}
    monkeypatch.setattr(video_file_texts, "read_index", lambda folder, split: index)
    found = data(home, sources=["joined", "subtitle"])
    found.rows = {"train": ("train", np.array([1, 0]))}
    assert found.clips("train").texts == {
        "joined": [["circle. with subtitle: moving"], ["red. with subtitle: left"]],
        "subtitle": [["moving"], ["left"]],
    }


@pytest.fixture
def broken(home):
    """One video is cut off while the test runs."""
    path = home / "mirror/toy/videos/video5.mp4"
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    yield path
    path.write_bytes(whole)


def test_a_broken_video_is_replaced_while_training_counted_and_logged(home, broken, caplog):
    with caplog.at_level(logging.WARNING):
        batches = loaded(data(home))
    assert [len(batch["video"]) for batch in batches] == [4, 4, 4]
    assert sum(batch["broken"].item() for batch in batches) == 1
    assert "video5.mp4 cannot be decoded" in caplog.text
    for batch in batches:
        assert batch["video"].float().std(dim=(1, 2, 3, 4)).min() > 10  # frames of all brightnesses, no black clip
        assert len(batch["video"].flatten(1).unique(dim=0)) == 4
    assert same(batches, loaded(data(home)))


def test_a_broken_video_is_left_out_of_evaluation(home, broken):
    batches = list(data(home).evaluation_batches("test"))
    assert [len(batch["video"]) for batch in batches] == [5, 4, 3]
    assert [batch["broken"].item() for batch in batches] == [0, 1, 0]


def test_too_many_broken_videos_end_the_work(home, broken):
    with pytest.raises(ValueError, match=r"videos are broken, more than max_broken \(0.0\) allows"):
        list(data(home, max_broken=0.0).evaluation_batches("test"))
    with pytest.raises(ValueError, match=r"videos are broken, more than max_broken \(0.0\) allows"):
        [batch for epoch in range(3) for batch in loaded(data(home, max_broken=0.0), epoch)]


def test_what_cannot_be_used_is_refused(home):
    with pytest.raises(ValueError, match=r"13 of 13 videos of split 'train' have no subtitle, the first is video0.mp4"):
        data(home, sources=["caption", "subtitle"]).train_dataloader()
    splits = {name: {"source": "train", "rows": 4} for name in ("val", "test")}
    with pytest.raises(ValueError, match=r"videos of split 'test' have several sentences"):
        next(data(home, splits=splits).evaluation_batches("test"))
    assert len(next(data(home, splits=splits).evaluation_batches("val"))["video"]) == 4, "with the first sentence"
    with pytest.raises(ValueError, match="there is no split 'train'"):
        data(home, splits={"test": {"source": "test", "rows": None}}).train_dataloader()
    with pytest.raises(DataUnavailable, match=f"(?s)toy: videos could not be had.*{MIRROR_VARIABLE}"):
        data(home, mirror=None).clips("train")
    assert data(home).num_classes is None
