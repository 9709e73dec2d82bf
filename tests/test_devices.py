"""The same training on other devices: two processes, accumulated batches, compiled blocks."""

import csv
import json

import pytest
import yaml
from safetensors.numpy import load_file

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
        }
    },
    "pretrain_from": {}, "finetune": {}, "evaluate": {}, "sweep": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    copy = Copy(tmp_path_factory.mktemp("devices"), datasets=("world_graded",), rows=ROWS)
    card = copy.folder / "conf/dataset/world_graded/tiny.yaml"
    card.write_text(card.read_text().replace("{train: 4096, val: 1024, test: 2048}", "{train: 256, val: 64, test: 64}"))
    copy.python("-m", "stages.sources")
    copy.python("-m", "stages.prepare", "world_graded")
    return copy


def train(project, **changes):
    """Loss and weights of both seeds, and the rest of what was written, on a machine with these settings."""
    machine = yaml.safe_load((project.folder / "conf/trainer/cpu.yaml").read_text())
    (project.folder / "conf/trainer/other.yaml").write_text(
        yaml.safe_dump({**machine, "workers": 1, "log_every_n_steps": 1, **changes})
    )
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
