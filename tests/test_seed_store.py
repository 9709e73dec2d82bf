"""The seed store by itself; what a training makes of it is in test_training.py."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_modules import seed_store
from lightning_modules.seed_store import SeedStore

REPOSITORY = Path(__file__).resolve().parent.parent
A, B, C = (letter * 16 for letter in "abc")


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("REPRISE_STORE_GB", "1")
    return SeedStore()


def put(store: SeedStore, fingerprint: str, content: bytes = b"weights") -> None:
    with store.writing(fingerprint, wait=None), store.put(fingerprint) as folder:
        (folder / "weights").write_bytes(content)
        (folder / "more").mkdir()
        (folder / "more/facts").write_bytes(b"{}")


def names(store: SeedStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir() if path.name != ".locks")


def test_an_entry_is_copied_without_what_the_store_adds(store, tmp_path):
    put(store, A)
    store.copy(A, tmp_path / "copy")
    assert sorted(str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*")) == [
        "more", "more/facts", "weights",
    ]  # fmt: skip
    assert store.sound(A) and not store.sound(B)


def test_a_failed_write_leaves_the_earlier_entry(store):
    put(store, A)
    with pytest.raises(RuntimeError), store.writing(A, wait=None), store.put(A) as folder:
        (folder / "weights").write_bytes(b"half")
        raise RuntimeError
    assert names(store) == [A] and (store.entry(A) / "weights").read_bytes() == b"weights"


@pytest.mark.parametrize("damage", ["changed", "cut", "missing", "added", "no digests", "digests cut", "digests null"])
def test_whatever_is_wrong_with_an_entry_is_seen(store, damage, capsys):
    put(store, A)
    weights, digests = store.entry(A) / "weights", store.entry(A) / "digests.json"
    if damage == "changed":
        weights.write_bytes(b"Weights")
    elif damage == "cut":
        weights.write_bytes(b"weight")
    elif damage == "missing":
        (store.entry(A) / "more/facts").unlink()
    elif damage == "added":
        (store.entry(A) / "new").write_bytes(b"")
    elif damage == "no digests":
        digests.unlink()
    else:
        digests.write_text("null" if damage == "digests null" else digests.read_text()[:9])
    assert not store.sound(A)
    with store.writing(A, wait=None):
        assert not store.take(A)
    assert capsys.readouterr().err.count("\n") == 1 and names(store) == [f"{A}.damaged"]
    put(store, A)
    assert store.sound(A)


def test_trim_removes_what_was_not_used_for_the_longest_time(store):
    for age, fingerprint in ((3, A), (2, B), (1, C)):
        put(store, fingerprint, bytes(1000))
        os.utime(store.entry(fingerprint), (1e9 - age, 1e9 - age))
    with store.writing(A, wait=None):
        assert store.take(A)
    store.limit = 2500
    store.trim()
    assert names(store) == [A, C]
    assert {path.name[:16] for path in (store.folder / ".locks").iterdir()} == {A, C}
    store.limit = 0
    store.trim()
    assert names(store) == []


def test_trim_spares_what_is_used_or_written_and_removes_what_a_killed_process_left(store):
    for fingerprint in (A, B, C):
        put(store, fingerprint)
    for left in (f".{A}.x1y2", f".{B}.removed"):
        (store.folder / left / "new").mkdir(parents=True)
    store.limit = 0
    with SeedStore().using([A]), SeedStore().writing(B, wait=None):
        store.trim()
        assert names(store) == [f".{A}.x1y2", f".{B}.removed", A, B]
    store.limit = 1e9
    store.trim()
    assert names(store) == [A, B]


def test_what_a_process_uses_is_free_again_when_it_is_killed(store):
    put(store, A)
    code = f"import time\nfrom lightning_modules.seed_store import SeedStore\nwith SeedStore().using([{A!r}]):\n"
    code += "    print(flush=True)\n    time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE)
    child.stdout.readline()
    store.limit = 0
    store.trim()
    assert names(store) == [A]
    child.kill()
    child.communicate()
    store.trim()
    assert names(store) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named_with_the_way_out(store, monkeypatch, number):
    def without(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", without)
    with pytest.raises(OSError, match=rf"the file system of {store.folder} has no flock: mount it with flock, or make"):
        put(store, A)
    assert names(store) == []


def test_a_lock_whose_file_was_removed_is_taken_anew(store):
    """Two processes must not hold locks on two files of one name."""
    put(store, A)
    path = store.folder / ".locks" / f"{A}.write"
    with path.open("a+b") as old:
        path.unlink()
        fcntl.flock(old, fcntl.LOCK_EX)
        with store.writing(A, wait=None), pytest.raises(BlockingIOError), SeedStore().writing(A, wait=None):
            pass


@pytest.mark.parametrize(
    ("given", "limit"), [("", seed_store.DEFAULT_GB), ("0", 0), ("2.5", 2.5), ("inf", float("inf"))]
)
def test_the_limit_comes_from_the_environment(monkeypatch, given, limit):
    monkeypatch.setenv("REPRISE_STORE_GB", given)
    assert seed_store.limit_gb() == limit


@pytest.mark.parametrize("given", ["-1", "nan", "20GB"])
def test_a_limit_that_is_none_is_refused(monkeypatch, given):
    monkeypatch.setenv("REPRISE_STORE_GB", given)
    with pytest.raises(ValueError, match=f"REPRISE_STORE_GB is '{given}', expected"):
        seed_store.limit_gb()
