import numpy as np
import pytest
import torch

from lightning_modules import settings
from lightning_modules.datamodules.video_texts import VideoTextBatches, deal, shown_frames
from lightning_modules.datasets import storage
from lightning_modules.datasets.splits import Portion
from lightning_modules.datasets.world import views
from tests.batches import loaded

OPTIONS = {"frames": 5, "colors": 2, "shapes": 1, "places": ["night"], "shared_words": 0.0}
CLASSES = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("world") / "video_text"
    sizes = {"train": 200, "test": 64}
    views.prepare(path, view="video_text", seed=1, sizes=sizes, image_size=16, options=OPTIONS, workers=1)
    return path


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    path, options = tmp_path_factory.mktemp("world") / "clips", {"frames": 4, "objects": [1, 1], "shared_words": 0.5}
    views.prepare(path, view="clips", seed=1, sizes={"train": 20}, image_size=16, options=options, workers=1)
    return path


def data(folder, seed=3, **changes):
    values = {
        "splits": {"train": {"source": "train", "rows": 40}, "test": {"source": "test", "rows": None}},
        "sources": ["caption", "subtitle"],
        "tokenizer": None,
        "text_length": 10,
        "frames": None,
        "batches": "shuffled",
        "batch_size": 8,
        "evaluation_batch_size": 30,
    } | changes
    block = {"_target_": "lightning_modules.datamodules.video_texts.VideoTexts", **values}
    return settings.bind(block, "conf/system/toy.yaml: data", folder=folder, seed=seed)()


def test_an_auxiliary_caption_and_a_subtitle_are_joined(folder):
    found = data(folder, sources=["joined"], text_length=20)
    rows, stored = found.rows["test"][1], found.stored["test"]
    pairs = zip(stored["auxiliary_caption"][rows], stored["subtitle"][rows], strict=True)
    expected, _ = found.tokenizer([f"{caption}. with subtitle: {subtitle}" for caption, subtitle in pairs], 20)
    batches = list(found.evaluation_batches("test"))
    assert np.array_equal(torch.cat([batch["joined_token_ids"] for batch in batches]).numpy(), expected)
    assert "images" not in batches[0]


def test_a_batch_has_clips_sentences_and_labels(folder):
    found = data(folder, sources=["subtitle", "auxiliary", "caption"])
    batch = loaded(found)[0]
    assert found.video_shape == (3, 5, 16, 16)
    assert batch["video"].shape == (8, 3, 5, 16, 16) and batch["video"].dtype == torch.uint8
    assert batch["video"].is_contiguous()
    assert batch["images"].equal(batch["video"][:, :, 2])
    assert sorted(batch) == sorted([
        "video", "images", "labels", *(f"{source}_{part}" for source in ("subtitle", "auxiliary", "caption")
                             for part in ("token_ids", "attention_mask"))
    ])  # fmt: skip
    assert batch["caption_token_ids"].shape == batch["caption_attention_mask"].shape == (8, 10)
    assert batch["caption_token_ids"].dtype == torch.int64 and batch["caption_attention_mask"].dtype == torch.bool


def test_what_belongs_together_stays_together(folder):
    """Evaluation batches are the stored rows in order, and training batches are such rows."""
    found, stored = data(folder), storage.read(folder, "test")
    batches = list(found.evaluation_batches("test"))
    assert [len(batch["video"]) for batch in batches] == [30, 30, 4]
    video, ids, labels = (torch.cat([batch[name] for batch in batches]) for name in
                          ("video", "caption_token_ids", "labels"))  # fmt: skip
    np.testing.assert_array_equal(video.numpy().transpose(0, 2, 3, 4, 1), stored["video"])
    np.testing.assert_array_equal(labels.numpy(), stored["label"])
    assert found.tokenizer.decode(ids.numpy()) == stored["caption"].tolist()

    train = storage.read(folder, "train")
    captions = {video.tobytes(): caption for video, caption in zip(train["video"], train["caption"], strict=True)}
    for batch in loaded(found):
        said = found.tokenizer.decode(batch["caption_token_ids"].numpy())
        for clip, caption in zip(batch["video"].numpy().transpose(0, 2, 3, 4, 1), said, strict=True):
            assert captions[np.ascontiguousarray(clip).tobytes()] == caption


def test_a_batch_depends_on_seed_epoch_and_step_alone(folder):
    clips = [torch.cat([batch["video"] for batch in loaded(data(folder), epoch)]) for epoch in (0, 0, 1)]
    assert clips[0].equal(clips[1]) and not clips[0].equal(clips[2])
    assert len(clips[0].flatten(1).unique(dim=0)) == len(clips[2].flatten(1).unique(dim=0)) == 40
    loader = data(folder).train_dataloader()
    loader.dataset[0, 3]
    assert loader.dataset[1, 2]["video"].equal(clips[2][16:24])


def test_batches_of_classes_have_each_once(folder):
    found = data(folder, batches="classes", splits={"train": {"source": "train", "rows": None}})
    for epoch in range(2):
        batches = loaded(found, epoch)
        assert len(batches) == 200 // CLASSES
        for batch in batches:
            assert batch["labels"].tolist() == list(range(CLASSES))
    assert len(torch.cat([batch["video"] for batch in batches]).flatten(1).unique(dim=0)) > 190


