"""Sizes of published networks and counts of tokens, to the unit, on the meta device; the counts are in the facts."""

from pathlib import Path

import pytest
import torch

from lightning_modules.metrics.claims import load_facts
from lightning_modules.visual_parsing.network import Network
from lightning_modules.visual_parsing.parsing import make_parser
from stages.composing import compose

FACTS = load_facts(Path(__file__).parents[2] / "lightning_modules/visual_parsing/facts.yaml")
ORACLES = {oracle.name: oracle.model_extra for oracle in FACTS.oracles}
BERT = {"hub": "google-bert/bert-base-uncased", "sizes": None}
TINY, BASE = "microsoft/swin-tiny-patch4-window7-224", "microsoft/swin-base-patch4-window12-384-in22k"


@pytest.fixture(autouse=True)
def meta():
    with torch.device("meta"):
        yield


def size(*modules):
    return sum(x.numel() for module in modules for x in module.parameters())


def visual(hub, *, windows="several", pool=False):
    return {"kind": "swin", "windows": windows, "pool": pool, "swin": {"hub": hub, "sizes": None},
            "cnn": {"hub": "microsoft/resnet-50", "sizes": None}}  # fmt: skip


def network(hub):
    return Network(visual=visual(hub), bert=BERT, positions=None, position_deviation=0.02, feature_head="mlp")


@pytest.mark.parametrize(
    ("hub", "name"),
    [
        (TINY, "swin-tiny"), ("microsoft/swin-small-patch4-window7-224", "swin-small"),
        ("microsoft/swin-base-patch4-window7-224", "swin-base"), (BASE, "swin-base-384"),
    ],
)  # fmt: skip
def test_visual_encoders(hub, name):
    assert size(make_parser(visual(hub))) == ORACLES[name]["params"]


@pytest.mark.parametrize(("hub", "name", "projection"), [(TINY, "swin-tiny-whole", "projection-768"),
                                                       (BASE, "swin-base-384-whole", "projection-1024")])  # fmt: skip
def test_the_whole_network_but_its_head_of_features(hub, name, projection):
    ours = network(hub)
    assert size(ours.visual_proj) == ORACLES[projection]["params"]
    assert size(ours.bert) == ORACLES["bert-base"]["params"]
    heads = size(ours.mlm_head, ours.itm_head)
    assert size(ours.bert) + heads == ORACLES["bert-base-pretraining"]["params"]
    assert size(ours.visual, ours.visual_proj, ours.bert) + heads == ORACLES[name]["params"]


@pytest.mark.parametrize(
    ("pixels", "tokens", "pool"),
    [((224, 224), 49, False), ((384, 384), 144, False), ((384, 640), 240, False), ((600, 1000), 608, False),
     ((600, 1000), 160, True)],
)  # fmt: skip
def test_visual_tokens(pixels, tokens, pool):
    parsed = make_parser(visual(TINY, pool=pool))(torch.empty(1, 3, *pixels))
    assert parsed.features.shape[1] == parsed.grid[0] * parsed.grid[1] == tokens
    assert parsed.weights.shape == (1, tokens, tokens)


def test_the_cnn_of_the_tiny_preset_has_about_as_many_weights():
    swin, cnn = (
        size(make_parser(compose("tiny", system="visual_parsing")["system"]["model"]["visual"] | {"kind": kind}))
        for kind in ("swin", "cnn")
    )
    assert abs(cnn - swin) < 0.05 * swin
