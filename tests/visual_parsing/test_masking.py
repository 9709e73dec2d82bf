"""A token is hidden with those that it attends to most; as many are hidden at random."""

import pytest
import torch

from lightning_modules.visual_parsing.masking import choose, neighbours

GUIDED = {"how": "guided", "pivots": 1, "neighbours": 3}


def weights(rows=200, tokens=16):
    torch.manual_seed(0)
    return (4 * torch.randn(rows, tokens, tokens)).softmax(-1)


def everywhere(rows=200, tokens=16):
    return torch.ones(rows, tokens, dtype=torch.bool)


@pytest.mark.parametrize("pivots", [1, 2, 3])
@pytest.mark.parametrize("how", ["guided", "random"])
def test_as_many_tokens_are_hidden_either_way(how, pivots):
    hidden = choose({"how": how, "pivots": pivots, "neighbours": 3}, weights(), everywhere())
    assert (hidden.sum(1) == pivots * 4).all()


def test_what_is_hidden_are_a_token_and_its_nearest():
    """Of each picture some token explains the choice: it, and the three others that it attends to most."""
    found = weights()
    hidden = choose(GUIDED, found, everywhere())
    explained = torch.zeros(len(found), dtype=torch.bool)
    for pivot in range(16):
        at = torch.full((len(found),), pivot)
        group = neighbours(found, at, everywhere(), 3)
        assert not group[:, pivot].any(), "a pivot is no neighbour of its own"
        group[:, pivot] = True
        explained |= (group == hidden).all(1)
    assert explained.all()
    random = choose({**GUIDED, "how": "random"}, found, everywhere())
    assert (hidden == random).all(1).float().mean() < 0.1


def test_pivots_are_drawn_evenly():
    hidden = choose({"how": "guided", "pivots": 1, "neighbours": 0}, weights(4000), everywhere(4000))
    assert ((hidden.float().mean(0) - 1 / 16).abs() < 0.02).all()


def test_padding_is_never_hidden_and_other_windows_are_never_neighbours():
    there = everywhere()
    there[:, 10:] = False
    for how in ("guided", "random"):
        hidden = choose({**GUIDED, "how": how}, weights(), there)
        assert not (hidden & ~there).any() and (hidden.sum(1) == 4).all()
    apart = torch.eye(16).expand(8, -1, -1)
    assert (choose(GUIDED, apart, everywhere(8)).sum(1) == 1).all(), "nothing else is attended to"
    few = torch.zeros(8, 16, dtype=torch.bool)
    few[:, :2] = True
    assert (choose({**GUIDED, "how": "random"}, None, few) == few).all()


def test_none_hides_nothing_and_a_guide_needs_weights():
    assert not choose({**GUIDED, "how": "none"}, None, everywhere()).any()
    with pytest.raises(ValueError, match="no attention"):
        choose(GUIDED, None, everywhere())


@pytest.mark.parametrize("how", ["guided", "random"])
def test_masks_that_would_hide_all_tokens_are_refused(how):
    with pytest.raises(ValueError, match=r"4 x \(1 \+ 3\) = 16 visual tokens, but a picture has 16"):
        choose({"how": how, "pivots": 4, "neighbours": 3}, weights(), everywhere())
