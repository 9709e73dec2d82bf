"""Parity with google-research/magvit: its JAX code was run on weights and inputs that a formula gives (`reference.py`).

Numbers were printed by that code at 05e8cfd with jax 0.10.2 and flax 0.12.8 on a CPU, matrix products in float32. Sums
are weighted (`reference.summed`), so that a value in a wrong place changes them.
"""

import pytest

from lightning_modules.magvit.tokenizer import Tokenizer
from lightning_modules.metrics.compute import count_parameters
from tests.magvit.reference import filled, last, summed, video

CLOSE = 2e-5  # relative, in float32
SMALL = {"frames": 4, "size": 16, "width": 32, "multipliers": (1, 2, 2), "blocks": 1, "halve_time": (True, False),
         "embedding_dim": 8, "codebook_size": 24, "norm_groups": 32}  # fmt: skip
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
    assert [found.terms[name].item() for name in ("commitment", "codebook", "entropy")] == pytest.approx(
        terms, rel=CLOSE
    )
    if tokenizer.dims == 3:
        raw = last(tokenizer.encoder(clips).detach())
        assert summed(raw) == pytest.approx(latents, abs=CLOSE * float(raw.abs().sum()))
