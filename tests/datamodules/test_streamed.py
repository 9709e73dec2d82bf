"""Streamed images: the crops and the order depend on seed and epoch alone, and every portion of a step is its own."""

import io
import os
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules.datamodules.labelled import ImageData, LabelledImages
from lightning_modules.datamodules.streamed import StreamedImages, random_box
from lightning_modules.datasets import storage

ROWS = 48


def encoded(row: int) -> bytes:
    """A picture of its own size whose colour is its row."""
    file = io.BytesIO()
    Image.new("RGB", (20 + row % 5, 30 - row % 7), (row, row, row)).save(file, "PNG")
    return file.getvalue()


def columns(images):
    return {"id": np.arange(len(images)), "image": images, "label": np.zeros(len(images), np.int64)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoded")
    rows = [(f"{row}.png", encoded(row), row % 3) for row in range(ROWS)]
    splits = {
        name: storage.write_blocks(path, name, storage.numbered_blocks(rows), "png", None, row_group=8)
        for name in ("train", "val")
    }
    storage.write_card(path, name="toy", splits=splits, codec="png", shape=None, num_classes=3, source="made up")
    return path


def data(folder, trainer=None, **options):
    splits = {"train": {"source": "train", "rows": None}, "test": {"source": "val", "rows": None}}
    sizes = {"batch_size": 16, "evaluation_batch_size": 20, "image_size": 16}
    crops = {"crop_scale": [0.2, 1.0], "centre_share": 0.875}
    module = StreamedImages(**{"folder": folder, "seed": 1, "splits": splits, **sizes, **crops, **options})
    module.trainer = trainer
    return module


def epoch(module, number=0, workers=None, monkeypatch=None):
    if workers is not None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(workers))
    loader = module.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def test_it_is_image_data_with_the_shape_that_the_network_gets(folder):
    module = data(folder)
    assert isinstance(module, ImageData)
    assert (module.image_shape, module.num_classes, module.copies) == ((16, 16, 3), 3, None)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_has_each_picture_once_whatever_the_workers(folder, workers, monkeypatch):
    batches = epoch(data(folder), 3, workers, monkeypatch)
    assert [tuple(batch["images"].shape) for batch in batches] == [(16, 3, 16, 16)] * 3
    colours = torch.cat([batch["images"][:, 0, 8, 8] for batch in batches])
    labels = torch.cat([batch["labels"] for batch in batches])
    assert sorted(colours.tolist()) == list(range(ROWS))
    assert torch.equal(colours.long() % 3, labels)
    for one, other in zip(batches, epoch(data(folder), 3, 0, monkeypatch), strict=True):
        assert torch.equal(one["images"], other["images"])
    assert not torch.equal(batches[0]["labels"], epoch(data(folder), 4, 0, monkeypatch)[0]["labels"])


def test_ranks_and_accumulated_batches_cut_the_same_steps(folder, monkeypatch):
    whole = [sorted(batch["images"][:, 0, 8, 8].tolist()) for batch in epoch(data(folder), 0, 0, monkeypatch)]
    parts = []
    for rank in range(2):
        trainer = SimpleNamespace(global_rank=rank, world_size=2, accumulate_grad_batches=2)
        parts.append(epoch(data(folder, trainer), 0, 0, monkeypatch))
    for step, expected in enumerate(whole):
        own = [part[place]["images"][:, 0, 8, 8].tolist() for part in parts for place in (2 * step, 2 * step + 1)]
        assert sorted(chain(*own)) == expected
        assert {len(rows) for rows in own} == {4}
    trainer = SimpleNamespace(global_rank=0, world_size=3, accumulate_grad_batches=1)
    with pytest.raises(ValueError, match=r"data.batch_size \(16\) must be a multiple of 3"):
        data(folder, trainer).train_dataloader()


def test_evaluation_goes_over_the_split_in_order(folder):
    batches = list(data(folder).evaluation_batches("test"))
    assert [len(batch["labels"]) for batch in batches] == [20, 20, 8]
    assert torch.cat([batch["images"][:, 0, 0, 0] for batch in batches]).tolist() == list(range(ROWS))


