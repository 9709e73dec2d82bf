"""What `conftest.py` gives to all tests."""

import shutil

import pytest

from lightning_modules.datasets import storage


def test_a_split_of_prepared_data_is_read_once_and_each_test_gets_a_copy(prepared):
    first = storage.read(prepared("digits"), "all")
    before = {name: x.tolist() for name, x in first.items()}
    first["image"][:] = 0
    assert {name: x.tolist() for name, x in storage.read(prepared("digits"), "all").items()} == before


def test_data_elsewhere_is_read_and_verified_each_time(prepared, tmp_path):
    copy = tmp_path / "digits"
    shutil.copytree(prepared("digits"), copy)
    assert storage.read(copy, "all").keys() == storage.read(prepared("digits"), "all").keys()
    for shard in copy.glob("all-*.parquet"):
        shard.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="all-0"):
        storage.read(copy, "all")
