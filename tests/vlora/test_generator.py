"""The weights generator has the sizes of the paper, and adds nothing at the start."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_modules.vlora.generator import PerceptualWeights
from lightning_modules.vlora.injection import Injection, merged, sizes_of


def square(width: int) -> dict:
    """Every kind as wide as the language model."""
    return dict.fromkeys("qkvom", (width, width))


def language(kv_heads: int = 2) -> LlamaForCausalLM:
    """A small Llama."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=kv_heads, **sizes)).eval()


def generator(model: LlamaForCausalLM, **options) -> PerceptualWeights:
    """A small generator for it."""
    sizes = {"visual_dim": 12, "patches": 5, "dim": 16, "depth": 1, "rank": 3, "skip": 2, "heads": 2} | options
    return PerceptualWeights(sizes=sizes_of(model.model.layers[0]), layers=4, **sizes)


def learn(made: PerceptualWeights) -> None:
    """Learned factors that are not zero."""
    for factor in made.learned.values():
        torch.nn.init.normal_(factor, std=0.5)


def test_adapted_layers():
    with torch.device("meta"):
        made = PerceptualWeights(sizes=square(64), layers=32, visual_dim=8, patches=4, dim=16)
    assert made.macs == 8 * 64 * 5 * 128
    assert [*made.adapted] == [3, 7, 11, 15, 19, 23, 27, 31]


def test_at_the_start_nothing_is_added():
    model = language()
    made, ids = generator(model), torch.arange(6)[None]
    with torch.no_grad():
        alone = model(ids).logits
        injection = Injection(model.model.layers)
        injection.use(made(torch.randn(1, 5, 12)))
        assert torch.equal(model(ids).logits, alone)


def test_rows_have_their_own_additions_and_rows_without_a_picture_none():
    model = language()
    made, ids, seen = generator(model), torch.arange(6).expand(3, -1), 50 * torch.randn(3, 5, 12)
    learn(made)
    for decoder in made.decoders:  # a fresh generator hardly tells pictures apart
        torch.nn.init.normal_(decoder.head.weight)
    injection = Injection(model.model.layers)
    with torch.no_grad():
        alone = model(ids).logits
        injection.use(made(seen, torch.tensor([True, True, False])))
        together = model(ids).logits
        for row in range(2):
            injection.use(made(seen[row : row + 1]))
            torch.testing.assert_close(model(ids[:1]).logits[0], together[row], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together[2], alone[2], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_merged_weights_compute_the_same_and_are_put_back():
    model = language()
    made, ids = generator(model), torch.arange(6)[None]
    learn(made)
    injection = Injection(model.model.layers)
    with torch.no_grad():
        alone, deltas = model(ids).logits, made(torch.randn(1, 5, 12))
        injection.use(deltas)
        expected = model(ids).logits
        with merged(model.model.layers, deltas) as rest:
            assert {kind for own in rest.values() for kind in own} == {"m"}
            injection.use(rest)
            torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)
        injection.use(None)
        assert torch.equal(model(ids).logits, alone)


def test_several_pictures_cannot_be_merged():
    model = language()
    with pytest.raises(ValueError, match="of 2 pictures, expected 1"):
        merged(model.model.layers, generator(model)(torch.randn(2, 5, 12))).__enter__()


@pytest.mark.parametrize("kinds", ["", "qq", "x"])
def test_unknown_kinds(kinds):
    with pytest.raises(ValueError, match="expected some of qkvom"):
        generator(language(), kinds=kinds)
