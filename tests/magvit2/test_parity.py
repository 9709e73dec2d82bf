"""Parity with TencentARC/SEED-Voken: its code was run on weights and inputs that a formula gives (`seed_voken.py`).

Revision b9a17ea; image tokenizers with levels as those for 256 and 128 pixels, and the video tokenizer, all 32 channels
wide, with one block a level and 10 bits. The loss is the squared error, 0.1 of its entropy loss and 0.25 of the
commitment.
"""

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.magvit2.lookup_free import LookupFree, entropy, mean_chances, sample_entropy
from lightning_modules.magvit2.tokenizer import CausalTokenizer
from lightning_modules.magvit2.weights import load_seed_voken
from tests.magvit2.seed_voken import summed, wave, weights

CLOSE = 1e-5  # relative
CASES = {
    "image, 256": {
        "latents": 10.878695391023857, "tokens": 4251042, "drawn": 96.34712404418894,
        "sample_entropy": 0.10379981249570847, "mean_entropy": 2.073267936706543, "commitment": 0.5947707891464233,
        "loss": 3.128230571746826,
        "encoder.stem.weight": 0.4356868232412883, "encoder.head.weight": 3.796305095900909,
        "decoder.adaptive.2.gamma.weight": 6.626797629757401, "decoder.head.weight": 6.575196820190115,
        "decoder.grow.1.conv.weight": 12.351584012617941, "encoder.shrink.0.weight": -9.624598989857578,
    },
    "image, 128": {
        "latents": 15.403818879016594, "tokens": 4937280, "drawn": 238.79695580811125,
        "sample_entropy": 0.10170421004295349, "mean_entropy": 1.866511344909668, "commitment": 0.631369948387146,
        "loss": 0.6744464635848999,
        "encoder.stem.weight": -0.3588491415653566, "encoder.head.weight": 0.05581704933281162,
        "decoder.adaptive.2.gamma.weight": -0.28509804377339, "decoder.head.weight": 4.370954532969644,
        "decoder.grow.1.conv.weight": -1.73642711504213, "encoder.shrink.0.weight": 1.9791447332054133,
    },
    "video": {
        "latents": 15.639953612842113, "tokens": 42857214, "drawn": -1079.73293489698,
        "sample_entropy": 0.1065518781542778, "mean_entropy": 2.261059045791626, "commitment": 0.5903946161270142,
        "loss": 0.5275743007659912,
        "encoder.stem.weight": 0.2509750946058779, "encoder.head.weight": -4.852604550906209,
        "decoder.adaptive.2.gamma.weight": 2.0368396407664826, "decoder.head.weight": -6.232815606546943,
        "decoder.grow.1.conv.weight": -0.8044762518130225, "encoder.shrink.0.weight": 4.3310553379764505,
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
    clip = wave(2, 3, 5, 32, 32) if video else wave(2, 3, 32, 32).unsqueeze(2)
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


def test_the_order_of_bits_is_that_of_each_re_implementation():
    """(1, -1, -1, 1, -1, ...) of ten channels: SEED-Voken's 9, vector-quantize-pytorch's 576 (1.32.0)."""
    latents = torch.full((1, 10, 1, 1, 1), -1.0)
    latents[0, [0, 3]] = 1
    for order, token in (("little", 9), ("big", 576)):
        quantiser = LookupFree(2**10, 10, order=order).eval()
        assert quantiser(latents).tokens.item() == token
        assert torch.equal(quantiser.embed(torch.tensor([[[[token]]]])), latents)
