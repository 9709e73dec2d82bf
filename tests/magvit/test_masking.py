"""What the transformer is shown (COMMIT), what the loss asks for, and the twelve steps of decoding."""

import pytest
import torch

from lightning_modules.video_tokens.masking import Given, decode, draw_codes, mask_ratio, mask_tokens
from lightning_modules.video_tokens.tasks import TASKS

MASK = 99
TOKENS = torch.arange(8)[None]
GIVEN = Given(torch.arange(50, 58)[None], torch.tensor([[True] * 4 + [False] * 4]))
SCORES = torch.tensor([[0.0, 0.9, 0.1, 0.8, 0.2, 0.7, 0.3, 0.6]])  # half of them masked: places 0, 2, 4, 6
HALF = torch.tensor([0.5])


def masked(conditioning, parts=("mask", "refine", "recons"), given=GIVEN):
    return mask_tokens(TOKENS, given, HALF, SCORES, mask=MASK, conditioning=conditioning, parts=parts)


def test_commit_shows_conditions_in_place_of_masks_and_asks_for_every_token():
    found = masked("commit")
    assert found.shown.tolist() == [[50, 1, 52, 3, MASK, 5, MASK, 7]]
    assert found.asked.tolist() == [[1.0] * 8]


@pytest.mark.parametrize(
    ("part", "asked"),
    [("mask", [0, 0, 0, 0, 1, 0, 1, 0]), ("refine", [1, 0, 1, 0, 0, 0, 0, 0]), ("recons", [0, 1, 0, 1, 0, 1, 0, 1])],
)
def test_the_three_parts_of_the_loss_divide_all_places(part, asked):
    assert masked("commit", [part]).asked.tolist() == [asked]


def test_latent_masking_shows_the_clips_own_tokens_and_asks_for_none_of_them():
    found = masked("latent")
    assert found.shown[0, :4].tolist() == [0, 1, 2, 3]
    assert found.asked.tolist() == [[0] * 4 + [1] * 4]
    assert (found.shown == MASK).sum() == 2  # half of the four that may be masked
    assert masked("fixed").shown[0, :4].tolist() == [50, 51, 52, 53]


def test_at_least_one_token_is_masked_and_counts_are_rounded_down():
    few = mask_tokens(TOKENS, None, torch.tensor([1e-6]), SCORES, mask=MASK)
    assert (few.shown == MASK).sum() == 1
    assert (mask_tokens(TOKENS, None, torch.tensor([0.49]), SCORES, mask=MASK).shown == MASK).sum() == 3


def certain(truth, surer):
    """A transformer that always predicts `truth`, the surer the larger the number."""

    def draw(shown):
        draw.calls.append(shown.clone())
        logits = torch.zeros(len(shown), 8, 60)
        logits.scatter_(2, truth.expand(len(shown), -1)[..., None], surer[..., None].expand(len(shown), -1, 1))
        return draw_codes(logits, temperature=0.0)

    draw.calls = []
    return draw


def test_decoding_keeps_the_surest_tokens_and_refines_conditions():
    network = certain(torch.arange(8)[None], torch.arange(8, 16.0)[None])
    found = decode(network, GIVEN, batch=2, tokens=8, mask=MASK, steps=4, temperature=0.0)
    assert found.tolist() == [list(range(8))] * 2
    assert len(network.calls) == 4
    first, second = network.calls[0][0].tolist(), network.calls[1][0].tolist()
    assert first == [50, 51, 52, 53] + [MASK] * 4
    left = int(8 * mask_ratio(torch.tensor(0.25), 8))
    assert second == [50, 51, 52, 53, *[MASK] * (left - 4), *range(left, 8)]


def test_fixed_conditions_stay_as_they_are_while_decoding():
    network = certain(torch.arange(8)[None], torch.arange(8, 16.0)[None])
    found = decode(
        network, GIVEN, batch=1, tokens=8, mask=MASK, steps=3, conditioning="latent"
    )  # fmt: skip
    assert found.tolist() == [[50, 51, 52, 53, 4, 5, 6, 7]]


def test_more_steps_than_tokens_end_with_all_tokens_known():
    network = certain(torch.arange(8)[None], torch.arange(8, 16.0)[None])
    found = decode(network, None, batch=1, tokens=8, mask=MASK, steps=12)
    assert found.tolist() == [list(range(8))] and len(network.calls) == 12


def test_a_generator_fixes_what_is_drawn():
    def decoded(seed):
        generator = torch.Generator().manual_seed(seed)
        options = {"batch": 2, "tokens": 8, "mask": MASK, "generator": generator}
        return decode(lambda shown: draw_codes(torch.zeros(*shown.shape, 60), 1.0, generator), None, **options)

    draws = [decoded(seed) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_conditions_are_filled_up_as_the_tasks_say():
    video = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 3, 4, 8, 8)
    frames = TASKS["fp"].condition(video, (2, 4, 4), 1).video[0, 0, :, 0, 0]
    assert frames.tolist() == [0, 0, 0, 0]
    ends = torch.tensor([3.0, 9, 9, 0]).view(1, 1, 4, 1, 1).expand(1, 3, 4, 8, 8)
    assert TASKS["fi"].condition(ends, (4, 4, 4), 1).video[0, 0, :, 0, 0].tolist() == [3, 2, 1, 0]
    columns = torch.arange(8.0).expand(1, 3, 4, 8, 8)
    assert TASKS["opv"].condition(columns, (2, 4, 4), 1).video[0, 0, 0, 0].tolist() == [2, 2, 2, 3, 4, 5, 5, 5]
    moving = TASKS["opd"].condition(torch.ones(1, 3, 4, 8, 8), (2, 4, 4), 1)
    assert [frame.argmax().item() for frame in moving.video[0, 0, :, 0]] == [0, 1, 3, 4]
    assert moving.tokens[0, :, 0].int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    inner = TASKS["ipc"].condition(torch.ones(1, 3, 4, 8, 8), (2, 4, 4), 1)
    assert inner.video.sum() == 3 * 4 * 48 and not inner.pixels[0, 0, 0, 2:6, 2:6].any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mask_ratio(torch.tensor(0.5), 8, "sine"), r"schedule \('sine'\) must be one of cosine, uniform"),
        (
            lambda: decode(lambda shown: shown, None, batch=1, tokens=8, mask=MASK, steps=0),
            r"steps \(0\) must be at least 1",
        ),
        (lambda: TASKS["fp"].condition(torch.zeros(1, 3, 4, 8, 8), (2, 4, 4), 4), r"first frames \(4 in all\)"),
        (
            lambda: TASKS["fi"].condition(torch.zeros(1, 3, 4, 8, 8), (2, 4, 4), 2),
            r"first and last frames \(4 in all\)",
        ),
    ],
)
def test_wrong_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
