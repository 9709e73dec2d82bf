"""The streaming reader: one order for any number of workers and processes, whole epochs."""

import numpy as np
import pytest
from torch.utils.data import DataLoader

from lightning_modules.datasets import storage
from lightning_modules.datasets.columns import infer_schema
from lightning_modules.datasets.splits import Portion
from lightning_modules.datasets.streaming import HELD, WINDOW, RowGroups, WindowBatches, hold_out

ROWS, GROUP, SHAPE = 1000, 32, (4, 4, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    random = np.random.default_rng(0)
    columns = {
        "id": np.arange(ROWS),
        "image": random.integers(0, 256, (ROWS, *SHAPE), dtype=np.uint8),
        "caption": np.fromiter((f"row {row}" for row in range(ROWS)), dtype=object, count=ROWS),
    }
    path, schema = tmp_path_factory.mktemp("stream"), infer_schema(columns)
    blocks = ({name: values[start : start + 320] for name, values in columns.items()} for start in range(0, ROWS, 320))
    split = storage.write_blocks(path, "train", blocks, "raw", SHAPE, schema=schema, row_group=GROUP, shard_bytes=10000)
    storage.write_card(path, name="toy", splits={"train": split}, codec="raw", shape=SHAPE, num_classes=None,
                       source="made up", schema=schema)  # fmt: skip
    assert len(storage.shards(path, "train")) == 4
    return path


@pytest.fixture
def groups(folder):
    return RowGroups(folder, "train")


def ids(groups, batches, workers=0) -> list[list[int]]:
    loader = DataLoader(groups, sampler=batches, batch_size=None, num_workers=workers)
    return [batch["id"].tolist() for batch in loader]


def batches(groups, epoch=0, **arguments):
    found = WindowBatches(groups.ends, **{"batch_size": 24, "seed": 3} | arguments)
    found.set_epoch(epoch)
    return found


def test_a_batch_has_the_rows_asked_for(folder, groups):
    rows = np.array([999, 0, 31, 32, 500, 500, 63])
    batch, whole = groups[rows], storage.read(folder, "train")
    assert list(batch) == list(whole)
    for name, values in whole.items():
        assert batch[name].tolist() == values[rows].tolist()
        assert batch[name].dtype == values.dtype


def test_only_the_columns_asked_for_are_read(folder):
    assert list(RowGroups(folder, "train", ["caption"])[np.arange(3)]) == ["caption"]


def test_an_epoch_has_every_row_once_and_the_next_another_order(groups):
    first, second = (np.concatenate(list(batches(groups, batch_size=1, epoch=epoch))) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(ROWS)) == list(range(len(groups)))
    assert (first == second).mean() < 0.02


def test_what_does_not_fill_a_batch_is_left_out(groups):
    sampler = batches(groups)
    assert [len(rows) for rows in sampler] == [24] * (ROWS // 24)
    assert len(sampler) == ROWS // 24


def test_rows_are_shuffled_across_the_groups_of_a_window(groups):
    order = batches(groups).order() // GROUP
    assert len(set(order[: (WINDOW - 1) * GROUP])) == WINDOW
    assert len(set(order[:40])) >= WINDOW - 1


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_order(groups, workers):
    assert ids(groups, batches(groups), workers) == ids(groups, batches(groups))


def test_ranks_share_a_step_that_does_not_depend_on_their_number(groups):
    ranks = [ids(groups, batches(groups, portion=Portion(rank, 4))) for rank in range(4)]
    steps = [[row for part in parts for row in part] for parts in zip(*ranks, strict=True)]
    assert steps == ids(groups, batches(groups))


def test_no_more_than_two_windows_are_held(groups):
    for rows in batches(groups):
        assert len(groups[rows]["id"]) == 24
    assert len(groups._decoded) <= 2 * WINDOW


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, r"batch_size \(0\)"),
        ({"batch_size": 1200}, r"batch_size \(1200\) must be between 1 and the number of rows \(1000\)"),
        ({"portion": Portion(0, 5)}, r"batch_size \(24\) must be a multiple of 5"),
    ],
)
def test_numbers_out_of_range_are_refused(groups, arguments, message):
    with pytest.raises(ValueError, match=message):
        batches(groups, **arguments)


def test_unknown_splits_and_columns_are_refused(folder):
    with pytest.raises(ValueError, match=r"split \('val'\) must be one of train"):
        RowGroups(folder, "val")
    with pytest.raises(ValueError, match="columns label are not in"):
        RowGroups(folder, "train", ["label", "id"])


def test_rows_that_are_held_out_lie_in_few_groups_and_are_not_trained_on(groups):
    held = hold_out(groups.ends, {"val": 64, "test": 30}, seed=3)
    assert [len(rows) for rows in held.values()] == [64, 30] and not set(held["val"]) & set(held["test"])
    groups_of = {name: np.searchsorted(groups.ends, rows, side="right") for name, rows in held.items()}
    counts = np.unique(groups_of["val"], return_counts=True)[1]
    assert counts.max() == HELD and len(counts) <= 5  # of 33, of which one has 8 rows
    assert all((np.diff(rows) > 0).all() for rows in held.values())
    assert hold_out(groups.ends, {"val": 64}, seed=3)["val"].tolist() == held["val"].tolist()
    assert hold_out(groups.ends, {"val": 64}, seed=4)["val"].tolist() != held["val"].tolist()
    most = hold_out(groups.ends, {"val": 990}, seed=3)["val"]  # more than HELD of each group
    assert len(set(most)) == 990 and most.max() < ROWS

    rest = np.setdiff1d(np.arange(ROWS), np.concatenate([*held.values()]))
    left, whole = batches(groups, rows=rest), batches(groups)
    assert len(left) == len(rest) // 24
    assert left.order().tolist() == [row for row in whole.order() if row in set(rest)]
    with pytest.raises(ValueError, match="need 1001 rows, but the source has 1000"):
        hold_out(groups.ends, {"val": ROWS + 1}, seed=0)