def test_rows_that_are_held_out_are_not_trained_on(folder, monkeypatch):
    splits = {"train": {"source": "train", "rows": None}, "val": {"source": "train", "rows": 9}}
    module = data(folder, splits=splits)
    held = [int(x) for batch in module.evaluation_batches("val") for x in batch["images"][:, 0, 0, 0]]
    assert len(held) == 9 and held == sorted(held) == module.rows["val"][1].tolist()
    trained = [int(x) for batch in epoch(module, 0, 0, monkeypatch) for x in batch["images"][:, 0, 8, 8]]
    assert len(trained) == 32 and not set(trained) & set(held)  # two steps of 16 of the 39 rows that are left


def test_boxes_lie_inside_with_areas_and_aspects_asked_for():
    random = np.random.default_rng(0)
    areas = []
    for _ in range(500):
        left, top, right, bottom = random_box(400, 300, (0.2, 1.0), random.random((10, 4)))
        width, height = right - left, bottom - top
        assert 0 <= left < right <= 400 and 0 <= top < bottom <= 300
        assert 0.74 < width / height < 1.35
        areas.append(width * height / (400 * 300))
    assert min(areas) > 0.19
    assert 0.45 < np.mean(areas) < 0.6
    assert random_box(1000, 10, (0.9, 1.0), random.random((10, 4))) == (493, 0, 506, 10)


@pytest.mark.parametrize(("overhang", "mean", "large"), [("redraw", 0.431, 0.013), ("clip", 0.519, 0.028)])
def test_a_box_that_hangs_over_is_drawn_again_or_clipped(overhang, mean, large):
    """Mean area and share of areas above nine tenths: 20,000 draws of torchvision's and of MAE's `util/crop.py`."""
    random = np.random.default_rng(0)
    boxes = [random_box(500, 375, (0.08, 1.0), random.random((10, 4)), overhang) for _ in range(5000)]
    areas = np.array([(right - left) * (bottom - top) for left, top, right, bottom in boxes]) / (500 * 375)
    assert (areas.mean(), (areas > 0.9).mean()) == pytest.approx((mean, large), abs=0.01)
    assert min(left for left, *_ in boxes) == 0 and max(right for _, _, right, _ in boxes) == 500


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": {"tune": {"source": "train", "rows": None}}}, r"splits has \['tune'\]"),
        ({"crop_scale": [0.5, 0.2]}, r"crop_scale \(\[0.5, 0.2\]\)"),
    ],
)
def test_mistakes_are_named(folder, options, message):
    with pytest.raises(ValueError, match=message):
        data(folder, **options)


def test_raw_pictures_are_for_the_other_module(tmp_path):
    images = np.zeros((4, 8, 8, 3), np.uint8)
    split = storage.write(tmp_path, "train", columns(images), "raw", (8, 8, 3))
    storage.write_card(
        tmp_path, name="raw", splits={"train": split}, codec="raw", shape=(8, 8, 3), num_classes=1, source=""
    )
    with pytest.raises(ValueError, match=r"stored raw.*LabelledImages"):
        data(tmp_path).image_shape  # noqa: B018


def test_resident_batches_are_cut_in_the_same_way(tmp_path):
    images = np.arange(48, dtype=np.uint8).reshape(48, 1, 1, 1).repeat(3, axis=3)
    split = storage.write(tmp_path, "train", columns(images), "raw", (1, 1, 3))
    storage.write_card(
        tmp_path, name="raw", splits={"train": split}, codec="raw", shape=(1, 1, 3), num_classes=1, source=""
    )

    def places(rank=0, processes=1, accumulated=1):
        module = LabelledImages(
            folder=tmp_path, seed=0, splits={"train": {"source": "train", "rows": None}}, copies=None, batch_size=12,
            evaluation_batch_size=12, augmentation="none", centre_crop=None,
        )  # fmt: skip
        module.trainer = SimpleNamespace(global_rank=rank, world_size=processes, accumulate_grad_batches=accumulated)
        return [batch["images"].flatten(1)[:, 0].tolist() for batch in module.train_dataloader()]

    whole, halves = places(), [places(rank, 2, 3) for rank in range(2)]
    assert len(whole) == 4 and len(halves[0]) == 12
    for step, rows in enumerate(whole):
        mine = [halves[rank][3 * step + place] for place in range(3) for rank in range(2)]
        assert list(chain(*mine)) == rows
