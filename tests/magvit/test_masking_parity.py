"""Parity of masking, decoding and inflation with google-research/magvit.

Numbers were printed by its code at 05e8cfd with jax 0.10.2 and flax 0.12.8. Whole ones are sums, weighted by places
(`placed`), of what `random_mask` and `parallel_decode.decode` gave for tokens and scores that a formula gives; a mask
counts as 99. While decoding, the most probable code was taken (a sampling temperature of 1e-6), and a formula gave the
noise on how sure a token is.
"""

import numpy as np
import pytest
import torch

from lightning_modules.video_tokens import masking
from lightning_modules.video_tokens.masking import Given, decode, draw_codes, mask_tokens
from lightning_modules.video_tokens.tokenizer import inflated
from tests.magvit.reference import summed, wave

CODES, MASK, CLIPS, TOKENS = 40, 99, 2, 24
OWN = (torch.arange(CLIPS * TOKENS) * 7 % CODES).view(CLIPS, TOKENS)
GIVEN = Given((torch.arange(CLIPS * TOKENS) * 11 % CODES).view(CLIPS, TOKENS), (torch.arange(TOKENS) % 5 < 2)[None])
SCORES = torch.from_numpy(wave((CLIPS, TOKENS), 1.0, 0.5))
RATIOS = (1e-6, 0.3, 0.77, 1.0)  # the code's 0 is clipped to the first
# for each ratio: masks; what is shown; weights of `mask+refine`; weights of `mask+refine+recons`
MASKED = {
    "none": [(2, 25663, 47, 1176), (14, 48661, 347, 1176), (36, 92467, 863, 1176), (48, 116424, 1176, 1176)],
    "commit": [(2, 25663, 47, 1176), (11, 43939, 347, 1176), (19, 61863, 863, 1176), (28, 78394, 1176, 1176)],
    "latent": [(2, 25663, 47, 706), (8, 36084, 188, 706), (20, 62343, 489, 706), (28, 79554, 706, 706)],
    "fixed": [(2, 24503, 47, 706), (8, 34924, 188, 706), (20, 61183, 489, 706), (28, 78394, 706, 706)],
}
# steps, schedule, temperature; masks in both clips at each step; what is shown at all steps; what is drawn
DECODED = {
    "none": [
        (5, "cosine", 0.0, [48, 44, 38, 28, 14], 1207312, 25632),
        (5, "cosine", 4.5, [48, 44, 38, 28, 14], 1162402, 21241),
        (12, "exp", 0.0, [48, 44, 42, 40, 38, 36, 34, 32, 30, 26, 18, 10], 6163276, 23308),
        (12, "exp", 4.5, [48, 44, 42, 40, 38, 36, 34, 32, 30, 26, 18, 10], 5892857, 22542),
        (4, "uniform", 4.5, [48, 36, 24, 12], 675207, 21724),
        (6, "square", 4.5, [48, 46, 42, 36, 26, 14], 1669783, 22642),
    ],
    "commit": [
        (5, "cosine", 0.0, [28, 25, 23, 15, 9], 854003, 21040),
        (5, "cosine", 4.5, [28, 24, 20, 16, 11], 821154, 21443),
        (12, "exp", 0.0, [28, 25, 25, 25, 23, 21, 19, 17, 15, 14, 12, 5], 4367885, 22942),
        (12, "exp", 4.5, [28, 24, 23, 21, 20, 20, 19, 18, 17, 16, 12, 8], 4091397, 18034),
        (4, "uniform", 4.5, [28, 20, 16, 10], 530341, 21312),
        (6, "square", 4.5, [28, 26, 23, 20, 16, 11], 1172139, 18353),
    ],
    "fixed": [
        (5, "cosine", 0.0, [28, 26, 22, 16, 8], 841486, 20822),
        (5, "cosine", 4.5, [28, 26, 22, 16, 8], 807252, 19532),
        (12, "exp", 0.0, [28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6], 3848954, 20540),
        (12, "exp", 4.5, [28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6], 3660059, 19532),
        (4, "uniform", 4.5, [28, 20, 14, 6], 471357, 20223),
        (6, "square", 4.5, [28, 26, 24, 20, 14, 8], 1126818, 19637),
    ],
}
# weighted sums of a kernel of 3 x 3 x 3, of a bias, of a kernel of 1 x 1 x 1 and of a matrix of another shape
INFLATED = {
    "central": {"conv": 46.107060427905395, "bias": 3.5410321107304377, "point": 7.59576066294993},
    "average": {"conv": 106.7971153347602, "bias": 3.5410321107304377, "point": 7.59576066294993},
}