def test_processes_and_accumulated_batches_share_a_step():
    columns = {"video": torch.arange(13).view(13, 1, 1, 1, 1)}
    settings = {"seed": 0, "batches": "shuffled", "batch_size": 6}
    whole = VideoTextBatches(columns, **settings)[2, 1]["video"]
    halves = [VideoTextBatches(columns, **settings, portion=Portion(rank, 2))[2, 1] for rank in range(2)]
    accumulated = VideoTextBatches(columns, **settings, portion=Portion(0, 1, 3))
    assert len(accumulated) == 6
    for batches in (halves, [accumulated[2, place] for place in (3, 4, 5)]):
        assert torch.cat([batch["video"] for batch in batches]).equal(whole)
    with pytest.raises(ValueError, match=r"data.batch_size \(6\) must be a multiple of 4"):
        VideoTextBatches(columns, **settings, portion=Portion(0, 4))


def test_rare_classes_come_again():
    columns = {"video": torch.arange(12).view(12, 1, 1, 1, 1), "labels": torch.tensor([0] * 9 + [1] * 3)}
    batches = VideoTextBatches(columns, seed=0, batches="classes", batch_size=2)
    order = batches.epoch_order(4)
    assert order.shape == (6, 2)
    assert (order[:, 0] < 9).all() and len(order[:, 0].unique()) == 6
    assert order[:3, 1].equal(order[3:, 1]) and sorted(order[:3, 1].tolist()) == [9, 10, 11]


@pytest.mark.parametrize("rows", [8, 20, 40])
def test_a_number_of_rows_is_balanced_random_and_nested(folder, rows):
    splits = {"train": {"source": "train", "rows": rows}}
    found, more, other = (data(folder, splits={"train": {"source": "train", "rows": n}}, seed=seed).rows["train"][1]
                          for n, seed in ((rows, 3), (2 * rows, 3), (rows, 4)))  # fmt: skip
    labels = storage.read(folder, "train")["label"]
    counts = np.bincount(labels[found], minlength=CLASSES)
    assert counts.max() - counts.min() <= 1 and counts.sum() == rows == len(set(found))
    assert more[:rows].tolist() == found.tolist()
    assert set(other) != set(found)
    assert len(loaded(data(folder, splits=splits, batches="classes"))) == rows // CLASSES


def test_splits_of_one_source_are_disjoint(folder):
    parts = {name: {"source": "train", "rows": 100} for name in ("train", "val")}
    train, val = (data(folder, splits=parts).rows[name][1] for name in parts)
    assert not set(train) & set(val)


def test_deal():
    labels = np.array([0, 0, 0, 1, 1, 2])
    order = np.array([5, 2, 1, 4, 0, 3])
    assert deal(order, labels).tolist() == [5, 2, 4, 1, 3, 0]


@pytest.mark.parametrize(("frames", "expected"), [
    (None, [0, 1, 2, 3, 4]), (1, [2]), (2, [0, 4]), (3, [0, 2, 4]), (4, [0, 1, 2, 4])
])  # fmt: skip
def test_fewer_frames_are_shown_evenly(folder, frames, expected):
    found = data(folder, frames=frames)
    [first, *_] = found.evaluation_batches("test")
    stored = storage.read(folder, "test")["video"][:30, expected]
    np.testing.assert_array_equal(first["video"].numpy().transpose(0, 2, 3, 4, 1), stored)
    assert found.video_shape == (3, len(expected), 16, 16)
    assert "images" not in first
    assert shown_frames(6, 1).tolist() == [3]


def test_data_without_classes(unlabelled):
    found = data(unlabelled, splits={"train": {"source": "train", "rows": 16}}, text_length=20)
    assert found.num_classes is None
    assert "labels" not in loaded(found)[0]
    with pytest.raises(ValueError, match="batches is 'classes', but the data set has no column 'label'"):
        data(unlabelled, splits={"train": {"source": "train", "rows": 16}}, batches="classes").train_dataloader()


@pytest.mark.parametrize(("changes", "message"), [
    ({"splits": {"dev": {"source": "train", "rows": 4}}}, r"splits has \['dev'\]"),
    ({"splits": {}}, r"splits has \[\]"),
    ({"sources": ["caption", "caption"]}, r"sources \(caption, caption\) must be some of subtitle, auxiliary, caption"),
    ({"sources": ["speech"]}, "data.sources.0 is 'speech', expected 'subtitle'"),
    ({"sources": []}, "data.sources is"),
    ({"text_length": 2}, "data.text_length is 2"),
    ({"frames": 0}, "data.frames is 0"),
    ({"batches": "random"}, "data.batches is 'random'"),
    ({"batch_size": 41}, r"batch_size \(41\) must be between 1 and the number of rows \(40\)"),
    ({"batches": "classes", "batch_size": 9}, r"batch_size \(9\) must be 8: each of the classes once"),
    ({"frames": 6}, r"frames \(6\) must be between 1 and 5"),
    ({"splits": {"test": {"source": "test", "rows": None}}}, "there is no split 'train'"),
])  # fmt: skip
def test_wrong_settings_are_refused(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        data(folder, **changes).train_dataloader()


def test_data_of_another_kind_are_refused(tmp_path):
    options = {"noise": 1, "fading": 0.0}
    views.prepare(
        tmp_path / "set", view="graded", seed=1, sizes={"train": 9}, image_size=16, options=options, workers=1
    )
    found = data(tmp_path / "set", splits={"train": {"source": "train", "rows": None}})
    with pytest.raises(ValueError, match=r"has pictures of shape \[16, 16, 3\], expected raw clips"):
        _ = found.video_shape
