import hashlib

import numpy as np
import pytest

from lightning_modules.datasets.splits import AUGMENTATION, ORDER, draw_splits, permutation, random_words, split_indices


def test_the_words_are_those_of_philox_for_ever():
    # Pinned: an order that changes with a version of numpy would move everybody's splits.
    assert hashlib.sha256(random_words(1000, 7, ORDER, copy=2, epoch=3).astype("<u8").tobytes()).hexdigest() == (
        "bba40e45737d0debbbb49cbaee619f8b70bea14617921aebdc99f975ea592cfb"
    )
    assert split_indices(10, {"train": 5, "val": 3}, seed=0)["train"].tolist() == [0, 2, 9, 1, 8]


def test_splits_are_disjoint_and_as_large_as_asked():
    splits = split_indices(1797, {"train": 900, "val": 447, "test": 450}, seed=3)
    assert [len(rows) for rows in splits.values()] == [900, 447, 450]
    assert np.array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(1797))


def test_each_argument_matters():
    base = permutation(50, 0, ORDER, copy=0, epoch=0)
    assert np.array_equal(np.sort(base), np.arange(50))
    others = [
        permutation(50, 1, ORDER),
        permutation(50, 0, AUGMENTATION),
        permutation(50, 0, ORDER, copy=1),
        permutation(50, 0, ORDER, epoch=1),
    ]
    assert not any(np.array_equal(base, other) for other in others)


def test_plan_with_a_whole_source():
    plan = {
        "train": {"source": "train", "rows": 4},
        "val": {"source": "train", "rows": 3},
        "test": {"source": "test", "rows": None},
    }
    drawn = draw_splits({"train": 10, "test": 5}, plan, seed=0)
    assert list(drawn) == ["train", "val", "test"]
    assert not set(drawn["train"][1]) & set(drawn["val"][1])
    assert drawn["test"][1].tolist() == [0, 1, 2, 3, 4]


def test_impossible_plans_are_refused():
    with pytest.raises(ValueError, match="need 12 rows, but the source has 10"):
        split_indices(10, {"train": 8, "val": 4}, seed=0)
    with pytest.raises(ValueError, match="'extra' is not stored"):
        draw_splits({"train": 10}, {"val": {"source": "extra", "rows": 1}}, seed=0)
    both = {"train": {"source": "all", "rows": None}, "val": {"source": "all", "rows": None}}
    with pytest.raises(ValueError, match="train, val share the source 'all', and rows is null in each"):
        draw_splits({"all": 10}, both, seed=0)
    with pytest.raises(ValueError, match="leave no row of 'all', which has 10, to train: make the others smaller"):
        draw_splits({"all": 10}, {**both, "val": {"source": "all", "rows": 10}}, seed=0)


def test_null_is_what_the_other_splits_leave():
    plan = {name: {"source": "all", "rows": rows} for name, rows in (("train", None), ("val", 3), ("test", 2))}
    drawn = {name: rows.tolist() for name, (_, rows) in draw_splits({"all": 10}, plan, seed=0).items()}
    assert drawn["train"] == sorted(set(range(10)) - {*drawn["val"], *drawn["test"]}) and len(drawn["train"]) == 5
    alone = draw_splits({"all": 10}, {name: plan[name] for name in ("val", "test")}, seed=0)
    assert all(alone[name][1].tolist() == drawn[name] for name in alone), "the others do not depend on it"
