import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules.datamodules.labelled import (
    EpochSteps,
    LabelledImages,
    MemberBatches,
    centre_square,
    crop_flip,
    fit,
)
from lightning_modules.datasets import storage

ROWS, COPIES, BATCH = 23, 3, 4


def member_batches(seed=0, augmentation="none"):
    labels = torch.arange(ROWS)
    images = labels[:, None, None, None].expand(ROWS, 1, 6, 6).to(torch.uint8)
    settings = {"seed": seed, "copies": COPIES, "batch_size": BATCH, "augmentation": augmentation}
    return MemberBatches(images, labels, **settings)


def epoch_labels(batches, epoch):
    return torch.cat([batches[epoch, step]["labels"] for step in range(len(batches))], dim=1)


def test_a_batch_holds_each_copys_own_rows():
    batch = member_batches()[0, 0]
    assert batch["images"].shape == (COPIES, BATCH, 1, 6, 6)
    assert batch["images"][..., 0, 0, 0].equal(batch["labels"].to(torch.uint8))


def test_an_epoch_shows_no_row_twice():
    for labels in epoch_labels(member_batches(), epoch=0):
        assert len(labels.unique()) == len(labels) == ROWS // BATCH * BATCH


def test_orders_differ_between_copies_epochs_and_seeds():
    first = epoch_labels(member_batches(), 0)
    others = [first[1], first[2], epoch_labels(member_batches(), 1)[0], epoch_labels(member_batches(seed=1), 0)[0]]
    assert not any(first[0].equal(other) for other in others)


@pytest.mark.parametrize("augmentation", ["none", "crop_flip"])
def test_a_batch_depends_on_its_place_alone(augmentation):
    unbroken, resumed = member_batches(augmentation=augmentation), member_batches(augmentation=augmentation)
    for epoch in range(2):
        epoch_labels(unbroken, epoch)
    assert unbroken[2, 1]["images"].equal(resumed[2, 1]["images"])


def test_sampler_gives_the_places_of_the_epoch_it_was_told():
    steps = EpochSteps(3)
    steps.set_epoch(5)
    assert list(steps) == [(5, 0), (5, 1), (5, 2)]


def test_one_network_gets_batches_without_a_leading_axis():
    several = member_batches()
    one = MemberBatches(several.images, several.labels, seed=0, copies=None, batch_size=BATCH)
    assert one[1, 2]["labels"].equal(several[1, 2]["labels"][0])
    assert one[1, 2]["images"].equal(several[1, 2]["images"][0])


def test_small_grey_images_are_fitted_to_what_an_encoder_reads():
    images = torch.arange(1, 5, dtype=torch.uint8).view(1, 1, 2, 2)
    found = fit(images, [3, 5, 4])
    assert found.shape == (1, 3, 5, 4)
    assert found[:, :, 1:3, 1:3].equal(images.expand(1, 3, 2, 2))
    assert found.sum() == 3 * images.sum()
    with pytest.raises(ValueError, match=r"images of shape \(1, 2, 2\) cannot be brought to fit_to \(3, 1, 4\)"):
        fit(images, [3, 1, 4])


def test_crop_and_flip():
    images = torch.arange(2 * 1 * 6 * 6, dtype=torch.uint8).view(2, 1, 6, 6)
    top, left = torch.tensor([4, 5]), torch.tensor([4, 3])
    found = crop_flip(images, top, left, flip=torch.tensor([1, 0]))
    assert found[0].equal(images[0].flip(-1))
    assert found[1, 0, :5, 1:].equal(images[1, 0, 1:, :5])
    assert not found[1, 0, 5].any()
    assert not found[1, 0, :, 0].any()


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="augmentation \\('mixup'\\)"):
        member_batches(augmentation="mixup")
    with pytest.raises(ValueError, match=r"batch_size \(30\) must be between 1 and the number of rows \(23\)"):
        MemberBatches(torch.zeros(23, 1, 2, 2, dtype=torch.uint8), torch.arange(23), seed=0, copies=1, batch_size=30)


def data_module(folder, **changes):
    splits = {name: {"source": "all", "rows": 8} for name in ("train", "val", "test")}
    settings = {"splits": splits, "copies": 2, "batch_size": 4, "evaluation_batch_size": 3, "augmentation": "none"}
    return LabelledImages(**{"folder": folder, "seed": 0, "centre_crop": None, **settings, **changes})


def prepared(folder, images, codec, shape):
    columns = {"id": np.arange(len(images)), "image": images, "label": np.arange(len(images))}
    folder.mkdir()
    splits = {"all": storage.write(folder, "all", columns, codec, shape)}
    facts = {"name": "x", "splits": splits, "codec": codec, "shape": shape, "num_classes": 2, "source": "a test"}
    storage.write_card(folder, **facts)
    return folder


def test_what_is_trained_on_needs_the_size_of_its_batches(tmp_path):
    with pytest.raises(ValueError, match="splits has train, but there is no batch_size"):
        data_module(tmp_path, batch_size=None)
    data_module(tmp_path, batch_size=None, splits={"test": {"source": "all", "rows": 8}})


def test_data_module_reads_raw_images(tmp_path):
    images = np.arange(24 * 2 * 2, dtype=np.uint8).reshape(24, 2, 2, 1)
    data = data_module(prepared(tmp_path / "raw", images, "raw", (2, 2, 1)))
    assert len(data.train_dataloader()) == 2
    batches = list(data.evaluation_batches("val"))
    assert [len(batch["labels"]) for batch in batches] == [3, 3, 2]
    rows = torch.cat([batch["labels"] for batch in batches]).numpy()
    found = torch.cat([batch["images"] for batch in batches])
    assert np.array_equal(found[:, 0], images[rows, :, :, 0])
    seen = [batch["labels"] for split in ("val", "test") for batch in data.evaluation_batches(split)]
    assert len(torch.cat(seen).unique()) == 16


def test_data_module_decodes_images_of_any_size(tmp_path):
    from io import BytesIO

    def encoded(value):
        file = BytesIO()
        Image.new("RGB", (20 + value, 30), (value, 0, 0)).save(file, "png")
        return file.getvalue()

    images = np.array([encoded(value) for value in range(24)], dtype=object)
    data = data_module(prepared(tmp_path / "png", images, "png", None), centre_crop=[12, 0.5])
    batch = next(data.evaluation_batches("test"))
    assert batch["images"].shape == (3, 3, 12, 12)
    assert batch["images"][:, 0, 6, 6].tolist() == batch["labels"].tolist()


def test_centre_square_keeps_the_middle():
    image = np.zeros((8, 16, 3), dtype=np.uint8)
    image[2:6, 6:10] = 255
    assert (centre_square(image, side=4, share=0.5) == 255).all()
