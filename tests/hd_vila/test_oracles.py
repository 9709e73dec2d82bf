"""Sizes, costs and schedules at the paper's size against the official code's, built on the meta device."""

from pathlib import Path

import pytest
import torch
import yaml

from lightning_modules.hd_vila.module import HdVila, learning_rate
from lightning_modules.metrics.compute import count_macs, count_parameters
from stages.composing import compose
from tests.hd_vila.reference import LINEAR, MILESTONES, PAST_ALL

FACTS = Path(__file__).parents[2] / "lightning_modules/hd_vila/facts.yaml"
ORACLES = {oracle["name"]: oracle for oracle in yaml.safe_load(FACTS.read_text())["oracles"]}
DIM, NEVER_READ = 1024, ORACLES["params-never_read-low_layer4"]["params"]
LAST_NORM = 2 * DIM  # of TimeSformer, which the official code never applies
POOLER, RELATION, POSITIONS = DIM**2 + DIM, 2 * DIM + 2, 512 * DIM  # that get no gradient in stage two


def module(**options) -> HdVila:
    """The paper's model for one clip of frames of 640 x 1024, as the official code was counted."""
    model = compose("paper", system="hd_vila")["system"]["model"]
    values = {name: value for name, value in model.items() if name != "_target_"}
    with torch.device("meta"):
        return HdVila(**values | {"size": [640, 1024], "clips": 1} | options)


@pytest.fixture(scope="module")
def stage_one():
    return module()


def test_parameters_of_stage_one(stage_one):
    network = stage_one.network
    layer4 = count_parameters(network.cnn.layer4)
    assert layer4 == NEVER_READ
    found = {name: count_parameters(part) for name, part in network.named_children()}
    found["cnn_low"] += layer4
    found["timesformer"] += LAST_NORM
    found["text"] = found.pop("transformer")
    assert found == {name: ORACLES[f"params-{name}"]["params"] for name in found}
    assert sum(found.values()) == ORACLES["params-stage_one"]["params"]


def test_parameters_of_stage_two_and_what_is_frozen():
    both = module(task="words")
    unread = POOLER + RELATION + POSITIONS
    trained = sum(x.numel() for x in both.parameters() if x.requires_grad)
    assert trained + unread == ORACLES["params-trained_in_stage_two"]["params"]
    assert count_parameters(both) + unread + NEVER_READ + LAST_NORM == ORACLES["params-stage_two"]["params"]


def test_cost_of_a_clip_and_its_parts(stage_one):
    network = stage_one.network
    low = torch.nn.Module()
    low.forward = lambda x: network.timesformer(torch.empty(1, 7, DIM, 10, 16, device="meta"))
    found = {
        "high": count_macs(network.cnn, (3, 640, 1024)),
        "low": 6 * count_macs(network.cnn_low, (3, 160, 256)),
        "timesformer": count_macs(low, (1,)),
        "clip": count_macs(stage_one, (3, 7, 640, 1024)),
    }
    for name, macs in found.items():
        assert macs / 1e9 == pytest.approx(ORACLES[f"macs-{name}"]["gmacs"], abs=0.005), name
    tokens = 7 * 160
    assert found["timesformer"] == 4 * (17 * tokens * DIM**2 + 2 * tokens * (7 + 160) * DIM)
    facts = stage_one.facts()
    assert facts["cnn_macs"] == found["high"] + found["low"]
    assert facts["cnn_macs_all_high"] == 7 * found["high"]


@pytest.mark.parametrize(("step", "expected"), LINEAR)
def test_the_rate_falls_on_a_line(step, expected):
    factor = learning_rate(step - 1, name="linear", total=1000, epochs=10, warmup=0.1, milestones=(), guard=1e-8 / 5e-5)
    assert 5e-5 * factor == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("step", "expected"), MILESTONES)
def test_the_rate_is_halved_at_milestones(step, expected):
    recipe = compose("paper", system="hd_vila", stage="finetune")["system"]["downstream"]["finetune"]
    names = ("epochs", "warmup", "milestones")
    factor = learning_rate(
        step - 1, name="milestones", total=28200, guard=1e-3, **{name: recipe[name] for name in names}
    )
    assert recipe["lr"] * factor == pytest.approx(expected, rel=1e-6)


def test_after_the_last_milestone_the_rate_is_quartered():
    factor = learning_rate(
        28_099, name="milestones", total=28_200, epochs=200, warmup=0.01, milestones=(8, 16), guard=1e-3
    )
    assert 1e-5 * factor == pytest.approx(PAST_ALL)


def test_decay_spares_biases_and_embeddings_and_not_the_norms_of_timesformer(stage_one):
    stage_one.recipe = {"lr": 1e-5, "align_rate": 0.5, "align_weight_decay": 1e-3, "cnn_weight_decay": 1e-4}
    groups = stage_one.parameter_groups()
    names = {id(x): name for name, x in stage_one.network.named_parameters()}
    sides = {name: group for group in groups for name in (names[id(x)] for x in group["params"])}
    assert len(sides) == len(names)
    for name in (
        "timesformer.pos_embed",
        "timesformer.blocks.0.mlp.fc1.bias",
        "transformer.bert.embeddings.word_embeddings.weight",
        "transformer.bert.embeddings.LayerNorm.weight",
    ):
        assert sides[name]["weight_decay"] == 0, name
    assert sides["timesformer.blocks.0.temporal_norm1.weight"]["weight_decay"] == 1e-3
    assert sides["timesformer.blocks.0.temporal_norm1.weight"]["lr"] == pytest.approx(5e-6)
    for name in ("cnn.bn1.weight", "grid_encoder_low.0.weight"):
        assert sides[name]["weight_decay"] == 1e-4 and "lr" not in sides[name]
