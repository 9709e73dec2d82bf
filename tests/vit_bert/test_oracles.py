"""Sizes of the paper's networks, to the unit, on the meta device; the counts are in the facts."""

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForPreTraining, BertModel, ViTConfig, ViTForImageClassification, ViTModel

from lightning_modules.metrics.claims import load_facts
from lightning_modules.vit_bert.masking import SharedGradients
from lightning_modules.vit_bert.network import Network

FACTS = load_facts(Path(__file__).parents[2] / "lightning_modules/vit_bert/facts.yaml")
ORACLES = {oracle.name: oracle.model_extra for oracle in FACTS.oracles}
BASE = {"dim": 768, "hidden": 3072, "layers": 12, "heads": 12, "norm": "pre", "norm_eps": 1e-6, "dropout": 0.0}
IMAGES = {"image_size": 224, "patch_size": 16, "classes": 1000}
TEXTS = {"words": 30522, "positions": 512, "pairs": True}
MASKING = {
    "score": "magnitude",
    "first": "text",
    "kept": 0.5,
    "prunings": 10,
    "until": 0.5,
    "momentum": 0.9,
    "ranking": "global",
}


@pytest.fixture(autouse=True)
def meta():
    with torch.device("meta"):
        yield


def size(*modules):
    return sum(x.numel() for module in modules for x in module.parameters())


def network(**changes):
    return Network(encoder=BASE, images=IMAGES, texts=TEXTS, **changes)


def test_a_block_and_all_of_them_are_those_of_vit_and_of_bert():
    encoder = network().encoder("image")
    assert size(encoder.blocks[0]) == ORACLES["block"]["params"] == 12 * 768**2 + 13 * 768
    assert size(encoder.blocks) == ORACLES["blocks"]["params"]
    assert size(encoder.blocks) == size(ViTModel(ViTConfig()).layers) == size(BertModel(BertConfig()).encoder)


def test_the_unified_trunk_and_the_two_that_it_stands_for():
    ours = network()
    trunk = size(*ours.encoders.values(), *ours.tokens.values())
    assert trunk == ORACLES["unified-trunk"]["params"]
    vit, bert = ViTModel(ViTConfig(), add_pooling_layer=False), BertModel(BertConfig())
    assert size(vit) == ORACLES["vit-b16-trunk"]["params"]
    assert size(bert) == ORACLES["bert-base"]["params"]
    assert size(vit, bert) == ORACLES["two-trunks"]["params"]
    assert round(100 * trunk / size(vit, bert), 1) == 56.1


@pytest.mark.parametrize(
    ("classes", "name"), [(1000, "vit-b16-1000"), (21841, "vit-b16-21841"), (21843, "vit-b16-21843")]
)
def test_teachers_of_pictures(classes, name):
    assert size(ViTForImageClassification(ViTConfig(num_labels=classes))) == ORACLES[name]["params"]


def test_the_teacher_of_texts():
    assert size(BertForPreTraining(BertConfig())) == ORACLES["bert-base-pretraining"]["params"]


def test_tokens():
    assert network().tokens["image"].positions.shape[1] == ORACLES["image-tokens"]["tokens"]


@pytest.mark.parametrize(("vectors", "name"), [(True, "half-of-all"), (False, "half-of-matrices")])
def test_half_of_the_weights_are_masked(vectors, name):
    masks = SharedGradients(
        torch.nn.ModuleList(network().encoder("text").blocks), "mask", MASKING | {"vectors": vectors}
    )
    assert len(masks.mask) // 2 == ORACLES[name]["weights"]


def test_post_norm_has_the_embeddings_norm_of_bert_and_no_last_one():
    post = Network(encoder=BASE | {"norm": "post"}, images=IMAGES, texts=TEXTS)
    assert size(post.encoder("text")) == ORACLES["blocks"]["params"]
    assert size(post.tokens["text"]) + size(post.encoder("text")) == size(
        BertModel(BertConfig(), add_pooling_layer=False)
    )


@pytest.mark.parametrize(("tokens", "name"), [(197, "image"), (128, "text-128"), (512, "text-512")])
def test_products(tokens, name):
    ours = network()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        if name == "image":
            ours.image_features(torch.empty(1, 3, 224, 224))
        else:
            ours.encoder("text")(torch.empty(1, tokens, 768))
    formula = tokens * 12 * 12 * 768**2 + 2 * 12 * tokens**2 * 768 + (196 * 768**2 if name == "image" else 0)
    assert counter.get_total_flops() // 2 == formula == ORACLES[f"macs-{name}"]["macs"]
