"""Published teachers are read strictly from folders in the form of `transformers`; own ones from an arm's weights."""

import pytest
import torch
from transformers import BertConfig, BertForPreTraining, ViTConfig, ViTForImageClassification

from lightning_modules.vit_bert.objectives import distillation
from tests.vit_bert.small import UNTAUGHT, batch, module

SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def hub(tmp_path):
    torch.manual_seed(0)
    vit = ViTForImageClassification(ViTConfig(**SIZES, image_size=8, patch_size=4, num_labels=5))
    bert = BertForPreTraining(BertConfig(**SIZES, vocab_size=40, max_position_embeddings=12))
    for name, model in (("vit", vit), ("bert", bert)):
        model.save_pretrained(tmp_path / name)
    return {"image": str(tmp_path / "vit"), "text": str(tmp_path / "bert")}, vit.eval(), bert.eval()


def taught(image=None, text=None, **changes):
    return {**UNTAUGHT, "image": 0.5, "text": 0.5, "teachers": {"image": image, "text": text}} | changes


def test_published_teachers_say_what_transformers_says(hub):
    names, vit, bert = hub
    network, rows = module(distillation=taught(**names)), batch()
    images, texts = network.preprocess(rows["images"]["images"]), rows["texts"]
    asked = texts["targets"] >= 0
    with torch.no_grad():
        theirs = vit((rows["images"]["images"] / 255 - 0.5) / 0.5).logits
        said = bert(texts["token_ids"], attention_mask=texts["attention_mask"].long(), token_type_ids=texts["segments"])
    torch.testing.assert_close(network.teachers["images"](images), theirs, rtol=1e-5, atol=1e-6)
    words, pairs = network.teachers["texts"](texts["token_ids"], texts["attention_mask"], texts["segments"], asked)
    torch.testing.assert_close(words, said.prediction_logits[asked], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pairs, said.seq_relationship_logits.flip(1), rtol=1e-5, atol=1e-6)


def test_teachers_are_a_share_of_the_loss_and_never_learn(hub):
    names, _, _ = hub
    network, plain, rows = module(distillation=taught(**names)), module(), batch()
    found, hard = network.terms(rows["images"])["images"], plain.terms(rows["images"])["images"]
    images = network.preprocess(rows["images"]["images"])
    soft = distillation(plain(rows["images"]["images"]), network.teachers["images"](images), 2.0)
    torch.testing.assert_close(found, 0.5 * hard + 0.5 * soft)
    assert {name for name, _ in network.named_parameters()} == {name for name, _ in plain.named_parameters()}
    assert network.state_dict().keys() == plain.state_dict().keys()


def test_own_teachers_are_an_arm_that_shares_nothing():
    teacher, network, rows = module(seed=1, shared=False), module(distillation=taught()), batch()
    network.start_from(teacher.export())
    told = network.teachers["own"].images(network.preprocess(rows["images"]["images"]))
    torch.testing.assert_close(told, teacher(rows["images"]["images"]))
    assert {"images", "words", "pairs"} == set(network.terms(rows["images"]) | network.terms(rows["texts"]))


def test_a_shared_arm_is_no_pair_of_teachers():
    with pytest.raises(ValueError, match=r"teachers of the arm in `from` \(one with model.shared: false\)"):
        module(distillation=taught()).start_from(module().export())


def test_from_without_a_wish_for_teachers_is_refused():
    with pytest.raises(ValueError, match="remove `from`"):
        module().start_from(module(shared=False).export())


def test_incomplete_weights_are_refused(hub, tmp_path):
    _, vit, _ = hub
    vit.vit.save_pretrained(tmp_path / "trunk")
    with pytest.raises(ValueError, match="is of another architecture"):
        module(distillation=taught(image=str(tmp_path / "trunk"), text=hub[0]["text"]))
