"""The module on clips of video files, in every task: what it reads, gives, and refuses."""

import numpy as np
import pytest
import torch
from safetensors.torch import save

from lightning_modules.hd_vila.evaluation import measured
from lightning_modules.hd_vila.hybrid_clips import HybridClips
from lightning_modules.hd_vila.module import HdVila
from lightning_modules.hd_vila.ranker import Ranker
from tests.datamodules import test_annotated_videos as annotated_videos
from tests.datamodules.test_annotated_videos import VIDEOS, WORDS
from tests.hd_vila import test_hybrid_clips as hybrid_clips
from tests.hd_vila.test_module import module

home, plain_environment = annotated_videos.home, annotated_videos.plain_environment


def data(home, corpus="paragraphs", **changes) -> HybridClips:
    return hybrid_clips.data(home, corpus, **{"batch_size": 4, "splits": SPLITS} | changes)


SPLITS = {"train": {"source": "train", "rows": 8}, "test": {"source": "train", "rows": 5}}


def network(**options) -> HdVila:
    return module(**{"clips": 2} | options)


def batch(data: HybridClips) -> dict[str, torch.Tensor]:
    return next(iter(data.train_dataloader()))


def test_middles_and_neighbours_are_read_as_they_are():
    """A batch of files whose neighbours are the means of whole frames gives what the whole frames give."""
    coarse = torch.randint(0, 256, (2, 3, 6, 8, 8), dtype=torch.uint8).float()
    frames = coarse.repeat_interleave(4, 3).repeat_interleave(4, 4)
    split = frames.unflatten(2, (2, 3)).permute(0, 2, 3, 1, 4, 5)  # videos clips frames 3 h w
    others = split[:, :, [0, 2]]
    means = torch.nn.functional.avg_pool2d(others.flatten(0, 2), 4).view(2, 2, 2, 3, 8, 8)
    given = {"middle": split[:, :, 1], "neighbours": means}
    for streams in ("hybrid", "high", "low"):
        model = network(streams=streams).eval()
        with torch.no_grad():
            whole = model(frames)
            torch.testing.assert_close(model.encode(*model.clips_of(given)), whole)
            if streams != "high":
                turned = {**given, "neighbours": means.flip(2)}
                with pytest.raises(AssertionError):
                    torch.testing.assert_close(model.encode(*model.clips_of(turned)), whole)


@pytest.mark.parametrize(
    ("corpus", "options", "columns"),
    [
        ("paragraphs", {}, {"videos", "texts", "belongs"}),
        ("paragraphs", {"task": "words", "tokenizer": "given", "mask_share": 0.9}, {"words", "found", "found_apart"}),
        ("msrvtt_qa", {"task": "answers", "num_answers": 9}, {"answers", "labels"}),
        ("msrvtt_mc", {"task": "choice"}, {"scores", "labels"}),
        ("msrvtt_mc", {}, {"videos", "options", "labels"}),
    ],
)
def test_every_task_trains_and_is_judged_on_more_clips(home, corpus, options, columns):
    given = data(home, corpus)
    if options.get("tokenizer") == "given":
        options = {**options, "tokenizer": str(home / "tokenizer")}
    model = network(**options)
    model.check_data(given)
    if corpus != "msrvtt_mc" or options:
        model.train()
        loss = model.training_step(batch(given))
        loss.backward()
        assert loss.isfinite() and any(x.grad.abs().max() > 0 for x in model.parameters() if x.grad is not None)
    judged = next(iter(given.evaluation_batches("test")))
    assert judged["middle"].shape[:2] == (5, 3) and given.clips == 2
    save(model.export())  # refuses tensors that share their memory
    found = model.predictions(given, torch.device("cpu"))
    assert {name for name in found if not name.startswith("flow/")} == {f"{name}/test" for name in columns}
    assert any(name.startswith("flow/own/") for name in found) == (model.task != "contrast")
    assert all(len(x) == 5 for name, x in found.items() if name != "texts/test")
    arrays = {name.removesuffix("/test"): x.numpy() for name, x in found.items()}
    if "labels" in columns:
        assert 0 <= measured(arrays, motions=None)["accuracy_percent"] <= 100


