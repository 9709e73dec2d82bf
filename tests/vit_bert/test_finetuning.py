"""Fine-tuning takes over one modality; classes and scores."""

import pytest
import torch
from pytorch_lightning import LightningDataModule

from lightning_modules.vit_bert.finetuning import FineTuneImages, FineTuneTexts, rows_of
from tests.vit_bert.small import ENCODER, IMAGES, PIXELS, TEXTS, batch, module

COMMON = {"encoder": ENCODER, "modality_embedding": False, "deviation": 0.02}


def images(classes=3):
    return FineTuneImages(images=IMAGES | {"classes": classes}, preprocess=PIXELS, **COMMON)


def texts(outputs=2, task=None):
    return FineTuneTexts(texts=TEXTS, outputs=outputs, task=task, **COMMON)


@pytest.mark.parametrize("shared", [True, False])
def test_the_encoder_of_the_modality_is_taken_over(shared):
    network, rows = module(shared=shared).eval(), batch()
    tuned, said = images().eval(), texts().eval()
    tuned.start_from(network.export())
    said.start_from(network.export())
    pixels = network.preprocess(rows["images"]["images"])
    features = network.network.image_features(pixels)
    torch.testing.assert_close(tuned.head.pooled(tuned.encoder(tuned.tokens(pixels))),
                               network.network.heads["images"].pooled(features))  # fmt: skip
    part = rows["texts"]
    expected = network.network.text_features(part["token_ids"], part["attention_mask"], part["segments"])
    found = said.encoder(said.tokens(part["token_ids"], part["segments"]), part["attention_mask"])
    torch.testing.assert_close(found, expected)


def test_all_weights_learn():
    for network, name in ((images(5), "images"), (texts(), "texts")):
        network.training_step({name: batch()[name]}).backward()
        assert all(x.grad is not None for x in network.parameters())


def test_scores_are_learnt_by_squared_errors():
    network, rows = texts(outputs=1, task="stsb"), batch()["texts"]
    rows |= {"labels": torch.rand(6) * 5}
    expected = (network.logits(rows)[:, 0] - rows["labels"]).square().mean()
    torch.testing.assert_close(network.loss(rows), expected)
    assert network.validate(LightningDataModule(), [rows]).keys() == {"loss"}
    assert network.facts() == {"task": "stsb"}


@pytest.mark.parametrize(("outputs", "task"), [(2, "stsb"), (1, "rte"), (1, None)])
def test_scores_are_stsb_alone(outputs, task):
    with pytest.raises(ValueError, match=f"model.outputs is {outputs} for the task {task}"):
        texts(outputs, task)


def test_another_architecture_is_refused():
    with pytest.raises(ValueError, match="the pre-trained network is of another architecture"):
        images().start_from(module(encoder=ENCODER | {"layers": 1}).export())


def test_a_batch_may_name_its_task():
    rows = batch()["texts"]
    assert rows_of(rows) is rows
    assert rows_of({"texts": rows}) is rows
