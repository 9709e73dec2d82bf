"""The runner: order, slots, DVC's books, seeds side by side, and every way in which a run can go wrong."""

import errno
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import networkx
import psutil
import pytest
from dvc.rwlock import rwlock
from rich.console import Console

from lightning_modules.files import ROOT
from lightning_modules.processes import GO_ON_LATER
from stages import audit, doctor, release, repro
from stages import plan as plan_module
from stages.plan import load_plan
from stages.repro import UNKNOWN, compared, place, seconds_to_claims, seeds_apart, wanted
from stages.runner import durations, schedule
from stages.runner.bookkeeping import Bookkeeper
from stages.runner.display import Running, table
from stages.runner.schedule import Runner, alone
from tests.pipeline import Copy
from tests.runner_project import dvc, project, start

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # in DVC, of its own library

NOTE = "date +%s.%N >>log; echo $DVC_STAGE >>ran; "
COPY = f"{NOTE}cat source >out/"
DIAMOND = {
    "a": ((), f"{COPY}a"),
    "b": ("a", f"{COPY}b"),
    "c": ("a", f"{COPY}c"),
    "d": ("bc", f"{COPY}d"),
}


class Said(list):
    """A display that keeps what it is told."""

    def say(self, text):
        self.append(text)

    def start(self, state):
        self.state = state

    def stop(self):
        self.append("stopped")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a project in this process, and gives back the runner and the stages in the order in which they ran."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("REPRISE_WORKERS", raising=False)

    def run(stages=None, names=None, **options):
        if stages:
            project(tmp_path, stages)
        books = Bookkeeper(tmp_path)
        runner = Runner(books, names or set(books.graph), display=options.pop("display", Said()), **options)
        runner.run()
        books.close()
        ran = (tmp_path / "ran").read_text().split() if (tmp_path / "ran").exists() else []
        (tmp_path / "ran").unlink(missing_ok=True)
        return runner, ran

    return run


# Order and slots


def test_every_stage_runs_once_and_after_what_it_needs(run):
    runner, ran = run(DIAMOND, slots=["", ""])
    assert runner.done == set("abcd") and not runner.failed and not runner.left
    assert ran[0] == "a" and ran[-1] == "d" and sorted(ran) == list("abcd")
    again, ran = run()
    assert ran == [] and again.total == 0


def test_stages_run_side_by_side_in_their_slots(run, tmp_path):
    meet = "touch {0}-is-here; while [ ! -e {1}-is-here ]; do sleep 0.02; done; "
    note = "echo $CUDA_VISIBLE_DEVICES >out/{0}"
    stages = {x: ((), (meet + note).format(x, y)) for x, y in ("pq", "qp")}
    runner, _ = run(stages, slots=["3", "5"])
    assert runner.done == {"p", "q"}
    assert {(tmp_path / "out" / name).read_text() for name in "pq"} == {"3\n", "5\n"}


def test_one_slot_runs_one_stage_at_a_time_in_the_given_order(run, tmp_path):
    span = "date +%s.%N >>times; sleep 0.1; date +%s.%N >>times; "
    stages = {x: ((), f"{NOTE}{span} touch out/{x}") for x in "xyz"}
    _, ran = run(stages, order="zxy".index)
    assert ran == ["z", "x", "y"]
    times = [float(line) for line in (tmp_path / "times").read_text().split()]
    assert times == sorted(times)


def test_what_needs_a_failed_stage_is_not_run_and_the_rest_is(run):
    said = Said()
    runner, ran = run({**DIAMOND, "b": ("a", f"{NOTE}echo the reason; exit 7")}, display=said)
    assert runner.done == {"a", "c"} and runner.left == {"d"} and sorted(ran) == ["a", "b", "c"]
    assert "exit code 7" in runner.failed["b"]
    assert any("the reason" in line for line in said) and any("failed    b" in line for line in said)


def test_what_follows_a_stage_is_told_which_results_are_not_up_to_date(run):
    told = {}
    run({**DIAMOND, "b": ("a", "exit 1")}, after=lambda name, stale: told.update({name: stale}))
    assert told == {"a": {"b", "c", "d"}, "c": {"b", "d"}}


# DVC's books


