"""The same training on other devices: two processes, accumulated batches, compiled blocks."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from safetensors.numpy import load_file

from lightning_modules.processes import GO_ON_LATER
from tests.pipeline import Copy

TWO = {"devices": 2, "strategy": "ddp"}
STILL = {"flip": False, "shift": 0}  # augmentation is drawn by each process for itself
ROWS = {
    "pretrain": {
        "teacher": {
            "system": "classifier",
            "dataset": "world_graded",
            "overrides": {"model.encoder.depth": 1, "pretrain.epochs": 2}
            | {f"model.preprocess.{name}": value for name, value in STILL.items()},
        },
        "augmented": {
            "system": "classifier",
            "dataset": "world_graded",
            "max_seeds": 1,
            "overrides": {"model.encoder.depth": 1, "pretrain.epochs": 30}  # of four steps
            | {"model.preprocess.flip": True, "model.preprocess.shift": 2},
        },
    },
    "pretrain_from": {}, "finetune": {}, "evaluate": {}, "sweep": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    copy = Copy(tmp_path_factory.mktemp("devices"), datasets=("world_graded",), rows=ROWS)
    rows = "{train: 4096, val: 1024, test: 2048}", "{train: 256, val: 64, test: 64}"
    copy.replace("conf/dataset/world_graded/tiny.yaml", *rows)
    copy.slow_down(0.1)
    copy.python("-m", "stages.sources")
    copy.python("-m", "stages.prepare", "world_graded")
    return copy


def other_machine(project, **changes):
    """The trainer `other`."""
    machine = yaml.safe_load((project.folder / "conf/trainer/cpu.yaml").read_text())
    (project.folder / "conf/trainer/other.yaml").write_text(
        yaml.safe_dump({**machine, "workers": 1, "log_every_n_steps": 1, **changes})
    )


def train(project, **changes):
    """Loss and weights of both seeds, and the rest of what was written, on a machine with these settings."""
    other_machine(project, **changes)
    project.python("-m", "stages.pretrain", "teacher", REPRISE_TRAINER="other")
    found = {}
    for seed in range(2):
        folder = project.folder / f"data/runs/tiny/teacher/pretrain/seed-{seed}"
        rows = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
        facts = json.loads((folder / "facts.json").read_text())
        found[seed] = load_file(folder / "weights.safetensors"), rows, facts["seed"]
    assert not list((project.folder / ".scratch/training").glob("*"))
    return found


def numbers(rows):
    """The columns of a history, empty cells left out."""
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [TWO, {"accumulate": 4}, {"compile": True}, {**TWO, "accumulate": 2}],
    ids=["two processes", "accumulated", "compiled", "both"],
)
def test_a_training_comes_out_the_same(project, changes):
    plain, other = train(project), train(project, **changes)
    for seed, (weights, rows, own) in plain.items():
        assert own == other[seed][2] == seed
        for name, values in weights.items():
            assert other[seed][0][name] == pytest.approx(values, rel=1e-3, abs=2e-4), name
        own, others = (numbers(found) for found in (rows, other[seed][1]))
        (loss,) = (name for name in own if name.endswith("/loss"))
        assert len(own[loss]) == len(others[loss]) == 8
        assert others["step"] == own["step"]
        if "compile" in changes:
            assert others[loss] == pytest.approx(own[loss], rel=1e-3)
        else:  # what is logged is the loss of one part of a step, so a history of another training would differ
            assert others[loss] != own[loss]


def stop(project, number, *, group, more):
    """Exit code and messages of a training by hand that gets a signal once `more` steps were done.

    The signal goes to its first process, or to all.
    """
    progress = project.folder / ".scratch/progress"
    progress.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.pretrain", "augmented"],
        cwd=project.folder,
        env={**project.environment, "REPRISE_TRAINER": "other", "REPRISE_PROGRESS": str(progress)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    first = None
    while process.poll() is None:
        step = json.loads(progress.read_text())["step"] if progress.exists() else None
        first = step if first is None else first
        if step is not None and step >= first + more:
            os.killpg(process.pid, number) if group else process.send_signal(number)
            break
        time.sleep(0.05)
    _, said = process.communicate(timeout=300)
    return process.returncode, said


def files(project):
    return {
        path.name: path.read_bytes() for path in (project.folder / "data/runs/tiny/augmented/pretrain/seed-0").iterdir()
    }


@pytest.mark.slow
def test_two_processes_that_are_stopped_go_on_to_the_same_bytes_and_one_process_can_go_on_too(project):
    other_machine(project, **TWO, checkpoint_seconds=1.0)
    project.python("-m", "stages.pretrain", "augmented", REPRISE_TRAINER="other")
    unbroken = files(project)
    for name in ("data/runs", ".scratch/seeds"):
        shutil.rmtree(project.folder / name)
    steps = []
    for number, group in ((signal.SIGTERM, False), (signal.SIGUSR1, True), (signal.SIGINT, True)):
        code, said = stop(project, number, group=group, more=10)
        assert code == GO_ON_LATER, said
        assert not (project.folder / "data/runs").exists()
        (step,) = re.findall(r"stopping at step (\d+)", said)
        steps.append(int(step))
        assert f"stopped by {number.name}: the same command goes on from here" in said
    assert 0 < steps[0] < steps[1] < steps[2] < 120, steps
    saved = project.folder / "saved"
    shutil.copytree(project.folder / ".scratch/training", saved)
    done = project.python("-m", "stages.pretrain", "augmented", REPRISE_TRAINER="other")
    assert f"resuming at step {steps[2]}" in done.stderr
    assert files(project) == unbroken

    shutil.rmtree(project.folder / ".scratch/seeds")
    shutil.copytree(saved, project.folder / ".scratch/training", dirs_exist_ok=True)
    other_machine(project)
    done = project.python("-m", "stages.pretrain", "augmented", REPRISE_TRAINER="other")
    assert f"resuming at step {steps[2]}" in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "not digit for digit" in line]
    assert "is of 2 processes with 1 accumulated batches each, this training has 1 processes" in line
    found = files(project)
    assert found["weights.safetensors"] != unbroken["weights.safetensors"]
    assert len(found["history.csv"].splitlines()) == len(unbroken["history.csv"].splitlines()) == 121
    records = [json.loads(path.read_text()) for path in project.folder.glob(".scratch/runs/*/*augmented*/machine.json")]
    said = [record["resumed_inexactly_from"] for record in records if "resumed_inexactly_from" in record]
    assert said == ["2 processes with 1 accumulated batches each"]
