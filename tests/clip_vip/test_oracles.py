"""Sizes, costs and schedules of the paper's models against the official code's, built on the meta device."""

from pathlib import Path

import pytest
import torch
import yaml

from lightning_modules.base import learning_rate_schedule
from lightning_modules.clip_vip.module import ClipViP
from lightning_modules.layers.clip import PUBLISHED
from lightning_modules.metrics.compute import count_macs, count_parameters
from stages.composing import compose
from tests.clip_vip.reference import allowed

FACTS = Path(__file__).parents[2] / "lightning_modules/clip_vip/facts.yaml"
ORACLES = yaml.safe_load(FACTS.read_text())["oracles"]
BY_NAME = {oracle["name"]: oracle for oracle in ORACLES}
HUBS = {"B/32": "openai/clip-vit-base-patch32", "B/16": "openai/clip-vit-base-patch16"}
PIXELS = dict(pixel_scale=255.0, mean=[0.0] * 3, std=[1.0] * 3)
SOURCES = {"S": "subtitle", "C": "auxiliary"}


def vip(model: str = "B/32", attention: str = "proxy", **options) -> ClipViP:
    clip = dict(hub=HUBS[model], vision=None, text=None, projection_dim=None)
    proxies = 1 if attention == "mean" else 4
    with torch.device("meta"):
        return ClipViP(
            clip=clip, preprocess=PIXELS, attention=attention, num_proxies=proxies, sources=SOURCES, **options
        )


def of(kind: str) -> list[dict]:
    return [oracle for oracle in ORACLES if oracle["name"].startswith(kind)]


def ids(oracle: dict) -> str:
    return oracle["name"]


@pytest.mark.parametrize("oracle", of("params-"), ids=ids)
def test_parameters(oracle):
    """Of CLIP, of ViP, and of its two towers with their projections."""
    _, part, model = oracle["name"].split("-")
    module = vip(model, attention="mean" if part == "clip" else "proxy")
    clip = module.network.clip
    towers = {
        "vision": (clip.vision_model, clip.visual_projection),
        "text": (clip.text_model, clip.text_projection),
    }
    assert sum(map(count_parameters, towers.get(part, (module,)))) == oracle["params"]


def test_new_parameters_are_three_proxies_and_twelve_temporal_embeddings():
    assert count_parameters(vip()) - count_parameters(vip(attention="mean")) == (3 + 12) * 768


@pytest.mark.parametrize("oracle", of("tokens-"), ids=ids)
def test_tokens(oracle):
    _, model, frames = oracle["name"].split("-")
    module = vip(model)
    with torch.device("meta"):
        tokens = module.network.embed(torch.empty(1, 3, int(frames), 224, 224))
    assert tokens.shape == (1, oracle["tokens"], 768)


@pytest.mark.parametrize("oracle", of("macs-"), ids=ids)
def test_costs_of_reading_a_video(oracle):
    _, attention, model, frames = oracle["name"].split("-")
    gmacs = count_macs(vip(model, attention), (3, int(frames), 224, 224)) / 1e9
    assert gmacs == pytest.approx(oracle["gmacs"], abs=0.005)


def test_cost_is_the_closed_form():
    """Patches, twelve layers of projections and MLPs, the pairs that attention allows, the projection."""
    dim, patches, proxies, frames = 768, 49, 4, 12
    tokens = proxies + frames * patches
    pairs = frames * patches * (proxies + patches) + proxies * tokens
    macs = frames * patches * dim * 3 * 32**2 + 12 * (tokens * 12 * dim**2 + 2 * dim * pairs) + dim * 512
    assert count_macs(vip(), (3, frames, 224, 224)) == macs


def test_cost_of_a_text():
    network = vip().network
    module = torch.nn.Module()
    module.forward = lambda _: network.encode_texts(torch.empty(1, 70, dtype=torch.int64, device="meta"))
    assert count_macs(module, (1,)) / 1e9 == pytest.approx(BY_NAME["text-macs-70"]["gmacs"], abs=0.005)


@pytest.mark.parametrize("oracle", of("density-"), ids=ids)
def test_share_of_the_pairs_that_attention_allows(oracle):
    density = allowed(*(int(part) for part in oracle["name"].split("-")[1:])).float().mean().item()
    assert density == pytest.approx(oracle["share"], abs=5e-6)


def test_decay_spares_what_the_official_code_spares():
    module = vip()
    module.recipe = {"lr": 1e-6, "logit_scale_rate": 10.0}
    decayed, biases, scale = module.parameter_groups()
    for name, groups in (("decayed", [decayed]), ("undecayed", [biases, scale])):
        tensors = [x for group in groups for x in group["params"]]
        assert len(tensors) == BY_NAME[name]["tensors"]
        assert sum(x.numel() for x in tensors) == BY_NAME[name]["params"]
    gains = {id(x) for name, x in module.named_parameters() if "norm" in name and name.endswith("weight")}
    assert len(gains & {id(x) for x in decayed["params"]}) == BY_NAME["decayed"]["norm_gains"]
    assert (biases["weight_decay"], scale["weight_decay"], scale["lr"]) == (0, 0, pytest.approx(1e-5))


@pytest.mark.parametrize("oracle", of("learning-rate"), ids=lambda oracle: oracle["step"])
def test_learning_rate_follows_the_official_schedule(oracle):
    recipe = compose("paper", system="clip_vip", stage="finetune")["system"]["downstream"]["finetune"]
    total = -(-recipe["epochs"] * 9000 // recipe["data"]["batch_size"])
    assert total == 7032
    factor = learning_rate_schedule(recipe, total_steps=total)(oracle["step"] - 1)  # the official code counts from 1
    assert recipe["lr"] * factor == pytest.approx(oracle["learning_rate"], rel=6e-6)


def test_sizes_are_written_out_for_both_models():
    assert set(PUBLISHED) >= set(HUBS.values())