@pytest.mark.slow
def test_dvc_by_hand_gives_the_same_lock_byte_for_byte(run, tmp_path):
    text = "[{name: &x {k: 0.1, long: " + "word " * 40 + "}}, *x]"
    stages = {**DIAMOND, "a": ((), f"{NOTE}mkdir out/a; cat source >out/a/1; cat source >out/a/2")}
    project(tmp_path, stages)
    pipeline = (tmp_path / "dvc.yaml").read_text()
    (tmp_path / "dvc.yaml").write_text(pipeline.replace("  b:\n", "  b:\n    params: [values.yaml: [list]]\n"))
    (tmp_path / "values.yaml").write_text(f"list: {text}\n")
    run(slots=["", ""])
    assert dvc(tmp_path, "repro").count("didn't change") == 4
    first = (tmp_path / "dvc.lock").read_bytes()
    for new in ("2\n", "3\n"):  # from the same lock, once by the runner and once by hand
        (tmp_path / "source").write_text(new)
        before = (tmp_path / "dvc.lock").read_bytes()
        run(slots=["", ""])
        ours = (tmp_path / "dvc.lock").read_bytes()
        assert ours != before and b"&id001" in ours
        (tmp_path / "dvc.lock").write_bytes(before)
        dvc(tmp_path, "repro", "--force")
        assert (tmp_path / "dvc.lock").read_bytes() == ours
    assert first != ours


def test_a_stage_whose_inputs_turn_out_unchanged_is_not_run(run, tmp_path):
    stages = {**DIAMOND, "a": ((), f"{NOTE}head -c 1 source >out/a")}
    run(stages)
    (tmp_path / "source").write_text("1, and more\n")
    runner, ran = run()
    assert ran == ["a"] and runner.done == set("abcd")


def test_what_no_stage_makes_is_removed_from_folders_that_stages_read(run, tmp_path):
    stages = {name: ((), f"mkdir -p out/arms; cat source >out/{name}") for name in ("arms/a", "arms/b")}
    run({**stages, "all": (("arms",), "ls out/arms >out/all")})
    assert (tmp_path / "out/all").read_text() == "a\nb\n"
    for name in ("arms/c/weights", "arms/.a.killed", "kept"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text("of an arm that was")
    books = Bookkeeper(tmp_path)
    try:
        assert books.stale({"all"}) == {"all"}
        with rwlock(books.repo.tmp_dir, books.repo.fs, "dvc repro", [], [str(tmp_path / "out/arms/a")], False):
            assert books.tidy(books.graph) == []
        assert books.tidy(books.graph) == [tmp_path / "out/arms/.a.killed", tmp_path / "out/arms/c"]
        assert not books.stale({"all"}) and books.tidy(books.graph) == []
    finally:
        books.close()
    assert (tmp_path / "out/kept").is_file(), "no stage reads this folder"


def test_what_dvc_has_in_its_run_cache_is_taken_from_there(run, tmp_path):
    run(DIAMOND)
    for text in ("2\n", "1\n"):
        (tmp_path / "source").write_text(text)
        runner, ran = run()
    assert ran == [] and runner.done == set("abcd") and (tmp_path / "out/d").read_text() == "1\n"
    assert "up to date" in dvc(tmp_path, "status")


def test_force_runs_what_is_up_to_date_and_says_so_to_the_command(run, tmp_path):
    run({**DIAMOND, "d": ("bc", f"{NOTE}echo $REPRISE_FORCE >force; cat source >out/d")})
    assert (tmp_path / "force").read_text() == "\n"
    _, ran = run(force=True)
    assert len(ran) == 4 and (tmp_path / "force").read_text() == "1\n"


def test_only_the_stages_of_the_named_files_are_read(tmp_path):
    project(tmp_path, DIAMOND)
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "dvc.yaml", tmp_path / "other/dvc.yaml")
    found = {}
    for files in ((), ("dvc.yaml",), ("other/dvc.yaml",)):
        books = Bookkeeper(tmp_path, [tmp_path / file for file in files])
        found[files] = books.graph
        books.close()
    both, own, other = found.values()
    assert set(own) == set("abcd") and set(other) == {f"other/dvc.yaml:{name}" for name in "abcd"}
    assert set(both) == {*own, *other} and set(own.edges) <= set(both.edges)


