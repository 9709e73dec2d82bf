"""Sizes, costs, tokens and schedules at paper size, on the meta device."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.lf_vila.losses import perfect_loss
from lightning_modules.lf_vila.model import LongVideoText
from lightning_modules.lf_vila.module import learning_rate
from lightning_modules.lf_vila.network import VideoSwin, attention_elements
from lightning_modules.lf_vila.weights import make_video_swin
from lightning_modules.metrics.compute import count_macs, count_parameters
from stages.composing import compose

FACTS = Path(__file__).parents[2] / "lightning_modules/lf_vila/facts.yaml"
ORACLES = {oracle["name"]: oracle for oracle in yaml.safe_load(FACTS.read_text())["oracles"]}
VIDEO = (3, 32, 192, 320)


@pytest.fixture(scope="module")
def paper() -> dict:
    return compose("paper", system="lf_vila")["system"]


def video_swin(paper: dict, times: int | None = None) -> VideoSwin:
    sizes = {**paper["model"]["network"]["video"], "hub": None, "width": 128}
    if times is not None:
        sizes["levels"] = [{**level, "window": [times, *level["window"][1:]]} for level in sizes["levels"]]
        sizes["local_window"] = max(times, 8)
    with torch.device("meta"):
        return make_video_swin(**sizes)


def network(paper: dict, **options) -> LongVideoText:
    with torch.device("meta"):
        return LongVideoText(**paper["model"]["network"], **options)


@pytest.mark.parametrize(("name", "times"), [("growing", None), ("two", 2), ("eight", 8), ("all", 32), ("single", 1)])
def test_windows(paper, name, times):
    """Parameters and multiply-adds of five schedules; the local branch is used by the first alone."""
    encoder, oracle = video_swin(paper, times), ORACLES[f"windows-{name}"]
    assert count_parameters(encoder) == oracle["params"]
    macs = count_macs(encoder, VIDEO) + (0 if times is None else 480 * 2048 * 1024)
    assert round(macs / 1e9, 2) == oracle["gmacs"]
    assert max(attention_elements(encoder, *VIDEO[1:])) == oracle["attention_elements"]


def test_multiply_adds_by_hand(paper):
    levels, total, size, dim = paper["model"]["network"]["video"]["levels"], 0, (24, 40), 128
    total += 32 * 24 * 40 * 128 * 3 * 8 * 8
    for level in levels:
        tokens, window = 32 * size[0] * size[1], level["window"][0] * 15
        total += level["depth"] * (12 * tokens * dim**2 + 2 * tokens * window * dim)
        if level["merge"]:
            size, dim = (size[0] // 2, size[1] // 2), 2 * dim
            total += 32 * size[0] * size[1] * 2 * dim * dim
    assert count_macs(video_swin(paper), VIDEO) == total + 480 * 2048 * 1024


def test_tables(paper):
    """Rows of the bias tables, with one column for each head."""
    found = [tuple(layer.blocks[0].attn.relative_position_bias_table.shape) for layer in video_swin(paper).layers]
    assert found == [(135, 4), (315, 8), (675, 16), (1395, 16), (1395, 16), (2835, 32)]


def test_stage_one(paper):
    """The official network has heads besides, which stage one never reads."""
    built, whole = network(paper), network(paper, head="words_and_match")
    text = whole.text_encoder
    unread = count_parameters(text.cls) + count_parameters(text.bert.pooler)
    assert count_parameters(built) + unread == ORACLES["stage-one"]["params"]


def test_stage_two(paper):
    built = network(paper, head="words_and_match")
    assert count_parameters(built) == ORACLES["stage-two"]["params"]
    frozen = {id(x) for part in built.frozen_parts() for x in part.parameters()}
    assert sum(x.numel() for x in built.parameters() if id(x) not in frozen) == ORACLES["stage-two"]["trained"]
    ids = torch.zeros(1, 4, 50, dtype=torch.long, device="meta")
    with torch.no_grad():
        texts = built.read_texts(ids, torch.ones_like(ids, dtype=torch.bool))
        states = built.fuse(texts, torch.zeros(1, 32, 6, 1024, device="meta"))
    assert states.shape == (1, ORACLES["stage-two"]["tokens"], 1024)


def test_video_tokens(paper):
    with torch.no_grad():
        whole, local = network(paper).read_video(torch.zeros(1, *VIDEO, device="meta"))
    assert whole.shape == local.shape == (1, 32, 6, 1024)


def test_loss_of_perfect_features():
    """By hand: of 44 draws of a key and values that are no tie, 24 have the key among the values."""
    without = 2 * (20 * math.log(5) + 24 * math.log(1 + 4 * math.exp(-20))) / 44
    assert perfect_loss(4, 20.0, values=2, others=3, roll_from=1) == pytest.approx(without)
    assert ORACLES["perfect"]["without"] == pytest.approx(
        perfect_loss(4, 20.0, values=2, others=3, roll_from=1), abs=5e-4
    )
    assert ORACLES["perfect"]["released"] == pytest.approx(
        perfect_loss(4, 20.0, values=2, others=3, roll_from=0), abs=5e-4
    )


def rates(recipe: dict, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=recipe["lr"])
    schedule = LambdaLR(optimizer, learning_rate(recipe, steps))
    return [recipe["lr"] * schedule.lr_lambdas[0](step) for step in range(steps + 1)]


def test_schedule_of_pre_training(paper):
    """16,647 steps an epoch: warm-up from 0 over the first of ten, then a line to a hundredth."""
    found = rates(paper["pretrain"], 166_470)
    assert found[0] == 0
    assert found[16_647] == max(found) == pytest.approx(5e-5)
    assert found[8_000] == pytest.approx(5e-5 * 8_000 / 16_647)
    assert found[-1] == pytest.approx(5e-7)


def test_schedules_of_fine_tuning(paper):
    recipe = {name: x for name, x in paper["downstream"]["finetune"].items() if name not in ("model", "data")}
    found = rates(recipe, 400)
    assert [found[step] for step in (20, 99, 100, 200, 300)] == pytest.approx([5e-5 * 0.25**n for n in (0, 0, 1, 2, 3)])
    found = rates({**recipe, "schedule": "cosine", "min_lr": 1e-8, "warmup": 0.1}, 400)
    assert found[40] == pytest.approx(1e-8 + (5e-5 - 1e-8) * 0.5 * (1 + torch.cos(torch.tensor(0.1 * torch.pi)).item()))
    assert found[-1] == pytest.approx(1e-8)
