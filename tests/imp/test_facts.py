"""The counts in the facts are those of the networks that they name."""

from pathlib import Path

import pytest
import torch

from lightning_modules.metrics.claims import load_facts
from lightning_modules.metrics.compute import count_macs, count_parameters
from tests.imp.test_encoder import MIXTURE, SIZES, built

FACTS = load_facts(Path(__file__).parents[2] / "lightning_modules/imp/facts.yaml")
ORACLES = {oracle.name: oracle.model_extra for oracle in FACTS.oracles}
COUNTED = [name for name, told in ORACLES.items() if "params" in told]
MULTIPLIED = [name for name, told in ORACLES.items() if "macs" in told]


class OfTokens(torch.nn.Module):
    """An encoder of tokens that come as the columns of a picture."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, image):
        return self.encoder(image.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("name", COUNTED)
def test_parameters_are_those_of_the_sizes(name):
    size = name.rpartition("-")[2]
    mixture = MIXTURE | {"experts": 4 if size == "S" else 16} if "moe" in name else None
    assert count_parameters(built(size, mixture)) - SIZES[size]["dim"] == ORACLES[name]["params"]


@pytest.mark.parametrize("name", MULTIPLIED)
def test_products_are_those_of_the_tokens(name):
    tokens = int(name.split("-")[2])
    assert count_macs(OfTokens(built("B")), (768, tokens, 1)) == ORACLES[name]["macs"]


def test_experts_cost_one_token_no_more_than_a_dense_layer():
    """Active parameters of MoE-B: the dense encoder, norms of queries and keys, and nothing of idle experts."""
    dense, sparse = built("B"), built("B", MIXTURE)
    idle = sum(part.numel() - part.numel() // 16 for layer in sparse.experts() for part in (layer.wi, layer.wo))
    routers = sum(layer.router.numel() for layer in sparse.experts())
    assert count_parameters(sparse) - idle - routers == count_parameters(dense) + 12 * 2 * 64


@pytest.mark.parametrize("arm", ["imp", "imp-moe"])
def test_official_shares_of_steps(arm):
    from stages.composing import compose
    from stages.plan import load_plan

    row = load_plan("paper").pretrain[arm]
    tasks = compose("paper", system=row.system, overrides=row.overrides)["system"]["data"]["tasks"]
    intervals = {name: task["interval"] for name, task in tasks.items()}
    counts = {name: 120 // every for name, every in intervals.items()}
    assert counts == {"pairs": 120, "images": 120, "told": 10, "clips": 24, "sounding": 10, "sounds": 15}
    assert sum(counts.values()) == 299
    weights = {name: task["weight"] for name, task in tasks.items()}
    assert {name: round(120 * weight) for name, weight in weights.items()} == counts
