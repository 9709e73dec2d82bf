"""Columns of every type come back as they were written, however rows are cut."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest

from lightning_modules.datasets import storage
from lightning_modules.datasets.columns import ContentDigest, infer_schema, record_batch, to_numpy

SHAPE = (2, 3, 4, 1)


def objects(values) -> np.ndarray:
    return np.fromiter(values, dtype=object, count=len(values))


def some_columns(rows: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "id": np.arange(rows),
        "video": random.integers(0, 256, (rows, *SHAPE), dtype=np.uint8),
        "caption": objects([f"größe {row}" * (row % 3) for row in range(rows)]),
        "regions": objects([[f"region {part}" for part in range(row % 4)] for row in range(rows)]),
        "boxes": random.random((rows, 3, 4)).astype(np.float32),
        "cells": random.integers(-1, 9, (rows, 3)),
        "difficulty": random.random(rows).astype(np.float32),
    }


def digest(*batches: pa.RecordBatch) -> str:
    found = ContentDigest()
    for batch in batches:
        found.update(batch)
    return found.hexdigest()


def batch(columns) -> pa.RecordBatch:
    return record_batch(columns, infer_schema(some_columns(5)), "raw", SHAPE)


def test_columns_of_every_type_come_back_as_written(tmp_path):
    columns = some_columns(150)
    schema = infer_schema(columns)
    written = storage.write_blocks(tmp_path, "train", [columns], "raw", SHAPE, schema=schema, row_group=64)
    storage.write_card(tmp_path, name="toy", splits={"train": written}, codec="raw", shape=SHAPE, num_classes=None,
                       source="made up", schema=schema)  # fmt: skip
    found = storage.read(tmp_path, "train")
    assert list(found) == list(columns)
    for name, values in columns.items():
        assert found[name].dtype == values.dtype, name
        assert found[name].tolist() == values.tolist(), name
        assert found[name].flags.writeable


def test_a_part_of_a_column_is_that_part():
    whole = batch(some_columns(20))
    for name, values in some_columns(20).items():
        part = pa.chunked_array([whole[name].slice(3, 4), whole[name].slice(9, 2)])
        expected = np.concatenate([values[3:7], values[9:11]])
        assert to_numpy(part, SHAPE if name == "video" else None).tolist() == expected.tolist(), name


@pytest.mark.parametrize("cut", [1, 7, 19])
def test_the_digest_does_not_depend_on_where_rows_are_cut(cut):
    whole = batch(some_columns(20))
    assert digest(whole.slice(0, cut), whole.slice(cut)) == digest(whole)


@pytest.mark.parametrize("name", some_columns(1))
def test_the_digest_changes_with_any_value(name):
    columns, changed = some_columns(20), some_columns(20)
    changed[name][11] = {"caption": "other", "regions": ["other"]}.get(name, 0)
    assert digest(batch(changed)) != digest(batch(columns))


def test_the_digest_sees_where_one_list_ends():
    columns, changed = some_columns(2), some_columns(2)
    columns["regions"], changed["regions"] = objects([["a"], ["b", "c"]]), objects([["a", "b"], ["c"]])
    assert digest(batch(columns)) != digest(batch(changed))


def test_pictures_that_do_not_fit_are_refused():
    with TemporaryDirectory() as folder, pytest.raises(ValueError, match=r"images are uint8 \(2, 3, 4, 1\)"):
        storage.write_blocks(Path(folder), "train", [some_columns(5)], "raw", (3, 2, 4, 1),
                             schema=infer_schema(some_columns(5)))  # fmt: skip
