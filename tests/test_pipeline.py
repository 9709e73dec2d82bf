"""The whole pipeline as a user of DVC drives it, on a small copy of the project."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml

from stages.plan import PRESETS, ROWS
from tests.pipeline import REALDATA, ROOT, Copy

DIGITS = "plans/tiny/committees/dvc.yaml:pretrain@committees-digits"


@pytest.mark.parametrize("preset", PRESETS)
def test_dvc_has_a_stage_for_every_arm_of_a_plan(preset):
    plans = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "plans" / preset).glob("*/params.yaml"))]
    names = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list", "--names-only", "--all"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    expected = set()
    for plan in plans:
        stages = {"claims"} | {f"prepare@{name}" for name in plan["datasets"]}
        stages |= {f"{stage}@{arm}" for stage in ROWS for arm in plan[stage]}
        expected |= {f"plans/{preset}/{plan['paper']}/dvc.yaml:{stage}" for stage in stages}
    assert {name for name in names if name.startswith(f"plans/{preset}/") and name.count("/") > 2} == expected


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    copy = Copy(tmp_path_factory.mktemp("project"))
    copy.python("-m", "stages.repro")
    return copy


@pytest.mark.slow
def test_a_second_run_runs_nothing(done):
    before = done.locks()
    assert "Data and pipelines are up to date." in done.dvc("repro").stdout
    assert re.search("^0 of [0-9]+ stages to bring up to date$", done.python("-m", "stages.repro").stdout, re.MULTILINE)
    assert done.locks() == before


@pytest.mark.slow
def test_outputs_are_pure_functions_of_their_inputs(done, tmp_path):
    """A second clone, run one stage after the other, ends with the same locks, byte for byte."""
    other = Copy(tmp_path / "other")
    other.python("-m", "stages.repro", "--jobs", "1")
    assert other.locks() == done.locks()
    for path in (done.folder / "data").rglob("*"):
        if path.is_file() and path.name != "machine.js":
            assert str(done.folder).encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_a_comment_reruns_sources_only_and_a_change_its_users(done):
    def ran(text):
        return [name.rpartition(":")[2] for name in re.findall(r"Running stage '([^']+)'", text)]

    for file in ("training.py", "committees/evaluation.py", "datasets/digits.py"):
        path = done.folder / "lightning_modules" / file
        path.write_text(path.read_text() + "\n# a comment\n")
    assert ran(done.dvc("repro").stdout) == ["sources"]
    path = done.folder / "lightning_modules/small_ensembles/evaluation.py"
    path.write_text(path.read_text() + "\nCHANGED = 1\n")
    assert set(ran(done.dvc("repro").stdout)) - {"report"} == {
        "sources", "evaluate@small_ensembles-digits", "evaluate@small_ensembles-deep_digits",
    }  # fmt: skip


@pytest.mark.slow
def test_a_training_killed_with_kill_9_ends_with_the_numbers_of_an_unbroken_one(tmp_path):
    unbroken, killed = Copy(tmp_path / "a", seeds=[0], epochs=120), Copy(tmp_path / "b", seeds=[0], epochs=120)
    unbroken.dvc("repro", DIGITS)
    for copy in (unbroken, killed):
        trainer = copy.folder / "conf/trainer/cpu.yaml"
        trainer.write_text(re.sub("checkpoint_seconds: .*", "checkpoint_seconds: 0.3", trainer.read_text()))
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", DIGITS],
        cwd=killed.folder,
        env=killed.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list((killed.folder / ".scratch/training").glob("*/last-*.ckpt")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.poll() is None, "ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed.folder / "data/runs/tiny/committees-digits/pretrain/seed-0").exists()
    assert "resuming at step" in killed.dvc("repro", DIGITS).stderr
    first, second = (
        {p.name: p.read_bytes() for p in (c.folder / "data/runs/tiny/committees-digits/pretrain/seed-0").iterdir()}
        for c in (unbroken, killed)
    )
    assert first == second


@pytest.mark.slow
def test_a_machine_without_mnist_still_succeeds_and_the_report_says_what_is_missing(tmp_path):
    copy = Copy(tmp_path / "p", datasets=("digits", "mnist"))
    conf = copy.folder / "conf/dataset/mnist/tiny.yaml"
    text = re.sub(r"https?://[^\s\]\",]+", "http://127.0.0.1:9/", conf.read_text())
    conf.write_text(text)
    run = copy.python("-m", "stages.repro")
    assert "left out" in run.stderr and "REPRISE_MIRROR" in run.stderr
    page = (copy.folder / "data/report/tiny/index.html").read_text()
    assert "committees-mnist" in page and "data set mnist was not to be had" in page


@pytest.mark.slow
@pytest.mark.skipif(not REALDATA.is_dir(), reason="the MNIST files are not beside the project")
def test_prepare_reads_mnist_from_the_mirror_setting(tmp_path):
    copy = Copy(tmp_path / "p", datasets=("digits", "mnist"))
    copy.dvc("repro", "plans/tiny/committees/dvc.yaml:prepare@mnist", REPRISE_MIRROR=str(REALDATA))
    card = json.loads((copy.folder / "data/datasets/mnist/tiny/card.json").read_text())
    assert card["splits"] == {"train": 60000, "test": 10000}


@pytest.mark.slow
def test_experiments_take_seeds_from_the_command_line(done):
    done.dvc("exp", "run", "--temp", "-n", "two", "-S", "seeds=[3]", DIGITS)
    refs = done.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout.split()
    (ref,) = [name for name in refs if name.endswith("/two")]
    lock = yaml.safe_load(done.run("git", "show", f"{ref}:plans/tiny/committees/dvc.lock").stdout)
    lock = lock["stages"]["pretrain@committees-digits"]
    assert lock["params"]["params.yaml"]["seeds"] == [3]


@pytest.mark.slow
@pytest.mark.parametrize("command", [("dag",), ("metrics", "show"), ("params", "diff"), ("status",), ("plots", "show")])
def test_the_commands_of_a_dvc_user_work(done, command):
    assert done.dvc(*command).returncode == 0
