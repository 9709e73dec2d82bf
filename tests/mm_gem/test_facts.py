"""The counts in the facts are those of the networks that they name."""

from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from lightning_modules.metrics.claims import load_facts
from lightning_modules.metrics.compute import count_macs
from stages.composing import compose
from stages.plan import load_plan

RAW = yaml.safe_load((Path(__file__).parents[2] / "plans/paper/mm_gem/params.yaml").read_text())
FACTS = load_facts(Path(__file__).parents[2] / "lightning_modules/mm_gem/facts.yaml")
ORACLES = {oracle.name: oracle.model_extra for oracle in FACTS.oracles}


def llama(vocabulary=32000):
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
        num_attention_heads=32, num_key_value_heads=4, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def vision(size, patch=14):
    config = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=size,
        patch_size=patch,
    )  # fmt: skip
    with torch.device("meta"):
        return CLIPVisionModel(config)


def text():
    config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    with torch.device("meta"):
        return CLIPTextModel(config)


BUILT = {
    "tinyllama": llama,
    "tinyllama-with-emb": lambda: llama(32001),
    "tinyllama-layer": lambda: llama().model.layers[0],
    "clip-vit-l14-224": lambda: vision(224),
    "tinyllama-body": lambda: llama().model,
    "clip-vit-l16-224": lambda: vision(224, 16),
    "clip-vit-l14-336": lambda: vision(336),
    "clip-l-text": text,
}


@pytest.mark.parametrize("name", BUILT)
def test_parameters_are_counted(name):
    assert sum(parameter.numel() for parameter in BUILT[name]().parameters()) == ORACLES[name]["params"]


def test_products_of_a_token_are_counted():
    network = llama()
    matrices = [layer.weight.numel() for layer in network.model.layers.modules() if isinstance(layer, torch.nn.Linear)]
    assert sum(matrices) == ORACLES["language-model-per-token"]["macs"]
    assert network.lm_head.weight.numel() == ORACLES["language-model-head"]["macs"]


def test_products_of_the_tower_are_counted():
    class Pooled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.tower = vision(224)

        def forward(self, images):
            return self.tower(pixel_values=images).last_hidden_state

    with sdpa_kernel(SDPBackend.MATH):
        found = count_macs(Pooled(), (3, 224, 224))
    assert found == 257 * 12 * 24 * 1024**2 + 2 * 24 * 257**2 * 1024 + 256 * 588 * 1024
    assert found == ORACLES["clip-vit-l14-224-forward"]["macs"]


@pytest.mark.parametrize("tokens", [1, 16, 64, 256])
def test_products_of_a_prefix_are_counted(tokens):
    network, prefix = llama().model, torch.empty(1, tokens, 2048, device="meta")
    mask = torch.empty(1, 1, tokens, tokens, device="meta")  # given, since none can be made without values
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(inputs_embeds=prefix, attention_mask=mask, use_cache=False)
    counted = counter.get_flop_counts()["Global"]
    linear = sum(flops for product, flops in counted.items() if product != torch.ops.aten.bmm)
    assert linear // 2 == ORACLES[f"prefix-{tokens}"]["macs"] == tokens * ORACLES["language-model-per-token"]["macs"]


def test_each_data_set_that_the_paper_plan_prepares_is_judged():
    plan = load_plan("paper")
    arms = {arm: row["dataset"] for arm, row in (RAW["pretrain"] | RAW["pretrain_from"]).items()}
    judged = {arms[row["runs"]] for row in RAW["evaluate"].values()}
    assert set(RAW["datasets"]) <= judged
    assert set(RAW["evaluate"]) <= set(plan.evaluate)


@pytest.mark.parametrize(
    ("arm", "learnt", "split"),
    [("mm_gem-flickr30k", "mm_gem", "test"), ("mm_gem-regions-refcoco", "mm_gem-regions", "testA")],
)
def test_flickr30k_and_refcoco_are_judged_without_training(arm, learnt, split):
    row = RAW["pretrain_from"][arm]
    assert row["from"] == learnt
    system = compose("paper", system=row["system"], overrides=row["overrides"])["system"]
    stored = compose("paper", dataset=row["dataset"])["dataset"]["splits"]
    assert (system["pretrain"]["epochs"], system["data"]["splits"]["test"]["source"]) == (0, split)
    for part in system["data"]["splits"].values():
        assert (part["rows"] or 1) <= stored[part["source"]]


def test_what_is_published_and_that_no_claim_about_the_small_size_was_made_afterwards():
    """Seeds were added after verdicts had been seen; nothing else was changed."""
    published = [claim.id for claim in FACTS.claims if claim.paper_value is not None]
    assert published == ["C5-long_texts", "P5-long_texts"]
    later = [claim for claim in FACTS.claims if claim.post_hoc and "tiny" in claim.presets]
    assert later and all("Two more were added after the verdicts had been seen" in claim.note for claim in later)