def test_a_lock_that_dvc_wrote_meanwhile_is_read_anew(run, tmp_path, monkeypatch):
    project(tmp_path, DIAMOND)
    books = Bookkeeper(tmp_path)
    assert books.stale(books.graph) == set("abcd")
    dvc(tmp_path, "repro", "-q")
    assert books.begin("a") == "unchanged"
    books.close()


def test_dvc_by_hand_keeps_away_from_a_stage_that_runs_and_the_other_way_round(run, tmp_path):
    project(tmp_path, DIAMOND)
    books = Bookkeeper(tmp_path)
    assert books.begin("a") == "run"
    with pytest.raises(subprocess.CalledProcessError) as caught:
        dvc(tmp_path, "repro", "-s", "a")
    assert "make repro: a" in caught.value.stderr
    books.abandon("a")
    books.close()
    (tmp_path / "dvc.yaml").write_text((tmp_path / "dvc.yaml").read_text().replace(NOTE, f"{NOTE}sleep 1.5; ", 1))
    by_hand = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "-q", "-s", "a"], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    while not (tmp_path / "ran").exists():
        time.sleep(0.05)
    said = Said()
    runner, ran = run(display=said)
    assert by_hand.wait() == 0 and runner.done == set("abcd")
    assert any(line.startswith("a waits: ") and "dvc" in line for line in said)
    assert ran.count("a") == 1


