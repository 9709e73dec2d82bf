"""Parity with TencentARC/SEED-Voken: its code was run on weights and inputs that a formula gives (`seed_voken.py`).

Revision b9a17ea; image tokenizers with levels as those for 256 and 128 pixels, and the video tokenizer, all 32 channels
wide, with one block a level and 10 bits. The loss is the squared error, 0.1 of its entropy loss and 0.25 of the
commitment. Both ran in float64: with 0.01 as temperature, a softmax over codes in float32 is right to 1e-4 only.

The losses of its adversarial training (`video_vqperceptual.py`, without LPIPS) were run with a convolution of one layer
in place of the discriminator. A logit of each patch, not of each clip, comes out of SEED-Voken's discriminators: the
generator's loss is that of a clip's mean logit, the hinge and LeCam are means over single logits, and the hinge has a
factor of 1/2. Ours have one logit for each clip, no such factor, and LeCam of the mean logit, as MAGVIT's.
"""

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.magvit2.weights import load_seed_voken
from lightning_modules.video_tokens.adversarial import discriminator_loss, generator_loss, lecam
from lightning_modules.video_tokens.causal_tokenizer import CausalTokenizer
from lightning_modules.video_tokens.lookup_free import LookupFree, entropy, mean_chances, sample_entropy
from lightning_modules.video_tokens.training import annealed
from tests.magvit2.seed_voken import formula, summed, wave, weights

