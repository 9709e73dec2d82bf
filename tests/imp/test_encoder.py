"""Sizes and products of the published encoders, and what experts do in a layer."""

import math

import pytest
import torch

from lightning_modules.imp.encoder import Attention, Encoder, Layer, sparse_layers
from lightning_modules.imp.experts import Experts
from lightning_modules.imp.network import Network
from lightning_modules.metrics.compute import count_macs, count_parameters

MIXTURE = {
    "experts": 16, "layers": 6, "place": "last", "routing": "expert_choice", "largest_group": 2048, "capacity": 1.0,
    "least_capacity": 0, "selected": 1, "prioritised": False, "slots": 32, "evaluation_groups": "batch", "z_loss": 1.0,
    "balance": 1.0,
}  # fmt: skip
SIZES = {
    "S": {"dim": 384, "hidden": 1536, "layers": 12, "heads": 6},
    "B": {"dim": 768, "hidden": 3072, "layers": 12, "heads": 12},
    "L": {"dim": 1024, "hidden": 4096, "layers": 24, "heads": 16},
}
VISION = {"vision": {"patch": [4, 16, 16], "buckets": [16, 32, 32]}}
LOOKING = {
    "images": {"objective": "classification", "modalities": ["vision"], "classes": 2, "drop": 0.0, "weight": 1.0}
}


def built(size, mixture=None):
    with torch.device("meta"):
        return Encoder(**SIZES[size], norm_qk=mixture is not None, mixture=mixture)


def mixture(**changes):
    return MIXTURE | {"experts": 4, "layers": 1, "slots": 2} | changes


@pytest.mark.parametrize(("size", "count"), [("S", 21_243_264), ("B", 84_953_856), ("L", 302_040_064)])
def test_dense_encoders_have_the_parameters_of_the_official_sizes(size, count):
    # The count is that of scales alone; the last norm has a bias in the official code.
    assert count_parameters(built(size)) == count + SIZES[size]["dim"]


@pytest.mark.parametrize(
    ("size", "experts", "total"), [("S", 4, 42_487_680), ("B", 16, 509_702_400), ("L", 16, 1_057_116_160)]
)
def test_encoders_with_experts_have_the_parameters_of_the_official_sizes(size, experts, total):
    found = count_parameters(built(size, MIXTURE | {"experts": experts}))
    assert found == total + SIZES[size]["dim"]


@pytest.mark.parametrize(("size", "millions"), [("S", 22.75), ("B", 88.56), ("L", 307.37)])
def test_the_path_of_a_picture_has_the_parameters_of_the_official_sizes(size, millions):
    with torch.device("meta"):
        network = Network(
            sizes=SIZES[size] | {"norm_qk": False}, mixture=None, modalities=VISION, tasks=LOOKING, common_dim=1024,
            temperature=0.2,
        )  # fmt: skip
    found = count_parameters(network) - count_parameters(network.classifiers)
    assert round(found / 1e6, 2) == millions


@pytest.mark.parametrize(("tokens", "gflops"), [(256, 45.9), (1024, 212.6), (64, 11.0), (16, 2.73)])
def test_a_forward_pass_of_the_base_encoder_costs_what_its_tokens_cost(tokens, gflops):
    class Only(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = built("B")

        def forward(self, image):
            return self.encoder(image.flatten(2).transpose(1, 2))

    flops = 2 * count_macs(Only(), (768, tokens, 1))
    assert flops / 1e9 == pytest.approx(gflops, rel=3e-3)


def test_the_last_layers_have_experts_or_evenly_spread_ones():
    assert sparse_layers(4, mixture(layers=2)) == [False, False, True, True]
    assert sparse_layers(4, mixture(layers=2, place="uniform")) == [False, True, False, True]
    assert sparse_layers(4, mixture(layers=0)) == [False] * 4


def test_experts_that_do_not_fit_the_layers_are_refused():
    with pytest.raises(ValueError, match=r"mixture\.layers is 6, but there are 4 layers"):
        sparse_layers(4, MIXTURE)
    with pytest.raises(ValueError, match=r"mixture\.layers is 3, which does not divide 4 layers"):
        sparse_layers(4, mixture(layers=3, place="uniform"))
    with pytest.raises(ValueError, match=r"mixture\.selected is 5, but there are 4 experts"):
        Experts(4, 8, mixture(selected=5))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match=r"dim \(10\) must be a multiple of heads \(4\)"):
        Attention(10, 4, norm_qk=False)


def test_what_is_not_there_is_not_attended_to():
    torch.manual_seed(0)
    layer, x = Layer(8, 16, 2, norm_qk=True), torch.randn(1, 4, 8)
    there = torch.tensor([[True, True, True, False]])
    other = x.clone()
    other[0, 3] = 7.0
    torch.testing.assert_close(layer(x, there)[:, :3], layer(other, there)[:, :3])


def test_one_expert_with_all_tokens_is_a_feed_forward_network():
    torch.manual_seed(0)
    experts = Experts(8, 16, mixture(experts=2, capacity=2.0)).train()
    with torch.no_grad():
        experts.wi[1], experts.wo[1] = experts.wi[0].clone(), experts.wo[0].clone()
    x = torch.randn(2, 4, 8)
    plain = torch.nn.functional.gelu(x @ experts.wi[0], approximate="tanh") @ experts.wo[0]
    torch.testing.assert_close(experts(x), plain)  # the probabilities of both sum to 1


@pytest.mark.parametrize("routing", ["expert_choice", "token_choice", "soft"])
def test_a_sample_alone_gets_the_answer_that_it_gets_in_a_batch(routing):
    torch.manual_seed(0)
    experts = Experts(8, 16, mixture(routing=routing, evaluation_groups="sample")).eval()
    x = torch.randn(6, 5, 8)
    torch.testing.assert_close(experts(x)[2:3], experts(x[2:3]))


def test_groups_over_a_batch_make_answers_depend_on_it():
    torch.manual_seed(0)
    experts = Experts(8, 16, mixture()).eval()
    x = torch.randn(8, 4, 8)
    assert not torch.allclose(experts(x)[:1], experts(x[:1]))


def test_dispatch_is_what_a_loop_over_experts_computes():
    torch.manual_seed(0)
    experts = Experts(8, 16, mixture(experts=3, capacity=1.5)).train()
    x = torch.randn(3, 8, 8)
    found = experts(x)
    loop = torch.zeros(3, 8, 8)
    for group in range(3):
        for expert in range(3):
            for index, weight in zip(experts.dispatch.index[group, expert], experts.dispatch.weight[group, expert],
                                     strict=True):  # fmt: skip
                hidden = torch.nn.functional.gelu(x[group, index] @ experts.wi[expert], approximate="tanh")
                loop[group, index] += weight * (hidden @ experts.wo[expert])
    torch.testing.assert_close(found, loop)


def test_the_loss_of_a_router_that_knows_nothing_is_that_of_the_paper():
    experts = Experts(8, 16, mixture(experts=16)).train()
    with torch.no_grad():
        experts.router.zero_()
    experts(torch.randn(16, 4, 8))
    assert experts.loss.item() == pytest.approx(math.log(16) ** 2, rel=1e-5)
    assert round(experts.loss.item(), 3) == 7.687
