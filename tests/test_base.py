import pytest

from lightning_modules.base import PaperModule, learning_rate_schedule

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
