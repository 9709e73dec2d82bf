"""What a training of a paper's main arm costs, as the overview shows it."""

import json
import sys

import pytest
import torch
from torch import nn

from lightning_modules.files import ROOT
from stages import costs
from stages.page.comparing import COUNTED
from stages.plan import PlanError, load_plan
from tests.conftest import STEMS

PLAN = load_plan("tiny")


class Turns(nn.Module):
    """A linear map of a row; every second step takes two rows more, and the first one computes something else, too."""

    recipe = {"epochs": 3}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.learned, self.frozen = nn.Linear(4, 3), nn.Linear(3, 5)
        self.frozen.requires_grad_(False)

    def check_data(self, data):
        self.checked = data

    def max_steps(self, data):
        return data.limit

    def training_step(self, batch, number):
        assert self.training
        loss = self.frozen(self.learned(batch)).sum()
        return loss + (self.learned(batch) @ torch.ones(3, 100)).sum() if number == 0 else loss


class Rows:
    """Batches of two and of four rows in turn."""

    def __init__(self, limit):
        self.limit = limit

    def train_dataloader(self):
        return [torch.ones(2 + 2 * (number % 2), 4) for number in range(2 * costs.STEPS)]


def test_a_step_counts_forward_and_backward_with_frozen_networks_and_evens_out_turns():
    """A row: 12 and 15 forward; back, 15 to the output of the learned map, and 12 to its weights."""
    module, data = Turns(), Rows(limit=-1)
    found = costs.count(module, data)
    assert found == {"parameters": 15, "steps": 3 * 2 * costs.STEPS, "macs_per_step": 3 * (12 + 15 + 15 + 12)}
    assert module.checked is data
    assert costs.count(module, Rows(limit=7))["steps"] == 7, "a training may end within an epoch"


@pytest.mark.parametrize("stem", [stem for stem in STEMS if (ROOT / f"results/tiny/{stem}/claims.json").is_file()])
def test_what_is_committed_belongs_to_the_arm_that_stands_for_the_paper(stem):
    path = ROOT / "results/tiny" / stem / COUNTED
    assert path.is_file(), f"run: python -m stages.costs --paper {stem}"
    assert json.loads(path.read_text())["arm"] == costs.main_training(PLAN, stem)


@pytest.mark.slow
@pytest.mark.parametrize("stem", [stem for stem in STEMS if (ROOT / "results/tiny" / stem / COUNTED).is_file()])
def test_what_is_committed_is_what_is_counted(stem, prepared):
    """If not: `python -m stages.costs --paper <stem>`."""
    arm = costs.main_training(PLAN, stem)
    data = costs.data_of(PLAN, arm, prepared(PLAN.pretrain[arm].dataset))
    found = {"arm": arm, **costs.count(costs.built(PLAN, arm), data)}
    assert json.loads((ROOT / "results/tiny" / stem / COUNTED).read_text()) == found


def test_an_unknown_paper_is_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["stages.costs", "--paper", "maskaling"])
    with pytest.raises(PlanError, match=r"no paper 'maskaling' in plans/tiny.*maskalign"):
        costs.main()
