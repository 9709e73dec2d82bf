"""Sizes, grids, schedules and masks of the published settings, to the unit; networks are built on the meta device."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lightning_modules.magvit.module import Magvit
from lightning_modules.magvit.tokenizer import Tokenizer
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.video_tokens.discriminator import Discriminator
from lightning_modules.video_tokens.masking import mask_ratio
from lightning_modules.video_tokens.tasks import TASKS

ORACLES = yaml.safe_load((Path(__file__).parents[2] / "lightning_modules/magvit/facts.yaml").read_text())["oracles"]
AT_64 = {"multipliers": (1, 2, 4), "halve_time": (True, True)}
TEN = ["fp", "fi", "opc", "opv", "oph", "opd", "ipc", "ipd", "cg", "cfp"]


def named(start):
    return [
        pytest.param(oracle, id=oracle["name"]) for oracle in ORACLES if start in oracle["name"] and "params" in oracle
    ]


def tokenizer(size=128, **options):
    with torch.device("meta"):
        return Tokenizer(frames=16, size=size, **({} if size == 128 else AT_64), **options)


@pytest.mark.parametrize("oracle", named("d-vq"))
def test_tokenizers_have_the_published_sizes(oracle):
    built = tokenizer(oracle["size"], width=oracle["width"], dims=oracle.get("dims", 3))
    assert count_parameters(built) == oracle["params"]
    assert built.grid == ((4 if built.dims == 3 else 16), 16, 16)
    assert built.vocabulary == 1024


def test_a_clip_of_16_frames_is_614_times_smaller():
    grid = tokenizer().grid
    assert math.prod(grid) == 1024
    assert 16 * 128 * 128 * 24 / (math.prod(grid) * 10) == pytest.approx(614.4)
    assert math.prod(grid) * 10 / (16 * 128 * 128) == 0.0390625  # bits per pixel


@pytest.mark.parametrize("oracle", named("discriminator"))
def test_discriminators_have_the_published_sizes(oracle):
    multipliers = (2, 4, 4, 4, 4) if oracle["size"] == 128 else (2, 4, 4, 4)
    with torch.device("meta"):
        built = Discriminator(
            depth=3, width=oracle["width"], multipliers=multipliers, frames=16, size=oracle["size"]
        )  # fmt: skip
    assert count_parameters(built) == oracle["params"]


@pytest.mark.parametrize("oracle", [o for o in named("magvit-") if "layers" in o.values[0]])
def test_transformers_have_the_published_sizes(oracle):
    many, classes = "tasks" in oracle, oracle["classes"]
    tasks = TEN[:8] if not classes else TEN
    with torch.device("meta"):
        built = Magvit(
            tokenizer={"frames": 16, "size": 64, "width": 32, **AT_64},
            network={"layers": oracle["layers"], "hidden_size": oracle["dim"], "mlp_dim": 4 * oracle["dim"],
                     "heads": oracle["heads"]},
            num_classes=classes, tasks=tasks if many else ["cg"], judged_tasks=["fp"], multi_task=many,
        )  # fmt: skip
    assert count_parameters(built.network) == oracle["params"]
    assert len(built.network.positions.weight) == (1026 if many else 1025)


@pytest.mark.parametrize(
    ("task", "pixels", "tokens"),
    [
        ("fp", 93.75, 75), ("fi", 87.5, 50), ("opc", 75, 75), ("opv", 50, 50), ("oph", 50, 50), ("opd", 50, 50),
        ("ipc", 25, 25), ("ipd", 25, 25), ("cfp", 93.75, 75),
    ],
)  # fmt: skip
def test_each_task_leaves_out_its_share_of_pixels_and_tokens(task, pixels, tokens):
    video = torch.rand(1, 3, 16, 64, 64)
    found = TASKS[task].condition(video, (4, 16, 16), 1)
    assert 100 * (1 - found.pixels.expand(1, 1, 16, 64, 64).float().mean().item()) == pytest.approx(pixels)
    assert 100 * (1 - found.tokens.expand(1, 4, 16, 16).float().mean().item()) == pytest.approx(tokens)
    given = found.pixels.expand_as(video)
    assert torch.equal(found.video[given], video[given])


@pytest.mark.parametrize(
    ("schedule", "left"),
    [
        ("cosine", [1015, 989, 946, 886, 812, 724, 623, 511, 391, 265, 133, 0]),
        ("uniform", [938, 853, 768, 682, 597, 512, 426, 341, 256, 170, 85, 0]),
        ("exp", [1022, 1020, 1018, 1013, 1006, 992, 966, 922, 842, 701, 449, 0]),
    ],
)
def test_so_many_of_1024_tokens_are_left_after_each_of_12_steps(schedule, left):
    found = [int(1024 * mask_ratio(torch.tensor(step / 12), 1024, schedule)) for step in range(1, 13)]
    assert found == left  # the last one is not asked for: what was drawn is returned


@pytest.mark.parametrize(("schedule", "mean"), [("cosine", 2 / math.pi), ("uniform", 0.5), ("exp", 0.8559)])
def test_the_mean_ratio_in_training(schedule, mean):
    progress = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    assert mask_ratio(progress, 1024, schedule).mean().item() == pytest.approx(mean, abs=1e-4)


def test_special_tokens_lie_at_the_end_of_the_vocabulary():
    with torch.device("meta"):
        built = Magvit(
            tokenizer={"frames": 16, "size": 64, "width": 32, **AT_64},
            network={"layers": 1, "hidden_size": 16, "mlp_dim": 16, "heads": 1}, num_classes=0, tasks=TEN[:8],
            judged_tasks=["fp"], multi_task=True,
        )  # fmt: skip
    assert built.special(-1) == 1024 + 1 + 16 - 1
    numbers = [TASKS[task].token for task in TEN]
    assert numbers == [-4, -5, -6, -6, -6, -6, -7, -7, -3, -4]
    assert np.array_equal(sorted(built.order.unique()), range(8))