def test_where_nothing_can_be_locked_dvcs_links_are_used(run, tmp_path, monkeypatch):
    """`core.hardlink_lock`, DVC's own way out for file systems without `flock`."""

    def without(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    project(tmp_path, DIAMOND)
    with (tmp_path / ".dvc/config").open("a") as config:
        config.write("    hardlink_lock = true\n")
    runner, ran = run(slots=["", ""])
    assert runner.done == set("abcd") and not runner.failed and sorted(ran) == list("abcd")
    assert "up to date" in dvc(tmp_path, "status")
    (tmp_path / "source").write_text("2\n")
    books = Bookkeeper(tmp_path)
    assert books.begin("a") == "run"
    with pytest.raises(subprocess.CalledProcessError) as caught:
        dvc(tmp_path, "repro", "-s", "a")  # by hand, with the same kind of lock
    assert "make repro: a" in caught.value.stderr
    books.close()


# Seeds side by side


def test_parts_of_a_stage_run_side_by_side_before_its_own_command(run, tmp_path):
    meet = "touch {0}; while [ ! -e {1} ]; do sleep 0.02; done; echo $REPRISE_WORKERS $REPRISE_FORCE >part-{0}"
    parts = {"a": [meet.format(0, 1), meet.format(1, 0)]}
    runner, ran = run(
        {"a": ((), f"{NOTE}cat part-0 part-1 >out/a; echo $REPRISE_FORCE >own")},
        parts=lambda name: parts.get(name, []),
        slots=[""] * len(os.sched_getaffinity(0)) if len(os.sched_getaffinity(0)) > 1 else ["", ""],
        force=True,
    )
    assert runner.done == {"a"} and ran == ["a"]
    assert (tmp_path / "out/a").read_text() == "1 1\n1 1\n"
    assert (tmp_path / "own").read_text() == "\n", "the parts have trained; their stage puts them together"


def test_parts_of_what_leads_to_a_claim_soonest_start_first(run, tmp_path):
    stages = {x: ((), f"touch out/{x}") for x in "xy"}
    parts = {x: [f"echo {x}{n} >>order; sleep 0.1" for n in range(3)] for x in "xy"}
    run(stages, parts=lambda name: list(parts[name]), slots=["", ""], order="yx".index)
    started = (tmp_path / "order").read_text().split()
    assert sorted(started[:3]) == ["y0", "y1", "y2"] and len(started) == 6


@pytest.mark.parametrize("slots", [[""], ["", ""]])
@pytest.mark.parametrize("trains", [True, False])
def test_a_training_whose_seeds_are_in_the_store_keeps_the_duration_that_is_known(
    run, tmp_path, monkeypatch, slots, trains
):
    monkeypatch.setattr(schedule, "scratch", lambda: tmp_path / ".scratch")
    durations.remember(tmp_path / ".scratch", {"pretrain": 900.0, "evaluate": 900.0})
    training, taking_up = 'echo 1 >"$REPRISE_PROGRESS"; ', "true; "
    first = training if trains else taking_up
    stages = {
        "pretrain": ((), f"{first if len(slots) == 1 else taking_up}touch out/pretrain"),
        "evaluate": ((), "touch out/evaluate"),
    }
    run(stages, parts=lambda name: [first, training] if name == "pretrain" else [], slots=slots)
    known = durations.load(tmp_path, tmp_path / ".scratch")
    assert known["evaluate"] < 60 and (known["pretrain"] < 60) == trains


def test_a_part_that_fails_fails_its_stage(run):
    runner, ran = run(
        {"a": ((), f"{COPY}a"), "b": ((), f"{COPY}b")},
        parts=lambda name: ["true", "exit 3"] if name == "a" else [],
        slots=["", ""],
    )
    assert "exit code 3" in runner.failed["a"] and ran == ["b"]


# Faults


def test_a_launch_program_that_is_not_there_is_said_at_once(run):
    with pytest.raises(ValueError, match="no program 'srunn'"):
        run(DIAMOND, launch=["srunn", "-N1"])


def test_launch_is_put_before_each_command(run, tmp_path):
    runner, _ = run({"a": ((), f"{COPY}a")}, launch=["env", "WHERE=there"])
    assert runner.done == {"a"}


def test_a_command_that_was_stopped_has_not_failed_and_the_next_run_goes_on(run, tmp_path):
    said = Said()
    script = f"{NOTE}test -f again && touch out/b || {{ touch again; exit {GO_ON_LATER}; }}"
    runner, _ = run({**DIAMOND, "b": ("a", script)}, display=said)
    assert runner.stopped == {"b"} and not runner.failed and runner.done == {"a", "c"} and runner.left == {"b", "d"}
    assert sum("stopped   b" in line and "run the same command again to go on" in line for line in said) == 1
    with pytest.raises(SystemExit) as ended:
        repro.tell(None, runner, [])
    assert ended.value.code == GO_ON_LATER == 75
    runner, _ = run()
    assert runner.done == {"b", "d"} and not runner.stopped


def test_a_launched_command_is_stopped_with_the_signal_that_srun_passes_on(tmp_path):
    script = "trap 'touch got; exit 75' USR1; echo $$ >pid; while true; do sleep 0.1; done"
    project(tmp_path, {"a": ((), script)})
    runner = start(tmp_path, launch=["env"])
    await_file(tmp_path / "pid")
    runner.send_signal(signal.SIGTERM)
    output, _ = runner.communicate(timeout=15)
    assert json.loads(output.splitlines()[-1])["left"] == ["a"] and (tmp_path / "got").exists()


def test_an_exception_in_what_follows_a_stage_is_one_line_and_stops_nothing(run):
    said = Said()

    def after(name, stale):
        if name == "a":
            raise KeyError("arm")

    runner, ran = run(DIAMOND, after=after, display=said)
    assert len(ran) == 4 and runner.errors == ["printing the claims after a failed: KeyError: 'arm'"]
    assert "error: printing the claims after a failed: KeyError: 'arm'" in said and said[-1] == "stopped"


def test_an_exception_in_bookkeeping_fails_the_stage_alone(run):
    runner, ran = run({**DIAMOND, "b": ("a", f"{NOTE}true")})  # it makes no output
    assert runner.done == {"a", "c"} and sorted(ran) == ["a", "b", "c"]
    assert "does not exist" in runner.failed["b"] and "\n" not in runner.failed["b"]


def test_outputs_behind_a_link_are_refused_with_the_way_out(run, tmp_path):
    project(tmp_path / "project", {})
    shutil.move(tmp_path / "project/out", tmp_path / "disk")
    root = project(tmp_path / "linked", DIAMOND)
    (root / "out").rmdir()
    (root / "out").symlink_to(tmp_path / "disk")
    (root / ".dvc/config").write_text("[core]\n    analytics = false\n")
    (root / ".gitignore").write_text("/out\n")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    books = Bookkeeper(root)
    runner = Runner(books, set(books.graph), display=(said := Said()))
    runner.run()
    books.close()
    assert runner.failed["a"].startswith(f"{root}/out/a lies elsewhere by a link, and DVC tracks nothing behind a link")
    assert any(runner.failed["a"] in line for line in said) and not runner.done


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(run, tmp_path):
    project(tmp_path, DIAMOND)
    (tmp_path / "file").touch()
    with (tmp_path / ".dvc/config").open("a") as config:
        config.write(f"[cache]\n    dir = {tmp_path}/file/cache\n")
    runner, _ = run()
    assert runner.failed["a"].startswith(f"DVC's cache {tmp_path}/file/cache cannot be written (Not a directory)")
    assert "`.venv/bin/dvc cache dir --local <folder>`" in runner.failed["a"]


def test_a_full_disk_is_named_with_the_way_out(run, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dvc.stage.PipelineStage.commit", full)
    runner, _ = run(DIAMOND)
    assert runner.failed["a"].startswith("no space left, in DVC's cache") and "dvc gc --workspace" in runner.failed["a"]


def test_a_killed_command_is_told_from_one_that_failed(run):
    runner, _ = run({"a": ((), "kill -9 $$")})
    assert "killed by SIGKILL, perhaps because memory ran out" in runner.failed["a"]


def await_file(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


def alive(folder: Path) -> bool:
    return psutil.pid_exists(int((folder / "pid").read_text())) and (
        psutil.Process(int((folder / "pid").read_text())).status() != psutil.STATUS_ZOMBIE
    )


SLEEP = "echo $$ >pid; exec sleep 60"
STUBBORN = "trap '' INT TERM; echo $$ >pid; while true; do sleep 0.1; done"


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(other, marks=pytest.mark.slow) for other in (signal.SIGTERM, signal.SIGUSR1))],
)
def test_one_signal_stops_the_commands_and_keeps_what_is_done(tmp_path, number):
    project(tmp_path, {"a": ((), f"{COPY}a"), "b": ("a", SLEEP), "c": ("b", f"{COPY}c")})
    runner = start(tmp_path)
    await_file(tmp_path / "pid")
    runner.send_signal(number)
    output, _ = runner.communicate(timeout=15)
    *_, said, outcome = output.splitlines()
    assert json.loads(outcome) == {"done": ["a"], "failed": {}, "left": ["b", "c"], "signal": number}
    assert f"{number.name}: stopping 1 commands" in said
    assert not alive(tmp_path)
    assert json.loads((tmp_path / ".dvc/tmp/rwlock").read_text()) == {}, "no file of the project is locked"
    assert dvc(tmp_path, "repro", "--dry", "-s", "a").startswith("Stage 'a' didn't change")


