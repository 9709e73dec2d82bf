"""Who sees which token: groups, places, priorities, losses."""

import math

import pytest
import torch

from lightning_modules.imp.routing import (
    balancing_loss,
    capacity,
    choose_experts,
    choose_tokens,
    combined,
    dispatched,
    number_of_groups,
    z_loss,
)


@pytest.mark.parametrize(
    ("tokens", "experts", "groups", "places"),
    [(8192 * 256, 16, 1024, 128), (8192 * 16, 16, 64, 128), (8 * 256, 16, 16, 8)],
)
def test_groups_and_places_are_those_of_the_official_rule(tokens, experts, groups, places):
    found = number_of_groups(tokens, largest=2048, experts=experts)
    assert found == groups
    assert capacity(tokens // found, experts=experts, factor=1.0) == places


def test_groups_are_a_multiple_of_experts_and_replicas():
    assert number_of_groups(4096, largest=512, experts=4, replicas=4) == 16


def test_tokens_that_cannot_be_dealt_out_are_refused():
    with pytest.raises(ValueError, match="17 tokens cannot be dealt out to 4 experts"):
        number_of_groups(17, largest=2048, experts=4)


def test_each_expert_takes_its_most_probable_tokens():
    probability = torch.tensor([[[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]]])
    dispatch = choose_tokens(probability, 2)
    assert dispatch.index.tolist() == [[[0, 1], [2, 3]]]
    torch.testing.assert_close(dispatch.weight, torch.tensor([[[0.9, 0.6], [0.8, 0.7]]]))


def test_a_token_that_no_expert_took_gets_zeros():
    probability = torch.tensor([[[0.9, 0.8], [0.1, 0.2]]])
    x = torch.randn(1, 2, 3)
    dispatch = choose_tokens(probability, 1)
    found = combined(dispatched(x, dispatch), dispatch, 2)
    torch.testing.assert_close(found[0, 0], x[0, 0] * 1.7)
    assert not found[0, 1].any()


def test_more_places_than_tokens_are_refused():
    with pytest.raises(ValueError, match="has 3 places, but its group has 2 tokens"):
        choose_tokens(torch.full((1, 2, 2), 0.5), 3)


def test_of_tokens_that_choose_the_first_ones_get_a_place():
    probability = torch.tensor([[[0.6, 0.4], [0.9, 0.1], [0.2, 0.8]]])
    dispatch = choose_experts(probability, 1)
    assert dispatch.index.tolist() == [[[0], [2]]]
    torch.testing.assert_close(dispatch.weight, torch.tensor([[[0.6], [0.8]]]))


def test_with_priorities_the_most_probable_ones_get_a_place():
    probability = torch.tensor([[[0.6, 0.4], [0.9, 0.1], [0.2, 0.8]]])
    dispatch = choose_experts(probability, 1, prioritised=True)
    assert dispatch.index.tolist() == [[[1], [2]]]


def test_second_choices_come_after_all_first_ones():
    probability = torch.tensor([[[0.6, 0.4], [0.3, 0.7]]])
    dispatch = choose_experts(probability, 2, selected=2)
    assert dispatch.index.tolist() == [[[0, 1], [1, 0]]]
    torch.testing.assert_close(dispatch.weight, torch.tensor([[[0.6, 0.3], [0.7, 0.4]]]))


def test_a_place_without_a_token_has_no_weight():
    dispatch = choose_experts(torch.tensor([[[0.9, 0.1], [0.8, 0.2]]]), 2)
    assert dispatch.weight[0, 1].tolist() == [0.0, 0.0]


def test_losses_of_a_router_that_knows_nothing():
    logits = torch.zeros(2, 32, 16)
    torch.testing.assert_close(z_loss(logits), torch.tensor(math.log(16) ** 2))
    even = torch.eye(16).repeat(1, 2, 1) * 0.5 + 0.5 / 16
    torch.testing.assert_close(balancing_loss(even), torch.tensor(1.0))


def test_a_router_that_prefers_one_expert_pays():
    crowded = torch.zeros(1, 8, 4)
    crowded[..., 0] = 1.0
    assert balancing_loss(crowded) == pytest.approx(4.0)
