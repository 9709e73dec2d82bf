"""The module on video files, in every task: what it reads and gives, and the data that it refuses."""

import pytest
import torch

from lightning_modules.datamodules.annotated_videos import LongVideos
from lightning_modules.lf_vila.evaluation import answered
from stages.composing import compose
from tests.datamodules import test_annotated_videos as annotated_videos
from tests.lf_vila.test_module import build, events, folder  # noqa: F401  (fixture)

home, plain_environment = annotated_videos.home, annotated_videos.plain_environment
SPLITS = {"train": {"source": "train", "rows": 8}, "val": {"source": "train", "rows": 5}}
NO_TEXT = {"tokenizer": None, "text_length": None, "sentences": None}
TASKS = [
    ("paragraphs", {}, {}),
    ("paragraphs", {"task": "fuse"}, {}),
    ("paragraphs", {"task": "fuse", "frozen": False}, {}),
    ("msrvtt_qa", {"task": "answer", "answers": 9}, {"sentences": 1}),
    ("how2qa", {"task": "choose"}, {}),
    ("classes", {"task": "classify", "answers": 4}, NO_TEXT),
]


@pytest.fixture(scope="module")
def tiny() -> dict:
    return compose("tiny", system="lf_vila")["system"]


def data(home, corpus="paragraphs", **changes) -> LongVideos:
    sizes = {"clips": 4, "frames": 2, "size": [24, 24], "whole": [30, 30], "sentences": 4, "splits": SPLITS}
    return annotated_videos.data(home, corpus, **sizes | changes)


@pytest.mark.parametrize(("corpus", "options", "changes"), TASKS)
def test_every_task_trains_and_is_judged(tiny, home, corpus, options, changes):
    module, given = build(tiny, **options), data(home, corpus, **changes)
    module.recipe = {"validate_every": {"epochs": 1}}
    module.check_data(given)
    module.training_step(next(iter(given.train_dataloader()))).backward()
    left = [name for name, x in module.named_parameters() if x.requires_grad and x.grad is None]
    assert not [name for name in left if not name.startswith("network.text_encoder.cls")], left
    with torch.no_grad():
        watched = module.eval().validate(given, given.evaluation_batches("val"))
    assert watched["loss"].isfinite()
    found = module.predictions(given, torch.device("cpu"))
    if "logits/val" in found:
        columns = {name.removesuffix("/val"): x.numpy() for name, x in found.items()}
        assert 0 <= answered(columns)["accuracy_percent"] <= 100 and len(columns["logits"]) == 5
    assert ("frames/val" in found) == (corpus == "how2qa")


def test_a_last_batch_with_too_few_videos_is_not_watched(tiny, home):
    """Five videos in batches of four: the losses of pairs are those of the first four."""
    for options in ({}, {"task": "fuse"}):
        module, given = build(tiny, **options).eval(), data(home, evaluation_batch_size=4)
        module.recipe = {"validate_every": {"epochs": 1}}
        module.check_data(given)
        with torch.no_grad():
            torch.manual_seed(0)
            found = module.validate(given, given.evaluation_batches("val"))
            torch.manual_seed(0)
            first = module.validate(given, [next(iter(given.evaluation_batches("val")))])
        assert found.keys() == first.keys() and torch.equal(found["loss"], first["loss"])


@pytest.mark.parametrize(
    ("corpus", "options", "changes", "told"),
    [
        ("paragraphs", {"task": "choose"}, {}, r"the data has sentences, but model.task is 'choose', expected options"),
        ("msrvtt_qa", {}, {}, r"the data has answers, but model.task is 'align', expected captions or sentences"),
        ("how2qa", {"task": "classify", "answers": 4}, {}, r"has options, but model.task is 'classify', expected clas"),
        ("classes", {"task": "classify", "answers": 3}, NO_TEXT, r"4 answers or classes, but model.answers is 3"),
        ("paragraphs", {}, {"sentences": None}, r"data.sentences is None, but task 'align' reads paragraphs: name a"),
        ("paragraphs", {}, {"tokenizer": None, "text_length": None}, r"data.tokenizer is None .* name a tokenizer"),
        ("paragraphs", {}, {"batch_size": 3}, r"data.batch_size is 3, but the losses of task 'align' compare 4 videos"),
        ("paragraphs", {"task": "fuse"}, {"batch_size": 2}, r"data.batch_size is 2, but the losses of task 'fuse'"),
        (
            "paragraphs",
            {},
            {"evaluation_batch_size": 1},
            r"data.evaluation_batch_size is 1, .* compare 4 videos: raise",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(tiny, home, corpus, options, changes, told):
    module = build(tiny, **options)
    module.recipe = {"validate_every": {"epochs": 1}}
    with pytest.raises(ValueError, match=told):
        module.check_data(data(home, corpus, **changes))


def test_too_few_rows_to_watch_are_refused_where_they_are_watched(tiny, home):
    few = data(home, splits={**SPLITS, "val": {"source": "train", "rows": 1}})
    module = build(tiny)
    module.check_data(few)
    module.recipe = {"validate_every": {"epochs": 1}}
    with pytest.raises(ValueError, match=r"data.splits.val.rows is 1, but the losses of task 'align' compare 4"):
        module.check_data(few)
    build(tiny, time_weight=0.0).check_data(few)


def test_spans_that_are_not_known_cost_nothing_or_are_refused(tiny, home):
    given = data(home, "msrvtt_mc", sentences=1)
    batch = next(iter(given.train_dataloader()))
    with pytest.raises(ValueError, match=r"model.span_weight is 1.0, but the data knows no spans .*: set it to 0"):
        build(tiny, task="choose").training_step(batch)
    assert build(tiny, task="choose", span_weight=0.0).training_step(batch).isfinite()


def test_drawn_clips_are_checked_likewise(tiny, folder):  # noqa: F811
    with pytest.raises(ValueError, match=r"data.batch_size is 4, but the losses of task 'align' compare 5 videos"):
        build(tiny, others=4).check_data(events(folder, batch_size=4))
