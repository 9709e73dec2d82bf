"""Machines as users have them: other systems, containers, login nodes of clusters."""

import ast
import getpass
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import pytest
from pytorch_lightning.plugins.environments import LightningEnvironment

from lightning_modules import processes, training
from lightning_modules.files import ROOT

FORK = multiprocessing.get_context("fork")


def test_cores_are_counted_where_the_system_does_not_say_which_may_be_used(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 4}, raising=False)
    assert processes.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS
    assert processes.cores() == os.cpu_count()


@pytest.mark.parametrize(("what", "where"), [
    ("sched_getaffinity", {"processes.py"}),
    ("/proc/cpuinfo", {"portable.py", "records.py"}),
    ("pidfd_open", {"children.py"}),
    ("sigwaitinfo", {"processes.py"}),
])  # fmt: skip
def test_what_only_linux_has_is_asked_in_one_place(what, where):
    """There it is asked whether it is there; whatever asks by itself dies on macOS."""
    files = [path for folder in ("lightning_modules", "stages", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert {path.name for path in files if what in path.read_text()} == where


@pytest.mark.parametrize("entry", [
    "import stages",
    "from lightning_modules.tracking import mirror; mirror.main(['--flush', '--root', {root!r}])",
])  # fmt: skip
def test_a_user_without_an_entry_in_passwd_gets_a_name_and_a_home(tmp_path, entry):
    """In every command: those of `stages`, and `make sync`."""
    script = f"""if 1:
        import os, pwd, sys
        def unknown(uid): raise KeyError("getpwuid(): uid not found")
        pwd.getpwuid = unknown
        sys.path.insert(0, {str(ROOT)!r})
        {entry.format(root=str(tmp_path))}
        import getpass
        print(getpass.getuser(), os.path.expanduser("~"))"""
    environment = {"PATH": os.environ["PATH"]}  # no LOGNAME, USER, HOME
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert re.fullmatch(rf"user-{os.getuid()} /\S+\n", run.stdout), run.stderr


def test_a_user_with_a_name_keeps_it(monkeypatch):
    before = getpass.getuser(), os.environ.get("USER"), os.environ.get("HOME")
    processes.name_user()
    assert (getpass.getuser(), os.environ.get("USER"), os.environ.get("HOME")) == before


@pytest.mark.parametrize(("free", "workers"), [(64_000, 0), (499, 0), (500, 2)])
def test_data_is_loaded_without_workers_where_shared_memory_is_short(monkeypatch, caplog, free, workers):
    """Two workers with two batches each, and the one in use: 5 batches of 100 bytes, or of a megabyte."""
    monkeypatch.setattr(processes, "cores", lambda: 2)
    monkeypatch.setattr(processes.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with caplog.at_level(logging.WARNING):
        assert processes.loader_workers(1, 100 if free < 1000 else 10**6) == workers
    assert ("data is loaded without workers" in caplog.text) == (workers == 0)


def sources(value, assigned):
    """What a value comes from: called functions, and constants."""
    if isinstance(value, ast.Name):
        return sources(assigned[value.id], assigned)
    if isinstance(value, ast.IfExp):
        return sources(value.body, assigned) | sources(value.orelse, assigned)
    return {ast.unparse(value.func if isinstance(value, ast.Call) else value)}


def test_every_loader_asks_how_many_workers_this_machine_can_have():
    """A number that is written down, or cores alone, would hang where shared memory is short."""
    asked = {}
    for path in (ROOT / "lightning_modules").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        assigned = {
            target.id: node.value
            for node in nodes
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        given = [node.value for node in nodes if isinstance(node, ast.keyword) and node.arg == "num_workers"]
        assert path.read_text().count("num_workers") == len(given), f"{path}: not only as an argument"
        if given:
            asked[path.name] = set().union(*(sources(value, assigned) for value in given))
    assert {"streamed.py", "video_file_texts.py"} <= set(asked)
    assert all({"loader_workers"} <= found <= {"loader_workers", "0"} for found in asked.values()), asked


@pytest.mark.parametrize(("devices", "ours"), [(1, True), (-1, True), ("auto", False)])
def test_variables_of_slurm_decide_only_where_ranks_are_left_to_it(monkeypatch, devices, ours):
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    assert training._environment(devices) is None
    for name, value in {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "train"}.items():
        monkeypatch.setenv(name, value)
    assert isinstance(training._environment(devices), LightningEnvironment) == ours
    if not ours:  # Lightning's own way to requeue a job would write a checkpoint amid a step
        assert training._environment(devices).auto_requeue is False


def test_a_training_runs_on_a_login_node_with_variables_of_a_job(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    options = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
    with pytest.raises(RuntimeError, match="--ntasks=2"):
        training.Trainer(**options)
    assert training.Trainer(**options, plugins=training._environment(1)).world_size == 1


@pytest.mark.parametrize(("system", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_bytes_everywhere(monkeypatch, system, unit):
    monkeypatch.setattr(processes.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3))
    monkeypatch.setattr(processes.sys, "platform", system)
    assert processes.peak_memory() == 3 * unit


class Unsendable(Exception):
    def __init__(self, code, text):
        super().__init__(f"{code} {text}")


def _fail(error, place):
    raise error


def _told(calls, workers=2):
    with pytest.raises(Exception) as caught:
        processes.side_by_side(calls, workers, FORK)
    return caught.value


def test_processes_side_by_side_get_places_that_are_free(tmp_path):
    calls = [lambda place, k=k: (tmp_path / str(k)).write_text(str(place)) for k in range(5)]
    processes.side_by_side(calls, 2, FORK)
    assert {path.name for path in tmp_path.iterdir()} == set("01234")
    assert {path.read_text() for path in tmp_path.iterdir()} == {"0", "1"}


def test_after_one_that_fails_none_is_begun_and_its_error_is_told_with_its_place_in_the_code(tmp_path):
    calls = [partial(_fail, KeyError("first")), lambda place: time.sleep(0.5) or (tmp_path / "beside").touch()]
    told = _told([*calls, lambda place: (tmp_path / "later").touch()])
    assert type(told) is KeyError and told.args == ("first",) and "in _fail" in told.__notes__[0]
    assert [path.name for path in tmp_path.iterdir()] == ["beside"]


def test_errors_that_cannot_be_sent_and_processes_that_are_killed_are_told():
    told = str(_told([partial(_fail, Unsendable(3, "unsendable"))]))
    assert "its error cannot be read: TypeError" in told
    assert "in _fail" in str(_told([partial(_fail, ValueError(lambda: None))]))
    told = str(_told([lambda place: os.kill(os.getpid(), signal.SIGKILL)]))
    assert told == "a process was ended by SIGKILL; the system does that when memory runs out"
    assert str(_told([lambda place: os._exit(3)])) == "a process ended with exit code 3"