def placed(x) -> int:
    """The sum of whole numbers, each times its place."""
    return int((torch.as_tensor(x).flatten().long() * torch.arange(1, torch.as_tensor(x).numel() + 1)).sum())


@pytest.mark.parametrize("conditioning", MASKED)
def test_what_is_masked_shown_and_asked_is_what_the_official_code_does(conditioning):
    found = []
    for ratio in RATIOS:
        arguments = {"mask": MASK, "conditioning": conditioning}
        given = None if conditioning == "none" else GIVEN
        some, whole = (
            mask_tokens(OWN, given, torch.tensor([ratio]), SCORES, parts=parts, **arguments)
            for parts in (("mask", "refine"), ("mask", "refine", "recons"))
        )
        assert torch.equal(some.shown, whole.shown)
        found.append((int((some.shown == MASK).sum()), *map(placed, (some.shown, some.asked, whole.asked))))
    assert found == MASKED[conditioning]


def network(shown: torch.Tensor) -> torch.Tensor:
    """Logits (clips, tokens, codes) that depend on a token and on its neighbour."""
    codes, places = torch.arange(CODES), torch.arange(TOKENS)[:, None]
    own = (shown[..., None] + 1) * 0.37 + codes * 1.91 + places * 0.53
    return 2 * own.sin() + 2 * (shown.roll(1, 1)[..., None] * 0.29 * (codes + 1)).cos()


@pytest.mark.parametrize(("conditioning", "number"), [(name, n) for name in DECODED for n in range(6)])
def test_each_step_of_decoding_is_the_official_one(monkeypatch, conditioning, number):
    steps, schedule, temperature, masks, shown, drawn = DECODED[conditioning][number]
    noise = -np.log(-np.log(wave((CLIPS, TOKENS), 1.0, 0.7).clip(1e-3, 1 - 1e-3)))
    monkeypatch.setattr(masking, "_gumbel", lambda like, generator: torch.from_numpy(noise))
    calls = []

    def draw(tokens):
        calls.append(tokens.clone())
        return draw_codes(network(tokens), temperature=0.0)

    found = decode(
        draw, None if conditioning == "none" else GIVEN, batch=CLIPS, tokens=TOKENS, mask=MASK, steps=steps,
        schedule=schedule, temperature=temperature, conditioning=conditioning,
    )  # fmt: skip
    assert [int((tokens == MASK).sum()) for tokens in calls] == masks
    assert sum((step + 1) * placed(tokens) for step, tokens in enumerate(calls)) == shown
    assert placed(found) == drawn


@pytest.mark.parametrize("how", INFLATED)
def test_a_kernel_of_pictures_becomes_the_official_kernel_of_clips(how):
    """Flax has frames, height, width, inputs, outputs as the axes of a kernel."""

    def kernel(x):
        return torch.from_numpy(x).permute(4, 3, 0, 1, 2)

    flat = {
        "conv": kernel(wave((1, 3, 3, 4, 5), 2.0, 0.1)),
        "bias": torch.from_numpy(wave((5,), 1.0, 0.2)),
        "point": kernel(wave((1, 1, 1, 4, 5), 1.0, 0.4)),
        "dense": torch.from_numpy(wave((16, 4), 1.0, 0.6)),
    }
    deep = {
        "conv": kernel(wave((3, 3, 3, 4, 5), 1.0, 0.8)),
        "bias": torch.from_numpy(wave((5,), 1.0, 0.9)),
        "point": kernel(wave((1, 1, 1, 4, 5), 1.0, 1.1)),
        "dense": torch.from_numpy(wave((32, 4), 1.0, 1.2)),
    }
    found, kept = inflated(flat, deep, how)
    turned = {name: x.permute(2, 3, 4, 1, 0) if x.ndim == 5 else x for name, x in found.items()}
    sums = {name: summed(x.contiguous()) for name, x in turned.items()}
    assert kept == ["dense"]
    assert sums == pytest.approx(INFLATED[how] | {"dense": 43.42542919132717}, rel=1e-6)
