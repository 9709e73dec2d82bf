"""Parity with google-research/magvit: its JAX code was run on weights and inputs that a formula gives (`reference.py`).

Numbers were printed by that code at 05e8cfd with jax 0.10.2 and flax 0.12.8 on a CPU, matrix products in float32. Sums
are weighted (`reference.summed`), so that a value in a wrong place changes them.
"""

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.magvit.tokenizer import Tokenizer
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.video_tokens.adversarial import discriminator_loss, generator_loss, lecam, r1_penalty
from lightning_modules.video_tokens.discriminator import Discriminator
from lightning_modules.video_tokens.quantiser import entropy_term
from lightning_modules.video_tokens.transformer import Bert
from tests.magvit.reference import filled, last, summed, video, wave

CLOSE, EXACT = 2e-5, 1e-10  # relative, in float32 and in float64
SMALL = {"frames": 4, "size": 16, "width": 32, "multipliers": (1, 2, 2), "blocks": 1, "halve_time": (True, False),
         "embedding_dim": 8, "codebook_size": 24, "norm_groups": 32}  # fmt: skip
TRANSFORMER = {"vocabulary": 30, "length": 12, "layers": 2, "hidden_size": 16, "mlp_dim": 32, "heads": 4}
# parameters; weighted sum of latents; sum and number of the tokens; weighted sum of what is drawn; the three terms
TOKENIZERS = {
    "3d": ({}, 1657227, 1.030862808227539, 717, 15, 241.59710693359375,
           (0.012641300447285175, 0.0505652017891407, -0.1929367333650589)),
    "3d, reflected": ({"padding": "reflect"}, 1657227, 0.37298744916915894, 760, 17, 250.53079223632812,
                      (0.01377781666815281, 0.05511126667261124, -0.19803480803966522)),
    "2d": ({"dims": 2}, 557067, 9.12301254272461, 1383, 18, 249.42874145507812,
           (0.01135856844484806, 0.04543427377939224, -0.20057497918605804)),
}  # fmt: skip


def built(kind):
    options = TOKENIZERS[kind][0]
    return filled(Tokenizer(**SMALL, **options), flat="dims" in options)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_computes_what_the_official_one_does(kind):
    _, parameters, latents, tokens, used, drawn, terms = TOKENIZERS[kind]
    tokenizer, clips = built(kind).train(), video((2, 4, 16, 16, 3))
    assert count_parameters(tokenizer) == parameters
    again, found = tokenizer(clips)
    assert (int(found.tokens.sum()), len(found.tokens.unique())) == (tokens, used)
    assert summed(last(again.detach())) == pytest.approx(drawn, rel=CLOSE)
    assert summed(last(tokenizer.decode(found.tokens).detach())) == pytest.approx(drawn, rel=CLOSE)
    assert [found.terms[name].item() for name in ("commitment", "codebook")] == pytest.approx(terms[:2], rel=CLOSE)
    assert found.terms["entropy"].item() == pytest.approx(terms[2], rel=2e-4)  # distances / 0.01: rounding times 100
    if tokenizer.dims == 3:
        raw = last(tokenizer.encoder(clips).detach())
        assert summed(raw) == pytest.approx(latents, abs=CLOSE * float(raw.abs().sum()))


def test_in_float64_nothing_is_left_of_the_difference_of_a_tokenizer():
    """The official code with `jax_enable_x64` and float64 in place of float32: what differs above is rounding alone."""
    tokenizer, clips = built("3d").double().train(), video((2, 4, 16, 16, 3)).double()
    again, found = tokenizer(clips)
    assert summed(last(again.detach())) == pytest.approx(241.5968226487413, rel=EXACT)
    assert summed(last(tokenizer.encoder(clips).detach())) == pytest.approx(1.030874423226289, rel=EXACT)
    terms = {"commitment": 0.012641218266632477, "codebook": 0.05056487306652991, "entropy": -0.19294000247750487}
    assert {name: term.item() for name, term in found.terms.items()} == pytest.approx(terms, rel=EXACT)


def test_in_float64_nothing_is_left_of_the_difference_of_the_transformer_and_its_gradients():
    network, tokens = filled(Bert(**TRANSFORMER), heads=4).double().eval(), (torch.arange(24) * 7 % 30).view(2, 12)
    logits = network(tokens)
    expected = [1.972457690243057, 0.054863996674751024, -1.8913767024104216, -2.845487827306124]
    assert logits[1, 3, :4].tolist() == pytest.approx(expected, rel=EXACT)
    assert summed(logits.detach()) == pytest.approx(2.902283125126967, rel=EXACT)
    weights = torch.from_numpy(wave((2, 12), 1.0, 0.9) > 0.4).double()
    each = F.cross_entropy(logits[..., :20].transpose(1, 2), tokens % 20, reduction="none", label_smoothing=1e-4)
    loss = ((each * weights).sum(1) / weights.sum(1)).mean()
    assert loss.item() == pytest.approx(4.173256756891421, rel=EXACT)
    loss.backward()
    assert summed(network.words.weight.grad) == pytest.approx(-6.487765701576402, rel=EXACT)
    query = network.layers[0].query.weight.grad.T.reshape(16, 4, 4)
    assert summed(query) == pytest.approx(-0.029220396034698233, rel=EXACT)


