"""Sizes, costs and schedules at the paper's size against the official code's, built on the meta device."""

from pathlib import Path

import pytest
import torch
import yaml

from lightning_modules.hd_vila.module import HdVila, learning_rate
from lightning_modules.metrics.compute import count_macs, count_parameters
from stages.composing import compose
from stages.plan import load_plan
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


def arms(stage: str) -> dict[str, dict]:
    plan = load_plan("paper")
    rows = {arm: row for arm, row in getattr(plan, stage).items() if row.paper == "hd_vila"}
    return {arm: compose("paper", system="hd_vila", overrides=row.overrides)["system"] for arm, row in rows.items()}


RETRIEVAL = {  # clips (trained, judged), frames, stride, epochs, rates, decays, warm-up, milestones, batch
    "msr_vtt": (2, 4, 7, 4, 200, 1e-5, 5e-6, (1e-4, 1e-4, 1e-3), 0.01, (32, 64, 128, 256), 64),
    "didemo": (4, 8, 11, 2, 100, 5e-6, 5e-6, (1e-3, 1e-1, 1e-1), 0.1, (8, 16, 32, 64), 32),
    "lsmdc": (2, 4, 11, 3, 20, 5e-6, 5e-6, (1e-3, 1e-3, 1e-3), 0.01, (4, 8, 16), 64),
    "activitynet": (4, 8, 13, 4, 100, 5e-6, 5e-6, (1e-3, 1e-3, 1e-3), 0.1, (8, 16, 32, 64), 32),
    "msrvtt_qa": (1, 8, 7, 4, 20, 1e-5, 1e-5, (0.3, 0.3, 0.3), 0.1, (), 512),
    "tgif_action": (1, 8, 7, 4, 80, 5e-5, 5e-5, (0.1, 0.1, 0.1), 0.1, (10, 20, 30, 40, 50, 60, 70), 384),
    "tgif_transition": (1, 8, 7, 4, 80, 5e-5, 5e-5, (0.1, 0.1, 0.1), 0.1, (10, 20, 30, 40, 50, 60, 70), 384),
    "tgif_frame": (1, 8, 7, 4, 40, 4e-5, 4e-5, (0.3, 0.3, 0.3), 0.1, (10, 15, 20, 25, 30, 35), 448),
}


def test_arms_have_the_settings_of_the_official_configurations():
    trained = arms("finetune")
    for name, expected in RETRIEVAL.items():
        recipe = trained[f"hd_vila-{name}"]["downstream"]["finetune"]
        model, shown = recipe["model"], recipe["data"]
        assert (shown["clips"], shown["frames"], shown["size"]) == (model["clips"], model["frames"], model["size"])
        decays = tuple(recipe[key] for key in ("weight_decay", "cnn_weight_decay", "align_weight_decay"))
        found = (
            *(shown[key] for key in ("clips", "evaluation_clips", "frames", "stride")),
            *(recipe["epochs"], recipe["lr"], pytest.approx(recipe["lr"] * recipe["align_rate"])),
            *(decays, recipe["warmup"], tuple(recipe["milestones"]), shown["batch_size"]),
        )
        assert found == expected, name
        assert model["temperature"] == 0.08


def test_multiple_choice_is_judged_on_the_model_of_retrieval():
    retrieval, choice = arms("pretrain")["hd_vila-retrieval"], arms("finetune")["hd_vila-msrvtt_mc"]
    tuned = arms("finetune")["hd_vila-msr_vtt"]["downstream"]["finetune"]
    recipe = {name: value for name, value in tuned.items() if name not in ("model", "data", "validate_every")}
    assert {name: value for name, value in retrieval["pretrain"].items() if name != "validate_every"} == recipe
    same = {name: value for name, value in tuned["model"].items() if name not in ("stage", "num_answers")}
    assert retrieval["model"].items() >= same.items()
    shown = {name: value for name, value in tuned["data"].items() if name != "splits"}
    assert retrieval["data"].items() >= shown.items()
    judged = choice["downstream"]["finetune"]
    assert judged["epochs"] == 0 and judged["model"] == tuned["model"]


@pytest.mark.parametrize("size", [(640, 1024), (768, 768)])
def test_clips_of_either_size_give_their_grid(size):
    model = module(size=list(size), clips=2)
    middle = torch.empty(1, 2, 3, *size, dtype=torch.uint8, device="meta")
    neighbours = torch.empty(1, 2, 6, 3, size[0] // 4, size[1] // 4, dtype=torch.uint8, device="meta")
    maps = model.maps(*model.clips_of({"middle": middle, "neighbours": neighbours}))
    assert maps.shape == (1, 2, DIM, size[0] // 64, size[1] // 64)
