"""Pictures whose stored values end below 255."""

import pytest
import torch

from lightning_modules.datasets import storage
from lightning_modules.imp.full_range import FullRangeImages

SPLITS = {"train": {"source": "all", "rows": 64}, "test": {"source": "all", "rows": 64}}


def images(folder, brightest):
    return FullRangeImages(
        folder=folder, seed=0, splits=SPLITS, brightest=brightest, batch_size=32, evaluation_batch_size=64,
        fit_to=[3, 8, 8],
    )  # fmt: skip


def test_the_brightest_value_becomes_white_and_black_stays_black(prepared):
    folder = prepared("world_many") / "digits"
    made = images(folder, 16)
    batch = next(made.evaluation_batches("test"))["images"]
    _, rows = made.rows["test"]
    stored = torch.from_numpy(storage.read(folder, "all")["image"][rows]).permute(0, 3, 1, 2).long()
    assert torch.equal(batch.long(), (stored * 255 // 16).expand_as(batch)) and batch.shape == (64, 3, 8, 8)
    assert batch.min() == 0 and batch.max() == 255


def test_a_wrong_brightest_value_is_refused(prepared):
    folder = prepared("world_many") / "digits"
    with pytest.raises(ValueError, match=r"a pixel of digits is 16, but data.brightest is 8"):
        next(images(folder, 8).evaluation_batches("test"))
    with pytest.raises(ValueError, match=r"brightest \(256\) must be at most 255"):
        images(folder, 256)
