import copy
import math

import pytest
import torch
from torch import nn

from lightning_modules.base import EpsFirstAdamW, PaperModule, learning_rate_schedule

RECIPE = {"schedule": "cosine", "warmup": 0.2, "milestones": [0.3, 0.6, 0.8], "decay": 0.2}


def factors(total=10, **changes):
    schedule = learning_rate_schedule({**RECIPE, **changes}, total)
    return [schedule(step) for step in range(total)]


def test_cosine_warms_up_and_ends_near_zero():
    found = factors()
    assert found[:3] == [0.5, 1.0, 1.0]
    assert found[6] == pytest.approx(0.5)
    assert 0 < found[-1] < 0.05


def test_cosine_without_warm_up_starts_at_the_top():
    assert factors(warmup=0.0)[0] == 1.0


def test_one_cycle_rises_from_a_25th():
    found = factors(schedule="one_cycle")
    assert found[0] == pytest.approx(1 / 25)
    assert found[1] == pytest.approx((1 + 1 / 25) / 2)
    assert found[2] == 1.0
    assert found == sorted(found[:3]) + sorted(found[3:], reverse=True)


def test_steps_decay_at_shares_of_the_training():
    assert factors(schedule="steps") == pytest.approx([1, 1, 1, 0.2, 0.2, 0.2, 0.04, 0.04, 0.008, 0.008])


def test_the_schedule_steps_says_what_it_misses():
    with pytest.raises(ValueError, match="decay is missing"):
        learning_rate_schedule({"schedule": "steps", "warmup": 0.0, "milestones": [0.5]}, 10)


def test_zero_epochs_are_a_whole_recipe_and_a_training_needs_all_keys():
    assert PaperModule.check_recipe({"epochs": 0}, "x") == {"epochs": 0}
    with pytest.raises(ValueError, match="x: unknown key 'epoch'"):
        PaperModule.check_recipe({"epochs": 0, "epoch": 1}, "x")
    with pytest.raises(ValueError, match=r"x: the key '.*' is missing; expected .*optimizer"):
        PaperModule.check_recipe({"epochs": 1}, "x")
    recipe = {"epochs": 1, "lr": 0.1, "weight_decay": 0.0, "warmup": 0.0, "optimizer": "sgd", "schedule": "cosine"}
    assert PaperModule.check_recipe(recipe, "x") == recipe
    with pytest.raises(ValueError, match=r"x\.momentum is 1\.5, expected less than 1"):
        PaperModule.check_recipe(recipe | {"momentum": 1.5}, "x")


def test_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="'linear'"):
        factors(schedule="linear")


def test_adamw_with_eps_first_is_that_of_the_official_codes():
    """Against torch's form, updates of gradients of size 3e-6 with eps 1e-6 and beta2 0.98 shrink by 63 % at step 1 and
    by 16 % at step 20: figures of the official `optimization/adamw.py` of CLIP-ViP, which this equals to 1e-15.
    """
    torch.manual_seed(0)
    given = [torch.zeros(1000, dtype=torch.float64), torch.zeros(10, dtype=torch.float64)]
    official, early, late = ([nn.Parameter(x.clone()) for x in given] for _ in range(3))
    options = dict(lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0)
    optimizers = EpsFirstAdamW(early, **options, fused=True), torch.optim.AdamW(late, **options, fused=True)
    moments = [(torch.zeros_like(x), torch.zeros_like(x)) for x in given]
    for step in range(1, 21):
        before = early[0].detach().clone(), late[0].detach().clone()
        for mine, one, other, (first, second) in zip(official, early, late, moments, strict=True):
            one.grad = 3e-6 * torch.randn_like(one)
            other.grad = one.grad.clone()
            first.mul_(0.9).add_(0.1 * one.grad)
            second.mul_(0.98).add_(0.02 * one.grad**2)
            rate = 1e-3 * math.sqrt(1 - 0.98**step) / (1 - 0.9**step)
            mine.data -= rate * first / (second.sqrt() + 1e-6)
        for optimizer in optimizers:
            optimizer.step()
        for mine, one in zip(official, early, strict=True):
            torch.testing.assert_close(one.detach(), mine.detach(), rtol=1e-12, atol=1e-18)
        sizes = [(x[0].detach() - y).abs().mean() for x, y in zip((early, late), before, strict=True)]
        if step in (1, 20):
            assert 1 - (sizes[0] / sizes[1]).item() == pytest.approx({1: 0.626, 20: 0.156}[step], abs=0.02)
        if step == 10:  # resumed: the state says how many steps were taken
            state = copy.deepcopy(optimizers[0].state_dict())
            optimizers = EpsFirstAdamW(early, **options, fused=True), optimizers[1]
            optimizers[0].load_state_dict(state)


def test_the_recipe_chooses_the_form_of_adamw():
    module = PaperModule()
    module.weight = nn.Parameter(torch.zeros(1))
    for name, form in (("adamw", torch.optim.AdamW), ("adamw_eps_first", EpsFirstAdamW)):
        module.recipe = {"optimizer": name, "lr": 0.1, "weight_decay": 0.0, "eps": 1e-6}
        assert type(module._optimizer()) is form
    module.recipe["optimizer"] = "adam"
    with pytest.raises(ValueError, match=r"optimizer \('adam'\) must be adamw, adamw_eps_first, sgd or lars"):
        module._optimizer()
