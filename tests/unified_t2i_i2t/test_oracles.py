"""Sizes, costs, counts and schedule of the paper's model against the official code's, built on the meta device."""

from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules import settings
from lightning_modules.base import learning_rate_schedule
from lightning_modules.metrics.compute import FLOPS_PER_MAC, count_parameters
from lightning_modules.unified_t2i_i2t.lxmert import Lxmert
from lightning_modules.unified_t2i_i2t.mask_predict import mask_counts
from lightning_modules.unified_t2i_i2t.module import smoothed_cross_entropy
from lightning_modules.unified_t2i_i2t.spade import SpadeGenerator
from stages.composing import compose

FACTS = Path(__file__).parents[2] / "lightning_modules/unified_t2i_i2t/facts.yaml"
ORACLES = yaml.safe_load(FACTS.read_text())["oracles"]
BY_NAME = {oracle["name"]: oracle for oracle in ORACLES}
PAPER = compose("paper", system="unified_t2i_i2t")["system"]
RELATIONSHIPS = 2 * 768 + 2  # a head that no loss reaches


@pytest.fixture(scope="module")
def network() -> Lxmert:
    with torch.device("meta"):
        return Lxmert(**PAPER["model"]["network"])


def params(name: str) -> int:
    return BY_NAME[name]["params"]


def test_parameters_are_those_of_the_official_generator(network):
    unreached = params("pooler") + RELATIONSHIPS
    assert count_parameters(network) + unreached == params("generator")
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert trained + unreached == params("trainable")
    encoder = network.encoder
    for name, part in {
        "codebook": network.cluster_codebook,
        "word_embedding": network.embedding_layer.word_embeddings,
        "language_layers": encoder.layer,
        "visual_layers": encoder.r_layers,
        "cross_layers": encoder.x_layers,
        "visual_embedding": encoder.visn_fc,
        "code_head_matrix": network.img_classifier.out_cluster,
    }.items():
        assert count_parameters(part) == params(name), name


def test_a_small_official_generator_has_as_many():
    with torch.device("meta"):
        small = Lxmert(
            vocabulary=100, feature_dim=32, codebook_size=64, grid=8, dim=48, num_heads=4, mlp_dim=96,
            language_layers=2, visual_layers=1, cross_layers=1,
        )  # fmt: skip
    unreached = 48 * 48 + 48 + 2 * 48 + 2
    assert count_parameters(small) + unreached == params("tiny-example")


def test_the_image_decoder_has_the_published_size_and_gives_256_pixels():
    with torch.device("meta"):
        decoder = SpadeGenerator(feature_dim=2048, grid=8, image_size=256)
        assert decoder(torch.empty(1, 2048, 8, 8)).shape == (1, 3, 256, 256)
    assert count_parameters(decoder) == params("image_decoder")


def test_token_and_mask_counts(network):
    assert network.num_tokens == BY_NAME["image_tokens"]["tokens"]
    assert network.num_tokens + PAPER["data"]["text_length"] == BY_NAME["all_tokens"]["tokens"]
    steps = PAPER["model"]["sampling_steps"]
    assert mask_counts(network.num_tokens, steps) == [int(count) for count in BY_NAME["mask_counts"]["counts"].split()]
    least = max(1, int(PAPER["model"]["least_masked"] * network.num_tokens))
    assert least == 6


def test_multiply_adds_of_a_pass(network):
    words, tokens = PAPER["data"]["text_length"], network.num_tokens
    with torch.device("meta"):
        ids, features = torch.zeros(1, words, dtype=torch.int64), torch.empty(1, tokens, 2048)
        keep = torch.ones(1, words, dtype=torch.bool)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            text, image = network.join(network.see(features), ids, keep)
        assert counter.get_total_flops() / FLOPS_PER_MAC / 1e9 == pytest.approx(BY_NAME["backbone"]["gmacs"], abs=5e-3)
        with FlopCounterMode(display=False) as counter:
            both = torch.cat([image, text], 1)  # the official code applies both heads at all places
            network.word_logits(both), network.img_classifier(both)
        assert counter.get_total_flops() / FLOPS_PER_MAC / 1e9 == pytest.approx(BY_NAME["heads"]["gmacs"], abs=5e-3)


@pytest.mark.parametrize("oracle", [o for o in ORACLES if "loss" in o], ids=lambda o: o["name"])
def test_smoothed_cross_entropy_of_uniform_logits(oracle):
    smoothing = PAPER["model"]["smoothing"]
    loss = smoothed_cross_entropy(torch.zeros(1, oracle["classes"]), torch.tensor([7]), smoothing)
    assert loss.item() == pytest.approx(oracle["loss"], abs=5e-5)


@pytest.mark.parametrize("oracle", [o for o in ORACLES if o["name"] == "learning-rate"], ids=lambda o: o["step"])
def test_learning_rate_follows_the_official_schedule(oracle):
    recipe = PAPER["pretrain"]
    factor = learning_rate_schedule(recipe, total_steps=200_000)(oracle["step"])
    assert recipe["lr"] * factor == pytest.approx(oracle["learning_rate"], rel=1e-6, abs=1e-12)


def test_the_second_stage_has_a_constant_rate():
    recipe = {**PAPER["pretrain"], "lr": 1e-6, "min_lr": 1e-6, "warmup": 0.0}
    schedule = learning_rate_schedule(recipe, total_steps=300_000)
    assert {schedule(step) for step in (0, 1, 150_000, 300_000)} == {1.0}


@pytest.mark.parametrize("system", ["unified_t2i_i2t", "image_side"])
def test_the_paper_sizes_are_built(system):
    block = compose("paper", system=system)["system"]
    with torch.device("meta"):
        module = settings.bind(block["model"], "model")()
    module.check_recipe(block["pretrain"], "pretrain")