def test_a_run_under_nohup_goes_on_when_its_terminal_is_closed(tmp_path):
    project(tmp_path, {"a": ((), "echo $$ >pid; sleep 0.5; touch out/a")})
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a new process keeps that, as after `nohup`
    runner = start(tmp_path)
    signal.signal(signal.SIGHUP, before)
    await_file(tmp_path / "pid")
    runner.send_signal(signal.SIGHUP)
    output, _ = runner.communicate(timeout=15)
    assert json.loads(output.splitlines()[-1])["done"] == ["a"]


def test_a_second_ctrl_c_kills_at_once(tmp_path):
    project(tmp_path, {"a": ((), STUBBORN)})
    runner = start(tmp_path)
    await_file(tmp_path / "pid")
    runner.send_signal(signal.SIGINT)
    time.sleep(1)
    assert alive(tmp_path)
    runner.send_signal(signal.SIGINT)
    output, _ = runner.communicate(timeout=10)
    assert json.loads(output.splitlines()[-1])["left"] == ["a"] and not alive(tmp_path)


def test_commands_die_with_a_runner_that_is_killed(tmp_path):
    project(tmp_path, {"a": ((), SLEEP)})
    runner = start(tmp_path)
    await_file(tmp_path / "pid")
    runner.kill()
    runner.communicate()
    deadline = time.monotonic() + 10
    while alive(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_second_run_in_the_same_folder_says_so_in_one_line_and_ends(tmp_path, monkeypatch):
    project(tmp_path, DIAMOND)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with alone():
        second = start(tmp_path)
        output, _ = second.communicate(timeout=60)
    assert second.returncode == 1
    assert output.startswith(f"error: another `make repro` is running in this folder (process {os.getpid()})")
    assert len(output.splitlines()) == 1
    with alone():
        pass  # the right is free again


def test_a_file_system_without_locks_is_not_taken_for_another_run(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))

    def without(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(schedule, "flock", without)
    with (
        pytest.raises(ValueError, match=r"\.scratch has no flock \(No locks available\): mount it with flock"),
        alone(),
    ):
        pass


@pytest.mark.parametrize("command", [repro, audit, release])
def test_without_a_usable_repository_a_run_ends_in_one_line(tmp_path, monkeypatch, command):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))  # of the lock
    monkeypatch.setattr(sys, "argv", ["command"])
    monkeypatch.setattr(doctor, "ROOT", tmp_path)  # the folder of a ZIP file
    with pytest.raises(ValueError, match="not a git repository, as after the download of a ZIP file: use `git clone`"):
        command.main()


