"""Open-MAGVIT2's generator: parity with SEED-Voken, sizes, and one sub-token after another.

Numbers were printed by src/Open_MAGVIT2/modules/transformer/gpt.py of TencentARC/SEED-Voken at b9a17ea, with weights
that a formula gives (`formula.py`).
"""

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.magvit2.autoregressive import Llama, load_open_magvit2
from lightning_modules.metrics.compute import count_parameters
from tests.magvit2.formula import filled, formula, summed

CLOSE = 1e-5
SMALL = {"classes": 5, "rows": 4, "columns": 4, "bits": (2, 3), "layers": 2, "factorized_layers": 2, "hidden_size": 16,
         "heads": 2, "mlp_multiple": 8}  # fmt: skip
GRADIENTS = {
    "pre_emb.weight": -4.773079572910745,
    "class_emb.embedding_table.weight": 0.004022967826853163,
    "spatial_blocks.0.attention.wqkv.weight": -0.033184421599787475,
    "factorized_blocks.1.feed_forward.w2.weight": 0.01884356293226397,
}
# the most probable sub-tokens of classes 1 and 4; all that are not named are 0 and 6
DRAWN = {0.0: ((0, 2), (6, 7)), 2.0: ((0, 1), (6, 7))}


@pytest.fixture(scope="module")
def network():
    return filled(Llama(**SMALL)).eval()


def given():
    places = torch.arange(32)
    return torch.tensor([1, 4]), (places * 7 % 4).view(2, 16), (places * 5 % 8).view(2, 16)


def test_logits_loss_and_gradients_are_the_official_ones(network):
    labels, first, second = given()
    logits = network(labels, first, second).split([4, 8], -1)
    assert [summed(part) for part in logits] == pytest.approx([-22.20070009647985, -5.5002247130674675], rel=CLOSE)
    loss = sum(F.cross_entropy(x.flatten(0, 1), y.flatten()) for x, y in zip(logits, (first, second), strict=True))
    assert loss.item() == pytest.approx(3.790234088897705, rel=CLOSE)
    network.zero_grad()
    loss.backward()
    found = {name: summed(dict(network.named_parameters())[name].grad) for name in GRADIENTS}
    assert found == pytest.approx(GRADIENTS, rel=1e-4)  # sums of a few hundred numbers that cancel


@pytest.mark.parametrize("guidance", DRAWN)
def test_what_is_drawn_with_and_without_guidance_is_what_the_official_code_draws(network, guidance):
    """There l without + s (l - l without), with s = 1 + the guidance here."""
    labels = torch.tensor([1, 4])
    step = network.steps(torch.cat([labels, torch.full_like(labels, 5)]))
    with torch.no_grad():
        logits, found = next(step), []
        for _ in range(31):
            known, unknown = logits.chunk(2)
            found.append((known + guidance * (known - unknown)).argmax(-1))
            logits = step.send(found[-1].repeat(2))
    first, second = torch.stack(found[::2], 1), torch.stack(found[1::2], 1)
    assert (first[:, 0].tolist(), second[:, 0].tolist()) == tuple(list(part) for part in DRAWN[guidance])
    assert not first[:, 1:].any() and (second[:, 1:] == 6).all()


def test_keys_and_values_that_are_kept_give_the_logits_of_the_whole_sequence(network):
    labels, first, second = given()
    with torch.no_grad():
        whole = network(labels, first, second).split([4, 8], -1)
        step, parts = network.steps(labels), ([], [])
        logits = next(step)
        for place in range(16):
            for number, truth in enumerate((first, second)):
                parts[number].append(logits)
                if (place, number) != (15, 1):
                    logits = step.send(truth[:, place])
    for expected, found in zip(whole, parts, strict=True):
        assert torch.allclose(torch.stack(found, 1), expected, atol=1e-5)


def test_no_token_is_known_before_it_is_asked_for(network):
    labels, first, second = given()
    other = first.clone(), second.clone()
    other[0][:, 7] = (other[0][:, 7] + 1) % 4
    with torch.no_grad():
        before, after = network(labels, first, second), network(labels, other[0], second)
    changed = (before - after).abs().amax((0, 2)) > 0
    assert changed.tolist() == [False] * 7 + [True] * 9
    assert torch.equal(before[:, 7, :4], after[:, 7, :4])  # its own first sub-token


@pytest.mark.parametrize(
    ("size", "parameters"),
    [((24, 2, 1024, 16), 343570432), ((36, 3, 1280, 20), 804362240), ((48, 4, 1536, 24), 1486679040)],
)
def test_the_published_sizes(size, parameters):
    layers, factorized, hidden, heads = size
    with torch.device("meta"):
        built = Llama(classes=1000, rows=16, columns=16, layers=layers, factorized_layers=factorized,
                      hidden_size=hidden, heads=heads)  # fmt: skip
    assert count_parameters(built) == parameters


def test_a_checkpoint_is_taken_over_strictly():
    built = Llama(**SMALL)
    state = {f"transformer.{name}": formula(name, tuple(x.shape)) for name, x in built.state_dict().items()}
    tokenizer = "first_stage_model.encoder.conv_in.weight"
    assert load_open_magvit2(built, {**state, tokenizer: torch.zeros(1)}) == [tokenizer]
    assert torch.equal(built.norm.weight, formula("norm.weight", (16,)))
    with pytest.raises(ValueError, match="the checkpoint of Open-MAGVIT2-AR"):
        load_open_magvit2(built, {name: x for name, x in state.items() if "head.1" not in name})
    with pytest.raises(ValueError, match="the checkpoint of Open-MAGVIT2-AR"):
        load_open_magvit2(built, {**state, "transformer.extra": torch.zeros(1)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": (2, 2, 2)}, r"bits is \[2, 2, 2\], expected two numbers"),
        ({"hidden_size": 20}, r"hidden_size \(20\) must be a multiple of 4 x heads \(2\)"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Llama(**{**SMALL, **options})
