"""What `conftest.py` gives to all tests."""

import getpass
import os
import re
import shutil

import pytest

from lightning_modules.datasets import storage
from tests.conftest import ALONE, FINISHED, ROOT, group_of, needed, server_folder


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


def test_one_worker_takes_the_tests_of_a_file_or_of_a_fixture_and_any_the_cases_that_share_nothing():
    for name in ALONE:
        assert group_of(f"tests/a/test_b.py::{name}[x]") != group_of(f"tests/a/test_b.py::{name}[y]")
    assert group_of("tests/a/test_b.py::test_c[x]") == group_of("tests/a/test_b.py::test_d") == "tests/a/test_b.py"
    assert {group_of(f"{file}::test_c") for file in FINISHED} == {"finished"}


def test_the_lists_of_such_tests_are_complete():
    texts = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    assert all(any(f"def {name}(" in text for text in texts.values()) for name in ALONE)
    users = {file for file, text in texts.items() if re.search(r"def \w+\(([^)]*, )?finished[,)]", text)}
    assert users == {*FINISHED}


def test_a_command_of_a_database_server_that_fails_says_what_it_printed_and_logged():
    folder, run = server_folder(getpass.getuser())
    run("sh", "-c", "echo started >log")
    with pytest.raises(AssertionError, match=r"ended with 3\nto stdout\nto stderr\nstarted\n"):
        run("sh", "-c", "echo to stdout; echo to stderr >&2; exit 3")
    shutil.rmtree(folder)


def test_a_server_that_could_not_write_to_dev_null_is_not_started(tmp_path, monkeypatch):
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "devnull", str(tmp_path / "null"))
    (tmp_path / "null").touch()
    (tmp_path / "null").chmod(0o666)
    needed("a-server", "program", "json")
    (tmp_path / "null").chmod(0o644)
    with pytest.raises(AssertionError, match=r"other users cannot write to .*null: chmod a\+w .*null"):
        needed("a-server", "program", "json")