def test_a_run_that_is_refused_has_asked_for_no_more_seeds(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))  # of the lock
    asked = []
    monkeypatch.setattr(repro, "ask_for_seeds", asked.append)
    monkeypatch.setattr(sys, "argv", ["repro", "--seeds", "5", "--paper", "maskalgin"])
    with alone(), pytest.raises(ValueError, match="another `make repro` is running in this folder"):
        repro.main()
    with pytest.raises(ValueError, match="did you mean 'maskalign'"):
        repro.main()
    monkeypatch.setattr(sys, "argv", ["repro", "--seeds", "5"])
    monkeypatch.setattr(doctor, "ROOT", tmp_path)  # no repository
    with pytest.raises(ValueError, match="not a git repository"):
        repro.main()
    assert not asked


# Trainings, forked

PROBE = """
import os, pathlib, signal, sys, time
import heavy  # there already in the server
assert __name__ == "__main__"
name = sys.argv[1]
pathlib.Path("pid").write_text(str(os.getpid()))
print(os.getcwd(), os.environ["DVC_STAGE"], sys.argv[1:], heavy.IMPORTED_BY != os.getpid())
if name == "b":
    sys.exit("error: a user's error")
if name == "c":
    os.kill(os.getpid(), signal.SIGKILL)
if name == "s":
    time.sleep(60)
pathlib.Path("out", name).write_text("made\\n")
"""


@pytest.fixture
def forked(tmp_path):
    def forked(*names, **options):
        project(tmp_path, {name: ((), f"python -m probe {name}") for name in names})
        (tmp_path / "probe.py").write_text(PROBE)
        (tmp_path / "heavy.py").write_text(
            "import os\nfrom lightning_modules.processes import die_with_parent\n"
            "die_with_parent()\nIMPORTED_BY = os.getpid()\n"
        )
        return start(tmp_path, forked=["probe"], preload="heavy", **options)

    return forked


def test_a_forked_command_is_like_a_fresh_one(forked, tmp_path):
    output, _ = forked("a", "b", "c", slots=1).communicate(timeout=60)
    outcome = json.loads(output.splitlines()[-1])
    assert outcome["done"] == ["a"]
    assert "exit code 1" in outcome["failed"]["b"] and "killed by SIGKILL" in outcome["failed"]["c"]
    assert "    error: a user's error" in output
    assert (tmp_path / ".scratch/logs/a.log").read_text() == f"{tmp_path} a ['a'] True\n"
    assert "up to date" in dvc(tmp_path, "status", "a")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_forked_command_ends_with_the_runner(forked, tmp_path, number):
    runner = forked("s")
    await_file(tmp_path / "pid")
    runner.send_signal(number)
    runner.communicate(timeout=20)
    deadline = time.monotonic() + 10
    while alive(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)


# The plan


TINY = "plans/tiny/{}/dvc.yaml:{}"
GRAPH = networkx.DiGraph(
    [
        (TINY.format("one", "evaluate@x"), TINY.format("one", "pretrain@x")),
        (TINY.format("two", "evaluate@y"), TINY.format("one", "pretrain@x")),
        (TINY.format("one", "pretrain@x"), "sources"),
        ("report", TINY.format("two", "evaluate@y")),
        ("plans/paper/one/dvc.yaml:pretrain@x", "plans/paper/dvc.yaml:sources"),
    ]
)


