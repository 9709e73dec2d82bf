"""The comparison of fine-tuned encoders, on made-up predictions."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lightning_modules.files import sha256
from lightning_modules.runs import find_runs
from lightning_modules.tasks.transfer import evaluate

LABELS = np.arange(8) % 4


def write(folder, right, labels=LABELS, macs=None):
    """A run that classifies the first `right` of eight rows correctly."""
    folder.mkdir(parents=True)
    logits = np.eye(4, dtype=np.float32)[(labels + (np.arange(8) >= right)) % 4]
    save_file({"logits/test": logits, "labels/test": labels}, folder / "predictions.safetensors")
    upstream = {} if macs is None else {"pretrain_macs_per_image": macs}
    facts = {"predictions_sha256": sha256(folder / "predictions.safetensors"), "from": upstream}
    (folder / "facts.json").write_text(json.dumps(facts))
    (folder / "history.csv").write_text(f"step,finetune/loss,lr\n0,2.0,\n1,,0.1\n20,{right}.0,\n")


@pytest.fixture
def folder(tmp_path):
    for seed in (0, 1):
        for protocol, more in (("finetune", 0), ("probe", 1)):
            write(tmp_path / f"new/{protocol}/seed-{seed}", 5 + seed + more, macs=3_000_000)
            write(tmp_path / f"scratch/{protocol}/seed-{seed}", 2 + more)
    return tmp_path


def test_runs_are_found_by_name_and_seed(folder):
    found = [(run.name, run.seed) for run in find_runs(folder)]
    assert found[:3] == [("new/finetune", 0), ("new/finetune", 1), ("new/probe", 0)]
    assert [(run.name, run.seed) for run in find_runs(folder / "new/probe")] == [("", 0), ("", 1)]


def test_accuracy_and_cost_of_each_arm(folder):
    metrics = evaluate(find_runs(folder), "digits").metrics
    assert metrics[1]["digits/finetune/top1_percent@new"] == 100 * 6 / 8
    assert metrics[0]["digits/probe/top1_percent@scratch"] == 100 * 3 / 8
    assert metrics[0]["digits/pretrain/macs_per_image@new"] == 3_000_000
    assert "digits/pretrain/macs_per_image@scratch" not in metrics[0]


def test_figures_show_every_arm_with_its_interval(folder):
    accuracy, cost = evaluate(find_runs(folder), "digits").figures
    assert [series.labels for series in accuracy.series] == [["new", "scratch"]] * 2
    assert accuracy.series[0].y == [100 * 5.5 / 8, 25] and accuracy.series[0].low[0] < 100 * 5 / 8
    assert [(series.name, series.x) for series in cost.series] == [("new", [3.0])]


def test_arms_judged_on_different_rows_are_refused(folder):
    write(folder / "other/probe/seed-0", 8, labels=LABELS[::-1].copy())
    with pytest.raises(ValueError, match="judged on other test rows"):
        evaluate(find_runs(folder), "digits")
    with pytest.raises(ValueError, match="no fine-tuned encoder"):
        evaluate([], "digits")
