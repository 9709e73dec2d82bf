"""Arms that start from other arms, through the real pipeline: teacher, student, fine-tuning, claims."""

import json

import pytest
import yaml

from tests.pipeline import Copy

SHORT = {"model": {"student": {"depth": 1}, "teacher": {"depth": 1}, "layer_weights": "out"}, "pretrain": {"epochs": 1}}
PROTOCOLS = {
    "downstream.finetune.data.splits": {
        "train": {"source": "train", "rows": 64},
        "test": {"source": "test", "rows": 128},
    },
    "downstream.finetune.epochs": 1,
    "downstream.probe.data.splits": {
        "train": {"source": "train", "rows": 128},
        "test": {"source": "test", "rows": 128},
    },
    "downstream.probe.epochs": 1,
    "model.student.depth": 1,
}
ENCODER = {"model.encoder.depth": 1}
DATA = {"dataset": "world_graded"}
ROWS = {
    "pretrain": {
        "teacher": {"system": "classifier", **DATA, "max_seeds": 1, "overrides": {**ENCODER, "pretrain.epochs": 1}},
        "scratch": {"system": "classifier", **DATA, "overrides": {**ENCODER, "pretrain.epochs": 0}},
    },
    "pretrain_from": {"student": {"system": "maskalign", **DATA, "from": "teacher", "overrides": SHORT}},
    "finetune": {
        f"tuned-{start}": {"system": "maskalign", **DATA, "from": start, "overrides": PROTOCOLS}
        for start in ("student", "scratch")
    },
    "evaluate": {
        "judged": {"system": "maskalign", "stage": "finetune", "runs": "maskalign-world_graded", "overrides": {}}
    },
    "sweep": {},
}


def stages_of(copy):
    return yaml.safe_load(copy.locks()["plans/tiny/maskalign/dvc.lock"])["stages"]


@pytest.mark.slow
def test_a_chain_of_arms_runs_once_and_a_change_reruns_what_starts_from_it(tmp_path):
    copy = Copy(tmp_path / "project", datasets=("world_graded",), rows=ROWS)
    card = copy.folder / "conf/dataset/world_graded/tiny.yaml"
    card.write_text(
        card.read_text().replace("{train: 4096, val: 1024, test: 2048}", "{train: 512, val: 256, test: 256}")
    )

    copy.python("-m", "stages.repro")
    results = copy.folder / "data/results/tiny/maskalign/judged/metrics.json"
    first = json.loads(results.read_text())
    assert set(first) == {"0", "1"}
    for arm in ("student", "scratch"):
        for protocol in ("finetune", "probe"):
            assert 0 <= first["0"][f"world_graded/{protocol}/top1_percent@{arm}"] <= 100
    lock = stages_of(copy)
    teacher = copy.folder / "data/runs/tiny/teacher/pretrain"
    student = copy.folder / "data/runs/tiny/student/pretrain/seed-1/facts.json"
    assert [path.name for path in teacher.glob("seed-*")] == ["seed-0"]
    assert json.loads(student.read_text())["from"]["seed"] == 0

    assert "0 of 10 stages" in copy.python("-m", "stages.repro").stdout

    plan = copy.folder / "plans/tiny/maskalign/params.yaml"
    changed = yaml.safe_load(plan.read_text())
    changed["pretrain_from"]["student"]["overrides"]["model"]["mask_ratio"] = 0.25
    del changed["finetune"]["tuned-scratch"]
    plan.write_text(yaml.safe_dump(changed))
    copy.python("-m", "stages.repro")
    again = stages_of(copy)
    reran = {name for name, stage in again.items() if stage["outs"] != lock[name]["outs"]}
    assert reran == {"pretrain_from@student", "finetune@tuned-student", "evaluate@judged", "claims"}
    assert {key.partition("@")[2] for key in json.loads(results.read_text())["0"]} == {"student"}, "of arms in the plan"