def test_a_preset_has_its_own_stages_and_a_paper_takes_with_it_what_it_needs():
    paper = {"plans/paper/one/dvc.yaml:pretrain@x", "plans/paper/dvc.yaml:sources"}
    assert wanted(GRAPH, "paper") == paper
    assert wanted(GRAPH, "tiny") == set(GRAPH) - paper
    two = {TINY.format("two", "evaluate@y"), TINY.format("one", "pretrain@x"), "sources"}
    assert wanted(GRAPH, "tiny", ["two"]) == two


def test_targets_are_stages_or_groups_with_all_they_need():
    x = {TINY.format("one", "evaluate@x"), TINY.format("one", "pretrain@x"), "sources"}
    assert wanted(GRAPH, "tiny", targets=["evaluate@x"]) == wanted(GRAPH, "tiny", targets=[min(x)]) == x
    assert wanted(GRAPH, "tiny", targets=["evaluate"]) == x | {TINY.format("two", "evaluate@y")}
    with pytest.raises(ValueError, match="no stage 'evaluat'"):
        wanted(GRAPH, "tiny", targets=["evaluat"])


def test_what_leads_to_a_claim_soonest_comes_first_and_then_the_order_of_the_plan():
    plan = load_plan("tiny")
    committees = ("prepare@digits", "pretrain@committees-digits", "pretrain@committees-mnist")
    clip_vip = ("claims", "evaluate@clip_vip-world_video_text", "finetune@clip_vip-video", "pretrain_from@clip_vip")
    prepare, digits, mnist = (TINY.format("committees", name) for name in committees)
    claims, evaluate, tuned, trained = (TINY.format("clip_vip", name) for name in clip_vip)
    clip = TINY.format("clip_vip", "pretrain@clip_vip-clip")
    of_digits, of_mnist = (TINY.format("committees", f"evaluate@committees-{name}") for name in ("digits", "mnist"))
    needs = {
        "report": [claims], claims: [evaluate], evaluate: [tuned], tuned: [trained], trained: [clip], clip: ["sources"],
        of_digits: [digits], digits: [prepare], prepare: ["sources"], of_mnist: [mnist], mnist: ["sources"],
    }  # fmt: skip
    graph = networkx.DiGraph(needs)
    order = ["sources", claims, evaluate, of_digits, of_mnist, prepare, digits, mnist, tuned, trained, clip, "report"]
    took = {prepare: 9.0, digits: 80.0, mnist: 800.0, clip: 10.0, trained: 20.0, tuned: 900.0}
    compare = [["committees-digits"], ["committees-mnist"], ["clip_vip-world_video_text"], ["no", "arms"]]
    seconds = seconds_to_claims(graph, took, compare)
    assert seconds[digits] == 9 + 80 + 2 * UNKNOWN and claims not in seconds
    for known in (seconds, seconds_to_claims(graph, {mnist: 150.0}, compare)):  # of this machine, or of a first run
        assert sorted(reversed(order), key=partial(place, plan, known)) == order
    both = seconds_to_claims(graph, took, [["committees-digits", "committees-mnist"], ["clip_vip-world_video_text"]])
    assert both[digits] == both[mnist] == 9 + 80 + 800 + 3 * UNKNOWN, "a claim needs all the arms that it compares"
    assert prepare not in seconds_to_claims(graph, took, compare[1:])


def test_the_arms_of_all_claims_that_the_preset_judges_are_known():
    plan = load_plan("tiny")
    found = compared(plan)
    assert all(plan.evaluate.keys() >= set(arms) for arms in found)
    rows = [row for stem in plan.papers for row in json.loads((ROOT / f"results/tiny/{stem}/claims.json").read_text())]
    lacking = [row for row in rows if "has no metric" in row["reason"]]  # known only once the arm is evaluated
    judged = [row for row in rows if row["verdict"] != "not testable"]
    assert sorted(found) == sorted(row["arms"] for row in [*judged, *lacking])


