"""The mix of clips with paths and clips without."""

import numpy as np
import pytest
import torch

from lightning_modules.camvig.clips import CameraClips, MixedBatches, mixed
from lightning_modules.camvig.paths import path_of
from lightning_modules.datasets.world import views
from lightning_modules.datasets.world.camera import MOVES

SPLITS = {"train": {"source": "train", "rows": None}, "val": {"source": "val", "rows": None}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("camera") / "world"
    views.prepare(made, view="camera", seed=1, sizes={"train": 128, "val": 40}, image_size=16,
                  options={"frames": 5, "moving": 4}, workers=1)  # fmt: skip
    return made


def data(folder, **changes):
    options = {"splits": SPLITS, "share": 0.7, "batch_size": 10, "evaluation_batch_size": 16}
    return CameraClips(folder=folder, seed=3, **options | changes)


@pytest.mark.parametrize("percent", [0, 30, 70, 100])
def test_every_step_has_its_share_of_both_kinds(percent):
    posed, broad = np.arange(40), np.arange(100, 120)
    order = mixed(posed, broad, percent, 200, seed=1, epoch=0)
    shares = (order < 100).reshape(-1, 10).mean(1)
    assert (shares == percent / 100).all()
    assert len(set(order[:20][order[:20] < 100])) == (order[:20] < 100).sum()  # none comes twice before all have come
    assert (mixed(posed, broad, percent, 200, seed=1, epoch=0) == order).all()
    assert (mixed(posed, broad, percent, 200, seed=1, epoch=1) != order).any()


def test_batches_have_paths_of_their_clips_and_moves_that_are_held_out_are_in_none(folder):
    made = data(folder, held_out=["orbit left", "orbit right"])
    batches = made.train_dataloader().dataset
    assert isinstance(batches, MixedBatches) and len(batches) == 12
    columns, rows = made.trained_rows()
    for place in range(len(batches)):
        batch = batches[0, place]
        assert batch["posed"].sum() == 7 and batch["video"].shape == (10, 3, 5, 16, 16)
        assert not {9, 10} & set(batch["labels"].tolist())
        asked = path_of(columns["poses"][rows[batch["rows"].numpy()]])
        assert batch["path"].numpy() == pytest.approx(asked, abs=1e-6)
        assert torch.equal(batch["posed"], torch.from_numpy(columns["moving"][rows[batch["rows"].numpy()]] == 0))


def test_all_moves_are_judged(folder):
    batches = list(data(folder, held_out=["orbit left"]).evaluation_batches("val"))
    assert sum(len(batch["video"]) for batch in batches) == 40
    assert {9, 10} & {int(label) for batch in batches for label in batch["labels"]}
    assert batches[0]["layers"].shape == (16, 16, 16)


def test_wrong_settings_are_refused(folder):
    with pytest.raises(ValueError, match=r"held_out has 'orbit up'; did you mean 'orbit (left|right)'"):
        data(folder, held_out=["orbit up"])
    with pytest.raises(ValueError, match=r"share is 1.0, but the split train has no clips with paths"):
        data(folder, share=1.0, held_out=list(MOVES)).train_dataloader()
