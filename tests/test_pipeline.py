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

from stages.plan import ROWS
from tests.pipeline import REALDATA, ROOT, Copy

DIGITS = "plans/tiny/committees/dvc.yaml:pretrain@committees-digits"


@pytest.mark.slow
def test_dvc_has_a_stage_for_every_arm_of_a_plan():
    names = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list", "--names-only", "--all"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    expected = set()
    for path in sorted((ROOT / "plans").glob("*/*/params.yaml")):
        plan = yaml.safe_load(path.read_text())
        stages = {"claims"} | {f"prepare@{name}" for name in plan["datasets"]}
        stages |= {f"{stage}@{arm}" for stage in ROWS for arm in plan[stage]}
        expected |= {f"{path.parent.relative_to(ROOT)}/dvc.yaml:{stage}" for stage in stages}
    assert {name for name in names if name.startswith("plans/") and name.count("/") > 2} == expected


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
    for file in ("training.py", "committees/evaluation.py", "datasets/digits.py"):
        path = done.folder / "lightning_modules" / file
        path.write_text(path.read_text() + "\n# a comment\n")
    assert ran(done.dvc("repro")) == ["sources"]
    path = done.folder / "lightning_modules/small_ensembles/evaluation.py"
    path.write_text(path.read_text() + "\nCHANGED = 1\n")
    stages = {name.rpartition(":")[2] for name in ran(done.dvc("repro"))}
    assert stages - {"report"} == {
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
    assert "committees-mnist" in page and "data set mnist was not available" in page


@pytest.mark.slow
@pytest.mark.skipif(not REALDATA.is_dir(), reason="the MNIST files are not beside the project")
def test_prepare_reads_mnist_from_the_mirror_setting(tmp_path):
    copy = Copy(tmp_path / "p", datasets=("digits", "mnist"))
    copy.dvc("repro", "plans/tiny/committees/dvc.yaml:prepare@mnist", REPRISE_MIRROR=str(REALDATA))
    card = json.loads((copy.folder / "data/datasets/mnist/tiny/card.json").read_text())
    assert card["splits"] == {"train": 60000, "test": 10000}


@pytest.fixture(scope="module")
def committed(done, tmp_path_factory):
    """The finished project, with its locks and verdicts committed. Read, never changed."""
    copy = done.clone(tmp_path_factory.mktemp("committed"))
    copy.dvc("repro")  # after the tests that changed it
    copy.commit()
    return copy


@pytest.fixture(scope="module")
def changed(committed, tmp_path_factory):
    """One setting of each paper changed after the commit, then `dvc repro` for one paper, then for all.

    Returns:
        The project, and the stages that each of the two commands ran.
    """
    copy = committed.clone(tmp_path_factory.mktemp("changed"))
    for paper, arm in (("committees", "committees-digits"), ("small_ensembles", "small_ensembles-digits")):
        averaging = {f"evaluate.{arm}.overrides": {"evaluate.average": "probabilities"}}
        copy.edit(f"plans/tiny/{paper}/params.yaml", **averaging)
    first = ran(copy.dvc("repro", "plans/tiny/committees/dvc.yaml"))
    return copy, first, ran(copy.dvc("repro"))


def ran(process) -> list[str]:
    """The stages that `dvc repro` ran."""
    return re.findall(r"Running stage '([^']+)'", process.stdout)


@pytest.mark.slow
def test_repro_of_a_paper_runs_its_stages_and_no_others(changed):
    assert set(changed[1]) == {
        f"plans/tiny/committees/dvc.yaml:{name}" for name in ("evaluate@committees-digits", "claims")
    }


@pytest.mark.slow
def test_repro_at_the_root_runs_what_is_left_and_then_nothing(changed):
    copy, _, second = changed
    assert set(second) == {
        "report",
        *(f"plans/tiny/small_ensembles/dvc.yaml:{name}" for name in ("evaluate@small_ensembles-digits", "claims")),
    }
    assert "Data and pipelines are up to date." in copy.dvc("status").stdout


@pytest.mark.slow
def test_dag_shows_the_stages_of_both_papers(committed):
    text = committed.dvc("dag", "--dot").stdout
    for paper, stage in (("committees", "prepare@digits"), ("small_ensembles", "evaluate@small_ensembles-digits")):
        assert f"plans/tiny/{paper}/dvc.yaml:{stage}" in text
    shared = '"plans/tiny/committees/dvc.yaml:pretrain@committees-digits" -> '
    assert f'{shared}"plans/tiny/small_ensembles/dvc.yaml:evaluate@small_ensembles-digits"' in text


@pytest.mark.slow
def test_metrics_show_lists_the_metrics_of_each_paper(committed):
    shown = json.loads(committed.dvc("metrics", "show", "--json").stdout)[""]["data"]
    for paper in ("committees", "small_ensembles"):
        file = f"results/tiny/{paper}/metrics.json"
        assert shown[file]["data"] == json.loads((committed.folder / file).read_text())


@pytest.mark.slow
def test_metrics_diff_shows_what_a_changed_setting_changed(changed, committed):
    """With the values of both sides."""
    file = "results/tiny/committees/metrics.json"
    found = json.loads(changed[0].dvc("metrics", "diff", "--json").stdout)[file]
    before, after = (
        {
            name: value["mean"]
            for name, value in json.loads((copy.folder / file).read_text())["committees-digits"].items()
        }
        for copy in (committed, changed[0])
    )
    names = [name for name in before if name in after and before[name] != after[name]]
    shown = {name: found[f"committees-digits.{name}.mean"] for name in names}
    assert names and all((shown[name]["old"], shown[name]["new"]) == (before[name], after[name]) for name in names)


@pytest.mark.slow
def test_params_diff_shows_the_changed_setting(changed):
    found = json.loads(changed[0].dvc("params", "diff", "--json").stdout)
    (key,) = found["plans/tiny/committees/params.yaml"]
    assert key.startswith("evaluate.committees-digits.overrides")
    assert found["plans/tiny/committees/params.yaml"][key]["new"] == "probabilities"


@pytest.mark.slow
@pytest.mark.parametrize(("command", "revisions"), [("show", {"workspace"}), ("diff", {"workspace", "HEAD"})])
def test_plots_hold_the_points_of_the_figures(changed, command, revisions, tmp_path):
    copy = changed[0]
    copy.dvc("plots", command, "--out", str(tmp_path / "plots"))
    page = (tmp_path / "plots/index.html").read_text()
    assert "the main figure of each arm" in page and "committees-digits" in page
    assert set(re.findall(r'"rev": "(\w+)"', page)) == revisions


@pytest.mark.slow
@pytest.mark.parametrize("where", [(), ("--temp",)])
def test_experiments_take_seeds_from_the_command_line(committed, tmp_path, where):
    copy = committed.clone(tmp_path)
    copy.dvc("exp", "run", *where, "-n", "three", "-S", "seeds=[3]", DIGITS)
    refs = copy.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout.split()
    (ref,) = [name for name in refs if name.endswith("/three")]
    lock = yaml.safe_load(copy.run("git", "show", f"{ref}:plans/tiny/committees/dvc.lock").stdout)
    assert lock["stages"]["pretrain@committees-digits"]["params"]["params.yaml"]["seeds"] == [3]
    seeds = {path.name for path in (copy.folder / "data/runs/tiny/committees-digits/pretrain").glob("seed-*")}
    assert seeds == ({"seed-0", "seed-1"} if where else {"seed-3"})  # an experiment elsewhere leaves this folder alone