def test_each_seed_of_a_training_is_a_command_of_its_own():
    plan, command = load_plan("tiny"), "python -m stages.pretrain committees-mnist --preset tiny"
    apart = partial(seeds_apart, plan, lambda name: command)
    assert apart(TINY.format("committees", "pretrain@committees-mnist")) == [
        f"{command} --seed {seed}" for seed in plan.seeds[: plan.pretrain["committees-mnist"].max_seeds]
    ]
    assert apart(TINY.format("committees", "evaluate@committees-mnist")) == []


def test_more_seeds_are_written_into_the_shared_parameters(tmp_path, monkeypatch, capsys):
    for path in (ROOT / "params.yaml", *ROOT.glob("plans/tiny/*/params.yaml")):
        (tmp_path / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    for module in (repro, plan_module):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    before = (tmp_path / "params.yaml").read_text()
    repro.ask_for_seeds(5)
    after = (tmp_path / "params.yaml").read_text()
    assert after == before.replace("at_least: null", "at_least: 5") and "# " in after
    assert capsys.readouterr().out == "params.yaml: at_least is now 5\n"
    assert load_plan("tiny").at_least == 5
    repro.ask_for_seeds(5)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="at_least is 99, but `seeds` lists 10"):
        repro.ask_for_seeds(99)
    assert (tmp_path / "params.yaml").read_text() == after


@pytest.mark.slow
def test_a_forked_training_gives_the_bytes_of_a_fresh_process(tmp_path):
    copy = Copy(tmp_path, seeds=(0,), epochs=1)
    books = Bookkeeper(tmp_path)
    [name] = (name for name in books.graph if name.endswith("pretrain@committees-digits"))
    books.close()
    copy.dvc("repro", name)
    out = tmp_path / "data/runs/tiny/committees-digits"
    fresh = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    shutil.rmtree(out)
    shutil.rmtree(tmp_path / ".scratch")  # with what a run could continue from
    runner = start(tmp_path, names=[name], force=True, slots=1)
    output, _ = runner.communicate(timeout=300)
    assert json.loads(output.splitlines()[-1])["done"] == [name]
    assert fresh == {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert len(fresh) > 2


# What the user sees


def test_the_table_shows_what_runs_its_step_and_loss_and_the_time_left(tmp_path):
    class State:
        total, started = 3, time.monotonic() - 200

        def finished(self):
            return 1

        def working(self):
            (tmp_path / "p").write_text(json.dumps({"step": 1500, "steps": 3000, "loss": 0.25}))
            return [Running("pretrain@x (2 of 3)", time.monotonic() - 65, tmp_path / "p")]

        def seconds_left(self):
            return None

    console = Console(width=100, file=io.StringIO())
    console.print(table(State()))
    text = console.file.getvalue()
    assert "pretrain@x (2 of 3)" in text and "1,500 / 3,000" in text and "0.25" in text and "1 min 5 s" in text
    assert "1 of 3 stages done, 3 min 20 s so far, time left unknown" in text


def test_time_left_is_the_longer_of_the_work_and_the_longest_chain():
    graph = networkx.DiGraph([("b@x", "a@x"), ("c@x", "a@x")])
    known = {"a@x": 10.0, "b@x": 20.0, "b@y": 40.0}
    left = partial(durations.seconds_left, graph, known=known)
    assert left({"a@x", "b@x", "c@x"}, {}, slots=1) == 10 + 20 + 20, "of an unknown kind: the median of all"
    assert left({"a@x", "b@x", "c@x"}, {"a@x": 4}, slots=2) == 6 + 20
    assert durations.seconds_left(graph, {"a@x"}, {}, {}, 1) is None


def test_durations_are_those_of_this_folder_before_those_that_are_shipped(tmp_path):
    shipped = tmp_path / "plans/tiny/a/durations.json"
    shipped.parent.mkdir(parents=True)
    shipped.write_text('{"x": 1, "y": 2}')
    durations.remember(tmp_path / "own", {"x": 5.04})
    assert durations.load(tmp_path, tmp_path / "own") == {"x": 5.0, "y": 2.0}
    shipped.write_text("{")
    assert durations.load(tmp_path, tmp_path / "own") == {"x": 5.0}
