import json
import os
import shutil

import numpy as np
import pytest
import torch

from lightning_modules import settings
from lightning_modules.datamodules.annotated_videos import beginnings, span_labels
from lightning_modules.datasets.download import MIRROR_VARIABLE, DataUnavailable
from lightning_modules.datasets.video import corpora
from lightning_modules.datasets.video.drawn import encode, numbers
from tests.batches import loaded, same
from tests.datasets.test_tokenizers import bert_folder

VIDEOS, CLIPS, WORDS = 13, 3, ("red", "circle", "left", "moving")
SUBTITLES = [{"text": WORDS[number], "start": number, "end": number + 1} for number in range(3)]
FILES = {  # of each corpus, the entry of video n
    "paragraphs": lambda n: {"clip_id": f"v{n}", "text": [WORDS[n % 4], "red circle", "moving left"]},
    "long_videos": lambda n: [{"clip_id": f"r{n}.{k}.mp4", "text": WORDS[k]} for k in range(CLIPS)],
    "how2qa": lambda n: {"clip_id": f"v{n}", "text_q": "red", "text_a": [*WORDS], "answer_idx": n % 4,
                         "text_s": SUBTITLES, "span": [0.3, 0.6]},
    "msrvtt_mc": lambda n: {"qid": n, "clip_name": f"v{n}", "options": [*WORDS], "answer": n % 4},
    "msrvtt_qa": lambda n: {"video_id": f"v{n}", "question": "moving red", "answer": "much" if n % 3 else f"rare {n}"},
    "classes": lambda n: {"video_id": f"v{n}", "recipe_type": n % 4},
}  # fmt: skip
SETTINGS = {
    "how2qa": {"labels": 4}, "msrvtt_mc": {"labels": 4}, "classes": {"labels": 4},
    "long_videos": {"consecutive": CLIPS},
    "msrvtt_qa": {"vocabulary": {"splits": ["train"], "least": 2}},
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Videos of 12 frames, runs of three clips of 8 frames, an index of each task, and a tokenizer."""
    path = tmp_path_factory.mktemp("annotated")
    (path / "tokenizer").mkdir()
    bert_folder(path / "tokenizer")
    videos = path / "mirror/toy/videos"
    sizes = ((48, 32), (32, 48))
    drawn = [encode(path / f"{k}.mp4", 12, size=size) for k, size in enumerate(sizes)]
    short = [encode(path / f"s{k}.mp4", 8, size=size) for k, size in enumerate(sizes)]
    videos.mkdir(parents=True)
    for number in range(VIDEOS):
        shutil.copyfile(drawn[number % 2], videos / f"v{number}.mp4")
        (videos / f"r{number}").mkdir()
        for clip in range(CLIPS):
            shutil.copyfile(short[clip % 2], videos / f"r{number}/r{number}.{clip}.mp4")
    activitynet = {f"v{n}": {"sentences": ["red", "left", "moving"], "timestamps": [[0, 1], [1, 2], [2, 3]]}
                   for n in range(VIDEOS)}  # fmt: skip
    (path / "mirror/toy/activitynet.json").write_text(json.dumps(activitynet))
    for corpus, entry in FILES.items():
        text = "".join(f"{json.dumps(entry(n))}\n" for n in range(VIDEOS))
        (path / f"mirror/toy/{corpus}.jsonl").write_text(text)
    captions = [{"video_id": f"v{n}", "caption": word} for n in range(VIDEOS) for word in (WORDS[n % 4], "circle")]
    (path / "mirror/toy/captions.json").write_text(json.dumps({"sentences": captions}))
    (path / "mirror/toy/one.json").write_text(json.dumps({"sentences": captions[::2]}))
    place = {"name": "toy", "mirror": str(path / "mirror"), "cache": str(path / "cache"), "suffix": ".mp4"}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(MIRROR_VARIABLE, raising=False)  # it wins over `mirror`
        for corpus in (*FILES, "activitynet"):
            split = {"annotations": f"{corpus}.json{'' if corpus == 'activitynet' else 'l'}", "rows": VIDEOS}
            suffix = {"suffix": None} if corpus == "long_videos" else {}
            block = place | suffix | {"corpus": corpus, "splits": {"train": split}} | SETTINGS.get(corpus, {})
            target = {"_target_": "lightning_modules.datasets.video.annotated.prepare"}
            settings.bind(target | block, "conf/dataset/toy/tiny.yaml")(path / corpus)
        split = {"auxiliary": None, "videos": None, "rows": VIDEOS}
        splits = {"train": {"annotations": "captions.json", **split}, "test": {"annotations": "one.json", **split}}
        corpora.prepare(path / "captions", corpus="msr_vtt", splits=splits, list_mirrors=[], **place)
    return path


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: [])  # no workers, unless a test wants them


def bound(home, target, corpus, seed, values):
    texts = {"tokenizer": str(home / "tokenizer"), "text_length": 6} if corpus != "classes" else {}
    common = {"splits": {"train": {"source": "train", "rows": None}}, "batch_size": 4, "evaluation_batch_size": 5,
              "mirror": str(home / "mirror"), "max_broken": 0.02}  # fmt: skip
    block = {"_target_": f"lightning_modules.{target}", **common, **texts, **values}
    return settings.bind(block, "conf/system/toy.yaml: data", folder=home / corpus, seed=seed)()


def data(home, corpus="paragraphs", seed=3, **changes):
    values = {"clips": 2, "frames": 2, "size": [12, 16], "whole": [20, 30], "central": 0.9, "area": [0.8, 1.0],
              "sentences": None if corpus == "classes" else 2}  # fmt: skip
    return bound(home, "datamodules.annotated_videos.LongVideos", corpus, seed, values | changes)


def judged(module):
    """All evaluation batches of the rows that are trained on, as one."""
    batches = list(module.evaluation_batches("train"))
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0] if name != "broken"}


def words(module, token_ids):
    return module.tokenizer.decode(np.asarray(token_ids).reshape(-1, token_ids.shape[-1]))


def test_a_file_is_shown_as_clips_in_a_row_with_their_times(home):
    module = data(home)
    batches = list(module.evaluation_batches("train"))
    assert [tuple(batch["video"].shape) for batch in batches] == [(n, *module.video_shape) for n in (5, 5, 3)]
    assert batches[0]["video"].dtype == torch.uint8 and all(batch["broken"] == 0 for batch in batches)
    for video in torch.cat([batch["video"] for batch in batches]):
        assert numbers(video.permute(1, 2, 3, 0).numpy()) == [0, 3, 7, 11]
    expected = torch.tensor([[0.15, 0.9]] * 5)  # of frames 0 and 3, 7 and 11, ten a second
    assert torch.allclose(batches[0]["clip_times"], expected)


def test_a_paragraph_has_so_many_sentences_and_a_missing_one_is_masked(home):
    module = data(home, sentences=2)
    found = judged(module)
    assert found["token_ids"].shape == found["attention_mask"].shape == (VIDEOS, 2, 6)
    assert words(module, found["token_ids"][0]) == ["red red circle", "moving left"]
    found = judged(module := data(home, sentences=4))
    assert words(module, found["token_ids"][1]) == ["circle", "red circle", "moving left", ""]
    assert not found["attention_mask"][:, 3].any() and (found["token_ids"][:, 3] == module.tokenizer.pad_id).all()
    assert found["attention_mask"][:, :3].any(-1).all() and "sentence_times" not in found
    found = judged(module := data(home, sentences=None, text_length=12))
    assert found["token_ids"].shape == (VIDEOS, 12) and words(module, found["token_ids"][:1]) == [
        "red red circle moving left"
    ]
    assert (module.task, module.num_classes, module.kinds) == ("sentences", None, [])


def test_times_of_sentences_are_merged_with_them(home):
    found = judged(data(home, "activitynet", sentences=2))
    assert torch.equal(found["sentence_times"][0], torch.tensor([[0.0, 2.0], [2.0, 3.0]]))
    found = judged(data(home, "activitynet", sentences=4))
    assert torch.equal(found["sentence_times"][0, :3], torch.tensor([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]]))
    assert found["sentence_times"][:, 3].isnan().all()
    assert "sentence_times" not in judged(data(home, "activitynet", sentences=None))


def test_options_each_have_question_option_and_subtitles(home):
    module = data(home, "how2qa", sentences=4, clips=2, frames=2)
    found = judged(module)
    assert found["token_ids"].shape == (VIDEOS, 4, 4, 6) and found["labels"].tolist() == [n % 4 for n in range(VIDEOS)]
    assert words(module, found["token_ids"][0, 2]) == ["red", "left", "red circle", "left"]
    assert words(module, judged(data(home, "how2qa", sentences=2))["token_ids"][0, 2]) == ["red", "left"]
    joined = judged(data(home, "how2qa", sentences=None, text_length=12))["token_ids"]
    assert joined.shape == (VIDEOS, 4, 12) and words(module, joined[0, 3:]) == ["red moving red circle left"]
    assert (module.task, module.num_classes) == ("options", 4)
    mc = data(home, "msrvtt_mc", sentences=None)
    assert words(mc, judged(mc)["token_ids"][0]) == [*WORDS]


def test_frames_within_the_span_are_labelled(home):
    found = judged(data(home, "how2qa"))  # seconds 0.3 to 0.6 of 1.2: the second of four quarters
    assert found["frame_labels"].tolist() == [[0, 1, 0, 0]] * VIDEOS
    assert torch.allclose(found["frame_weights"][0], torch.tensor([2 / 3, 2.0, 2 / 3, 2 / 3]))


@pytest.mark.parametrize(("span", "seconds", "frames", "inside", "weight"), [
    ((7.2, 18.0), 60.0, 8, [1], 4.0), ((0.0, 0.0), 30.0, 8, [0], 4.0), ((59.9, 70.0), 60.0, 8, [7], 4.0),
    ((np.nan, np.nan), 30.0, 8, [*range(8)], 0.5), ((0.0, 60.0), 60.0, 8, [*range(8)], 0.5),
    ((10.0, 11.0), 181 / 3, 32, [5], 16.0),
])  # fmt: skip
def test_spans_are_labelled_as_the_official_code_does(span, seconds, frames, inside, weight):
    """Values that `get_temporal_loss_label` of how2qa_dataset.py gave."""
    labels, weights = span_labels(span, seconds, frames)
    assert np.flatnonzero(labels).tolist() == inside
    assert np.allclose(weights[labels == 1], weight)
    assert np.allclose(weights[labels == 0], frames * 0.5 / max(1, frames - len(inside)))


def test_open_questions_that_cannot_be_answered_are_judged_but_not_trained_on(home):
    module = data(home, "msrvtt_qa", sentences=1, batch_size=8)
    found = judged(module)
    assert module.num_classes == 1 and module.kinds == ["moving"]
    assert len(module.rows["train"][1]) == 8 and set(found["labels"].tolist()) == {0}
    assert [batch["labels"].tolist() for batch in loaded(module)] == [[0] * 8]
    test = data(home, "msrvtt_qa", sentences=1, splits={"test": {"source": "train", "rows": None}})
    labels = torch.cat([batch["labels"] for batch in test.evaluation_batches("test")])
    assert labels.tolist() == [0 if n % 3 else -1 for n in range(VIDEOS)]
    assert found["kinds"].tolist() == [0] * 8 and found["token_ids"].shape == (8, 1, 6)


def test_classes_have_no_texts(home):
    found, with_tokenizer = (
        judged(data(home, "classes")),
        data(home, "classes", tokenizer=str(home / "tokenizer"), text_length=6),
    )
    assert found.keys() == {"video", "clip_times", "labels"} == judged(with_tokenizer).keys()
    assert found["labels"].tolist() == [n % 4 for n in range(VIDEOS)]


def test_a_run_is_shown_from_anywhere_its_texts_are_those_of_its_clips(home):
    module = data(home, "long_videos")
    found = judged(module)
    assert numbers(found["video"][0].permute(1, 2, 3, 0).numpy()) == [0, 4, 0, 4]
    assert words(module, found["token_ids"][0]) == ["red", "circle"]
    assert torch.allclose(found["clip_times"][0], torch.tensor([0.2, 1.0]))  # the first clip lasts 0.8 s
    seen = set()
    for epoch in range(3):
        for batch in loaded(module, epoch):
            seen |= {tuple(words(module, token_ids)) for token_ids in batch["token_ids"]}
    assert seen == {("red", "circle"), ("circle", "left")}


def test_beginnings_are_those_of_equal_parts():
    """np.linspace(0, n, 9)[:8] of pretrain_dataset.py, its decimals cut off."""
    assert beginnings(40, 8).tolist() == [0, 5, 10, 15, 20, 25, 30, 35]
    assert beginnings(10, 4).tolist() == [0, 2, 5, 7] and beginnings(1, 3).tolist() == [0, 0, 0]


def test_training_batches_depend_on_seed_epoch_and_place_alone(home):
    first, again, later = loaded(data(home)), loaded(data(home)), loaded(data(home), epoch=1)
    assert len(first) == VIDEOS // 4 and same(first, again)
    assert not same(first, later) and not same(first, loaded(data(home, seed=4)))
    assert data(home).train_dataloader().dataset[1, 2]["video"].equal(later[2]["video"])


def test_workers_change_nothing(home, monkeypatch):
    alone, judged_alone = loaded(data(home)), judged(data(home))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: [0, 1])
    assert data(home).train_dataloader().num_workers == 2
    assert all(a[name].equal(b[name]) for a, b in zip(alone, loaded(data(home)), strict=True) for name in a)
    assert all(judged(data(home))[name].equal(x) for name, x in judged_alone.items())


def test_training_cuts_and_mirrors_all_frames_of_a_video_alike(home):
    videos = data(home).videos("train")
    gradient = np.broadcast_to(np.arange(48, dtype=np.uint8)[None, :, None] * 5, (32, 48, 3)).copy()
    drawn = np.random.default_rng(0).random((10, 4))
    plain, mirrored = (videos._cut(gradient, uniforms=drawn, mirrored=flag) for flag in (False, True))
    assert (
        plain.shape == (12, 16, 3)
        and (plain[:, ::-1] == mirrored).all()
        and (np.diff(plain[0, :, 0].astype(int)) > 0).all()
    )
    assert (videos._cut(gradient, uniforms=drawn, mirrored=False) == plain).all()

    videos = [data(home, flip=False).videos("train").read(0, (1, 2, word))["video"] for word in range(6)]
    assert len({tuple(video.flatten().tolist()) for video in videos}) > 3


def test_evaluation_shows_the_central_part(home):
    """Of 20 x 30 pixels, the central 18 x 27, one pixel from above and (rounded to even) two from the left."""
    videos = data(home, size=[18, 27]).videos("train")
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    assert (videos._centre(picture) == picture[1:19, 2:29]).all()


def test_broken_videos_are_replaced_counted_and_bounded(home, tmp_path):
    for name in ("tokenizer", "paragraphs"):
        shutil.copytree(home / name, tmp_path / name)
    shutil.copytree(home / "mirror", tmp_path / "mirror")
    (tmp_path / "mirror/toy/videos/v3.mp4").write_bytes(b"nothing")
    (tmp_path / "mirror/toy/videos/v5.mp4").unlink()
    batches = list(data(tmp_path).evaluation_batches("train"))
    assert [len(batch["video"]) for batch in batches] == [4, 4, 3]
    assert [batch["broken"].item() for batch in batches] == [1, 1, 0]
    trained = loaded(data(tmp_path, max_broken=0.1))
    assert all(len(batch["video"]) == 4 for batch in trained) and sum(batch["broken"].item() for batch in trained) >= 1
    with pytest.raises(ValueError, match=r"1 of 5 videos are broken, more than max_broken \(0.0\) allows"):
        list(data(tmp_path, max_broken=0.0).evaluation_batches("train"))


def test_an_index_of_captions_gives_one_of_them(home):
    module = data(home, "captions", source="caption", sentences=1)
    seen = {text for epoch in range(3) for batch in loaded(module, epoch) for text in words(module, batch["token_ids"])}
    assert seen == {*WORDS} and module.task == "captions"
    with pytest.raises(ValueError, match="videos of split 'train' have several sentences"):
        list(module.evaluation_batches("train"))
    splits = {"test": {"source": "test", "rows": None}, "val": {"source": "train", "rows": 3}}
    test = data(home, "captions", source="caption", sentences=None, splits=splits)
    assert len(next(test.evaluation_batches("val"))["video"]) == 3, "with the first caption"
    found = next(iter(test.evaluation_batches("test")))
    assert words(test, found["token_ids"]) == [WORDS[n % 4] for n in range(5)]


@pytest.mark.parametrize(("corpus", "changes", "told"), [
    ("paragraphs", {"source": "caption"}, r"source is 'caption', but .*paragraphs has one column of sentences"),
    ("captions", {}, r"source is null, but .*captions has several columns of sentences: name one"),
    ("captions", {"source": "subtitle"}, r"13 of 13 videos of split 'train' have no subtitle, the first is v0.mp4"),
    ("paragraphs", {"tokenizer": None, "text_length": None}, r"tokenizer is null, but .*paragraphs has texts: name"),
    ("paragraphs", {"tokenizer": None}, r"tokenizer is None and text_length is 6: give both, or null for both"),
    ("how2qa", {"sentences": 1}, r"sentences is 1, but a question and an option are 2: raise it"),
    ("long_videos", {"clips": 4}, r"13 runs of split 'train' have fewer than clips \(4\), the first 3, from r0"),
    ("paragraphs", {"size": [12]}, r"size is \[12\], "),
    ("paragraphs", {"area": [0.9, 0.8]}, r"area \(\[0.9, 0.8\]\) must be two shares of a frame"),
    ("paragraphs", {"central": 0.0}, r"central \(0.0\) must be a share of both sides of a frame, above 0"),
    ("paragraphs", {"batch_size": 14}, r"data.batch_size \(14\) must be between 1 and the number of rows \(13\)"),
    ("paragraphs", {"splits": {"train": {"source": "dev", "rows": None}}}, r"split source 'dev' is not stored"),
    ("paragraphs", {"splits": {"test": {"source": "train", "rows": None}}}, r"there is no split 'train'"),
    ("paragraphs", {"text_length": 2}, r"text_length is 2, expected greater than or equal to 3"),
    ("paragraphs", {"frames": "2"}, r"frames is '2', expected"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_told(home, corpus, changes, told):
    with pytest.raises(ValueError, match=told):
        data(home, corpus, **changes).train_dataloader()


def test_missing_videos_and_a_changed_index_are_told(home, tmp_path):
    with pytest.raises(DataUnavailable, match="toy: videos could not be had"):
        data(home, mirror=str(tmp_path)).train_dataloader()
    shutil.copytree(home / "paragraphs", tmp_path / "paragraphs")
    shutil.copy(home / "how2qa/train.parquet", tmp_path / "paragraphs/train.parquet")
    shutil.copytree(home / "tokenizer", tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"train.parquet is not what was prepared"):
        data(tmp_path, mirror=str(home / "mirror")).train_dataloader()