def test_the_mean_over_more_clips_is_what_is_judged(home):
    given, model = data(home), network().eval()
    judged = next(iter(given.evaluation_batches("test")))
    with torch.no_grad():
        maps = model.maps(*model.clips_of(judged))
        whole = model.encode(*model.clips_of(judged))
    assert maps.shape[:2] == (5, 3)
    single = (
        maps.mean((3, 4)).mean(1) @ model.network.transformer.v_proj.weight.T + model.network.transformer.v_proj.bias
    )
    torch.testing.assert_close(whole, torch.nn.functional.normalize(single, dim=-1))


def test_answers_and_choices_are_counted():
    options = np.stack([np.eye(3)[[0, 1, 2]], np.eye(3)[[1, 0, 2]]])
    arrays = {"videos": np.eye(3)[[0, 0]], "options": options, "labels": np.array([0, 0])}
    assert measured(arrays, None) == {"accuracy_percent": 50}
    arrays = {"scores": np.array([[0.1, 0.9], [0.5, 0.5]]), "labels": np.array([1, 0])}  # a tie is wrong
    assert measured(arrays, None) == {"accuracy_percent": 50}
    arrays = {"answers": np.array([3, 2, 1, 1]), "labels": np.array([3, 2, 1, -1])}  # one that cannot be given
    assert measured(arrays, None) == {"accuracy_percent": 75}


@pytest.mark.parametrize(
    ("corpus", "model", "given", "told"),
    [
        ("paragraphs", {"size": [64, 32]}, {}, r"data.size is \(32, 32\), but model.size is \(64, 32\)"),
        ("paragraphs", {"clips": 3}, {}, r"data.clips is 2, but model.clips is 3"),
        ("paragraphs", {"frames": 5}, {}, r"data.frames is 3, but model.frames is 5"),
        ("paragraphs", {}, {"sentences": 2}, r"data.sentences is 2, .* set it to null"),
        ("paragraphs", {"task": "choice"}, {}, r"the data has sentences, but model.task is 'choice', expected options"),
        ("msrvtt_qa", {}, {}, r"has answers, but model.task is 'contrast', expected captions or sentences or options"),
        ("paragraphs", {}, {"tokenizer": None, "text_length": None}, r"data.tokenizer is null, .* name it"),
        ("paragraphs", {}, {"text_length": 21}, r"data.text_length \(21\) is more than the 20 positions"),
    ],
)
def test_files_that_do_not_fit_are_refused(home, corpus, model, given, told):
    with pytest.raises(ValueError, match=told):
        network(**model).check_data(data(home, corpus, **given))


def test_more_answers_than_the_network_gives_are_refused(home):
    given = data(home, "msrvtt_qa")
    given.facts["answers"] = ["red", "green", "blue"]
    network(task="answers", num_answers=3).check_data(given)
    with pytest.raises(ValueError, match=r"the data has 3 answers, but model.num_answers is 2: raise it"):
        network(task="answers", num_answers=2).check_data(given)


def test_sentences_are_ranked_for_a_file_as_it_is_judged(home):
    settings = {"evaluation_clips": 3, "frames": 3, "stride": 2, "source_size": [36, 40], "size": [32, 32],
                "middles": "original", "tokenizer": str(home / "tokenizer"), "text_length": 6}  # fmt: skip
    model = network().eval()
    ranker = Ranker(model, {"data": settings})
    given = data(home, splits={"test": {"source": "train", "rows": None}})
    judged = model.predictions(given, torch.device("cpu"))
    assert len(judged["videos/test"]) == VIDEOS
    rows = given.rows["test"][1]
    file = given.annotations("test").columns["files"][0][0]
    ranked = dict(ranker.rank(home / "mirror/toy/videos" / file, [*WORDS]))
    texts = model.encode_texts(*(torch.from_numpy(x) for x in given.tokenizer([*WORDS], 6)))
    expected = (texts @ judged["videos/test"][0]).tolist()
    assert len(rows) == VIDEOS and [ranked[word] for word in WORDS] == pytest.approx(expected, abs=1e-5)
