"""Batches of the captioned world: texts go with their pictures, and an order depends on seed and epoch alone."""

import numpy as np
import pytest
import torch

from lightning_modules.datasets import storage
from lightning_modules.datasets.world import asked
from lightning_modules.visual_parsing.pictures import AskedPictures

SPLITS = {name: {"source": name, "rows": None} for name in ("train", "val")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked") / "asked"
    asked.prepare(folder, seed=5, sizes={"train": 40, "val": 12}, image_size=32, colors=4, shapes=4)
    return folder


def data(folder, task="caption", seed=0, **changes):
    options = {"splits": SPLITS, "tokenizer": "asked", "text_length": 15, "batch_size": 8, "evaluation_batch_size": 10}
    return AskedPictures(folder=folder, seed=seed, task=task, **options | changes)


def said(module, batch):
    return module.tokenizer.decode(batch["token_ids"].numpy())


def written(text):
    """A text as the tokenizer writes it."""
    return text.replace(" ,", ",").replace(" ?", "?")


def test_captions_take_turns_and_go_with_their_pictures(folder):
    module, stored = data(folder, turns=[0, 0, 1]), storage.read(folder, "train")
    loader = module.train_dataloader()
    places = {image.tobytes(): row for row, image in enumerate(stored["image"].transpose(0, 3, 1, 2))}
    learnt = set()
    for epoch in range(3):
        batch = loader.dataset[epoch, 2]
        for row, image, text in zip(batch["rows"].tolist(), batch["images"], said(module, batch), strict=True):
            number = (0, 0, 1)[(epoch + row) % 3]
            assert text == written(stored["captions"][places[image.numpy().tobytes()]][number])
            learnt.add((epoch, number))
    assert len(learnt) == 6, "an epoch has all forms of captions"


def test_an_order_depends_on_seed_and_epoch_alone(folder):
    first, again = (data(folder).train_dataloader().dataset for _ in range(2))
    first[0, 1]
    assert torch.equal(first[1, 3]["rows"], again[1, 3]["rows"])
    assert not torch.equal(first[1, 3]["rows"], first[0, 3]["rows"])
    other = data(folder, seed=1).train_dataloader().dataset
    assert not torch.equal(other[1, 3]["rows"], first[1, 3]["rows"])
    assert len(first) == 5


def test_questions_have_one_right_answer_and_their_kind(folder):
    module, stored = data(folder, "question"), storage.read(folder, "val")
    batches = list(module.evaluation_batches("val"))
    assert sum(len(batch["rows"]) for batch in batches) == 12 * 5
    batch = batches[0]
    assert (batch["targets"].sum(1) == 1).all() and batch["targets"].shape[1] == len(module.answers)
    assert [module.answers[number] for number in batch["targets"].argmax(1)] == [
        *stored["answers"][0],
        *stored["answers"][1],
    ]
    assert [module.kinds[kind] for kind in batch["kinds"]] == list(asked.KINDS) * 2
    assert said(module, batch)[5] == written(stored["questions"][1][0])
    np.testing.assert_array_equal(batch["images"][7].permute(1, 2, 0), stored["image"][1])


def test_statements_have_a_label_each(folder):
    module, stored = data(folder, "entailment"), storage.read(folder, "val")
    batch = next(module.evaluation_batches("val"))
    assert batch["labels"].tolist() == [*stored["labels"][:3].flatten().tolist(), stored["labels"][3][0]]
    assert said(module, batch)[4] == written(stored["statements"][1][1])


def test_pairs_have_their_partner_also_from_outside_the_split(folder):
    splits = {"train": {"source": "train", "rows": 9}, "val": {"source": "val", "rows": 3}}
    module, stored = data(folder, "pair", splits=splits), storage.read(folder, "train")
    items = module.items("train")
    batch = items.batch(torch.arange(9))
    assert batch["images"].shape == (9, 2, 3, 32, 32)
    for row, number in enumerate(module.rows["train"][1]):
        for side, which in enumerate((number, stored["partner"][number])):
            np.testing.assert_array_equal(batch["images"][row, side].permute(1, 2, 0), stored["image"][which])
        assert batch["labels"][row] == stored["pair_label"][number]


def test_captions_are_searched_with_all_of_theirs(folder):
    found = data(folder, turns=[1, 0, 1]).retrieval("val")
    assert len(found["token_ids"]) == len(found["picture_of"]) == 24
    assert found["picture_of"].tolist() == list(range(12)) * 2
    assert found["images"](np.arange(3)).shape == (3, 3, 32, 32)
    with pytest.raises(ValueError, match="only the task caption"):
        data(folder, "pair").retrieval("val")


def test_a_split_or_a_caption_that_is_not_there_is_refused(folder):
    with pytest.raises(ValueError, match=r"data\.turns is \[3\]"):
        data(folder, turns=[3]).train_dataloader()
    with pytest.raises(ValueError, match="no split 'test'"):
        next(data(folder).evaluation_batches("test"))


def test_a_text_that_would_be_cut_is_refused(folder):
    with pytest.raises(ValueError, match=r"data\.text_length is 14, but '.* at the .*' takes 15 tokens"):
        next(data(folder, text_length=14).evaluation_batches("val"))