def test_gradients_of_a_tokenizer_are_the_official_ones():
    """At temperature 1: at 0.01 the entropy term multiplies the rounding of distances by a hundred."""
    tokenizer, clips = filled(Tokenizer(**SMALL, quantiser={"temperature": 1.0})).train(), video((2, 4, 16, 16, 3))
    again, found = tokenizer(clips)
    assert found.terms["entropy"].item() == pytest.approx(-0.022021818906068802, rel=CLOSE)
    (F.mse_loss(again, clips) + sum(found.terms.values())).backward()
    kernel = tokenizer.encoder.stem.weight.grad.permute(2, 3, 4, 1, 0).contiguous()
    assert summed(kernel) == pytest.approx(-37.44292449951172, abs=5e-6 * float(kernel.abs().sum()))
    assert summed(tokenizer.quantiser.codebook.grad) == pytest.approx(0.009248952381312847, rel=1e-4)
    assert summed(tokenizer.decoder.norm.weight.grad) == pytest.approx(0.028334196656942368, rel=1e-4)


def test_the_discriminator_and_its_losses_are_the_official_ones():
    built = filled(Discriminator(depth=3, width=4, multipliers=(2, 4), frames=4, size=16))
    clips = video((2, 4, 16, 16, 3)).requires_grad_()
    assert count_parameters(built) == 18061
    real, fake = built(clips), built(video((2, 4, 16, 16, 3), 0.8, 1.1))
    assert real.tolist() == pytest.approx([0.9489378929138184, 0.9824258089065552], rel=CLOSE)
    penalty = 10 * r1_penalty(real, clips)
    assert penalty.item() == pytest.approx(33.95814514160156, rel=CLOSE)
    assert discriminator_loss(real, fake).item() == pytest.approx(1.6602275371551514, rel=CLOSE)
    assert discriminator_loss(real, fake, "hinge").item() == pytest.approx(2.067446708679199, rel=CLOSE)
    assert generator_loss(fake).item() == pytest.approx(0.3044634163379669, rel=CLOSE)
    for averages, expected in (((-0.2, 0.3), 0.4431324601173401), ((2.0, -2.0), 9.730110168457031)):
        found = lecam(real.mean(), fake.mean(), *map(torch.tensor, averages))
        assert found.item() == pytest.approx(expected, rel=CLOSE)
    (gradient,) = torch.autograd.grad(penalty, built.stem.weight)
    assert summed(gradient.permute(2, 3, 4, 1, 0).contiguous()) == pytest.approx(-4.754117965698242, rel=CLOSE)


def test_the_discriminator_of_frames_is_the_official_one():
    built = filled(Discriminator(depth=1, width=4, multipliers=(2, 4), frames=4, size=16), flat=True)
    assert count_parameters(built) == 8917
    expected = [-2.4273812770843506, -2.621171474456787, -1.9624162912368774, -2.3118538856506348, -2.637899160385132,
                -2.0473082065582275, -2.232743740081787, -2.6266891956329346]  # fmt: skip
    assert built(video((2, 4, 16, 16, 3))).tolist() == pytest.approx(expected, rel=CLOSE)


def test_the_transformer_and_its_loss_are_the_official_ones():
    built = filled(Bert(**TRANSFORMER), heads=4).eval()
    tokens = (torch.arange(24) * 7 % 30).view(2, 12)
    logits = built(tokens)
    size = float(logits.detach().abs().sum())
    assert count_parameters(built) == 5486
    expected = [1.9724568128585815, 0.054862819612026215, -1.8913774490356445, -2.8454878330230713]
    assert logits[1, 3, :4].tolist() == pytest.approx(expected, rel=CLOSE)
    assert summed(logits.detach()) == pytest.approx(2.9022693634033203, abs=CLOSE * size)
    weights = torch.from_numpy(wave((2, 12), 1.0, 0.9) > 0.4).float()
    each = F.cross_entropy(logits[..., :20].transpose(1, 2), tokens % 20, reduction="none", label_smoothing=1e-4)
    loss = ((each * weights).sum(1) / weights.sum(1)).mean()
    assert loss.item() == pytest.approx(4.173255920410156, rel=CLOSE)
    loss.backward()
    assert summed(built.words.weight.grad) == pytest.approx(-6.48771333694458, rel=1e-4)
    query = built.layers[0].query.weight.grad.T.reshape(16, 4, 4)
    assert summed(query) == pytest.approx(-0.029220378026366234, rel=1e-3)


@pytest.mark.parametrize(("kind", "expected"), [("softmax", -0.5020063735171026), ("argmax", -0.5032792600888836)])
def test_the_entropy_term_is_the_official_one(kind, expected):
    affinity = torch.from_numpy(wave((6, 5), 4.0, 0.2)) / 0.5
    assert entropy_term(affinity.double(), kind).item() == pytest.approx(expected, rel=EXACT)
    assert entropy_term(affinity, kind).item() == pytest.approx(expected, rel=1e-5)