CLOSE = 1e-5  # relative
CASES = {
    "image, 256": {
        "latents": 10.87871463790703, "tokens": 4251042, "drawn": 96.34719626001696,
        "sample_entropy": 0.10380344300246486, "mean_entropy": 2.0732694637474314, "commitment": 0.5947703042063924,
        "loss": 3.128229636226695, "encoder.stem.weight": 0.4358809813829299, "encoder.head.weight": 3.79480107725675,
        "decoder.adaptive.2.gamma.weight": 6.626806902764823, "decoder.head.weight": 6.575192218816612,
        "decoder.grow.1.conv.weight": 12.35158728865395,
        "encoder.shrink.0.weight": -9.630274085817579,
    },
    "image, 128": {
        "latents": 15.403833411742973, "tokens": 4937280, "drawn": 238.79693423277268,
        "sample_entropy": 0.10171115487630646, "mean_entropy": 1.866514382213112, "commitment": 0.6313698573331525,
        "loss": 0.674446676601212, "encoder.stem.weight": -0.35786132237121526,
        "encoder.head.weight": 0.056850815792116816,
        "decoder.adaptive.2.gamma.weight": -0.2851020821417272, "decoder.head.weight": 4.370954306994132,
        "decoder.grow.1.conv.weight": -1.73642593970101,
        "encoder.shrink.0.weight": 1.9699772849878077,
    },
    "video": {
        "latents": 15.640001557309901, "tokens": 42857214, "drawn": -1079.7329483960048,
        "sample_entropy": 0.10654380629624756, "mean_entropy": 2.2610503531006714, "commitment": 0.5903950719718692,
        "loss": 0.5275744885438323, "encoder.stem.weight": 0.2534826752593291,
        "encoder.head.weight": -4.8588430551239075,
        "decoder.adaptive.2.gamma.weight": 2.0368414377598594, "decoder.head.weight": -6.232816967322147,
        "decoder.grow.1.conv.weight": -0.804477664328677,
        "encoder.shrink.0.weight": 4.32114551986055,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_latents_tokens_pictures_losses_and_gradients_are_those_of_seed_voken(name):
    video, expected = name == "video", CASES[name]
    sizes = {"width": 32, "multipliers": (1, 1, 2) if "256" in name else (1, 2, 2), "blocks": 1}
    options = {"frames": 5, "pooled_norm": True, "drop_second": True} if video else {"frames": 1, "dims": 2}
    quantiser = {"commitment": 1.0, "entropy": 1.0, "eps": 1e-5}
    tokenizer = CausalTokenizer(
        size=32, halve_time=(False, video), codebook_size=2**10, quantiser=quantiser, **sizes, **options
    )
    load_seed_voken(tokenizer, weights(video=video, bits=10, **sizes), averages=False)
    tokenizer.double()
    clip = (wave(2, 3, 5, 32, 32) if video else wave(2, 3, 32, 32).unsqueeze(2)).double()
    latents = tokenizer.encoder(clip)
    quantised = tokenizer.quantiser(latents)
    drawn = tokenizer.decoder(quantised.latents)
    terms = quantised.terms
    loss = F.mse_loss(drawn, clip) + 0.1 * terms["entropy"] + 0.25 * terms["commitment"]
    loss.backward()
    logits = 400 * latents.movedim(1, -1).flatten(0, -2)
    number = int((quantised.tokens.flatten() * torch.arange(1, quantised.tokens.numel() + 1)).sum())
    found = {
        "latents": summed(latents), "tokens": number, "drawn": summed(drawn), "loss": loss.item(),
        "sample_entropy": sample_entropy(logits).item(), "commitment": terms["commitment"].item(),
        "mean_entropy": entropy(mean_chances(logits.sigmoid()), 1e-5).item(),
    }  # fmt: skip
    found |= {n: summed(p.grad) for n, p in tokenizer.named_parameters() if n in expected}
    assert found == pytest.approx(expected, rel=CLOSE)


def judged():
    """Real clips, drawn clips, and a discriminator of one layer, in float64."""
    real, fake = (wave(2, 3, 5, 8, 8, shift=shift).double() for shift in (0.0, 0.4))
    discriminator = torch.nn.Conv3d(3, 1, 3, padding=1).double()
    for name, parameter in discriminator.named_parameters():
        parameter.data.copy_(formula(name, tuple(parameter.shape)))
    return real, (0.9 * fake).requires_grad_(), discriminator


def test_what_the_generator_minimises_is_seed_vokens_loss():
    """At step 500, with an entropy loss of -0.7, a commitment of 0.3, `codebook_enlarge_ratio` 2 and 2,000 steps."""
    real, fake, discriminator = judged()
    fooled = generator_loss(discriminator(fake).flatten(1).mean(1))
    loss = F.l1_loss(fake, real) + 0.3 * fooled + annealed(500, 1.0 + 2, 2000) * 0.1 * -0.7 + 0.25 * 0.3
    loss.backward()
    assert fooled.item() == pytest.approx(0.6448900964864636, rel=CLOSE)
    assert loss.item() == pytest.approx(0.34174403622831306, rel=CLOSE)
    assert summed(fake.grad) == pytest.approx(-0.047051313880711286, rel=CLOSE)


def test_what_the_discriminator_minimises_is_seed_vokens_loss():
    """LeCam's averages were 0.05 and -0.1, and the logits of the step are part of them there before they are used."""
    real, fake, discriminator = judged()
    logits = discriminator(real), discriminator(fake.detach())
    averages = [0.999 * old + 0.001 * x.detach().mean() for old, x in zip((0.05, -0.1), logits, strict=True)]
    hinge = discriminator_loss(*(x.flatten() for x in logits), "hinge") / 2
    single = [lecam(*pair, *averages) for pair in zip(*(x.flatten() for x in logits), strict=True)]
    loss = hinge + 0.05 * torch.stack(single).mean()
    loss.backward()
    assert hinge.item() == pytest.approx(1.0222621233125349, rel=CLOSE)
    assert loss.item() == pytest.approx(1.0562889986959676, rel=CLOSE)
    assert summed(discriminator.weight.grad) == pytest.approx(-0.42946487217191187, rel=CLOSE)
    clips = [x.flatten(1).mean(1) for x in logits]
    assert discriminator_loss(*clips).item() == pytest.approx(1.388936225736505, rel=CLOSE)  # its `non_saturate`
    means = [x.mean() for x in logits]
    assert lecam(*means, *averages).item() == pytest.approx(0.03934624540124625, rel=CLOSE)  # ours: far smaller


def test_the_order_of_bits_is_that_of_each_re_implementation():
    """(1, -1, -1, 1, -1, ...) of ten channels: SEED-Voken's 9, vector-quantize-pytorch's 576 (1.32.0)."""
    latents = torch.full((1, 10, 1, 1, 1), -1.0)
    latents[0, [0, 3]] = 1
    for order, token in (("little", 9), ("big", 576)):
        quantiser = LookupFree(2**10, 10, order=order).eval()
        assert quantiser(latents).tokens.item() == token
        assert torch.equal(quantiser.embed(torch.tensor([[[[token]]]])), latents)


@pytest.mark.parametrize(
    ("temperature", "sample", "mean", "total", "gradient"),
    [
        (0.01, 0.05658227668807286, 1.995030827497759, -0.07171097559272026, 0.30505515131294275),
        (1.0, 5.115802357715149, 6.1812681187651695, 0.015587303383246279, -0.1798749488838484),
    ],
)
def test_lookup_free_quantisation_is_that_of_vector_quantize_pytorch(temperature, sample, mean, total, gradient):
    """Its `LFQ` (1.32.0) in float64, with the author's weights, and 1e-30 in place of the 1e-5 within its logarithm.

    With its own 1e-5, where smaller chances count as that, the two entropies are 0.056581 and 1.994984 (temperature
    0.01), 5.115364 and 6.181268 (temperature 1).
    """
    latents = (0.5 * wave(2, 10, 3, 4, 4).double()).requires_grad_()
    found = LookupFree(2**10, 10, temperature=temperature, order="big")(latents)
    sum(found.terms.values()).backward()
    numbers = torch.arange(1, found.tokens.numel() + 1)
    assert int((found.tokens.flatten() * numbers).sum()) == 2371400
    logits = (4 / temperature * latents).movedim(1, -1).flatten(0, -2)
    assert sample_entropy(logits).item() == pytest.approx(sample, rel=CLOSE)
    assert entropy(mean_chances(logits.sigmoid())).item() == pytest.approx(mean, rel=CLOSE)
    assert found.terms["commitment"].item() / 0.25 == pytest.approx(0.4885355179529935, rel=CLOSE)
    assert sum(found.terms.values()).item() == pytest.approx(total, rel=CLOSE)
    assert summed(latents.grad) == pytest.approx(gradient, rel=CLOSE)
