"""The comparison of fine-tuned encoders, on made-up predictions."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lightning_modules.files import sha256
from lightning_modules.runs import find_runs
from lightning_modules.tasks.comparison import training_losses
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
    accuracy, cost, loss = evaluate(find_runs(folder), "digits").figures
    assert [series.labels for series in accuracy.series] == [["new", "scratch"]] * 2
    assert accuracy.series[0].y == [100 * 5.5 / 8, 25] and accuracy.series[0].low[0] < 100 * 5 / 8
    assert [(series.name, series.x) for series in cost.series] == [("new", [3.0])]
    assert [(series.name, series.x, series.y) for series in loss.series] == [
        ("new", [0, 20], [2.0, 5.5]),
        ("scratch", [0, 20], [2.0, 2.0]),
    ]


def test_curves_of_validation_are_drawn_with_those_of_training(folder):
    history = "step,finetune/loss,validation/loss\n0,2.0,\n10,,1.5\n20,1.0,1.25\n"
    for seed in (0, 1):
        (folder / f"new/finetune/seed-{seed}/history.csv").write_text(history)
    series = evaluate(find_runs(folder), "digits").figures[-1].series
    assert [(each.name, each.kind) for each in series] == [
        ("new", "line"),
        ("new, validation", "dashed"),
        ("scratch", "line"),
    ]
    assert (series[1].x, series[1].y) == ([10, 20], [1.5, 1.25])


def test_the_losses_of_a_pool_are_shown_as_their_mean(folder):
    runs = [run for run in find_runs(folder) if run.name == "new/probe"]
    for members in (3, 4):
        names = [f"{stage}/m{k}/loss" for stage in ("pretrain", "validation") for k in range(members)]
        for run in runs:
            rows = [["step", *names, "validation/m0#0/accuracy"], [0, *[2] * members, *[""] * (members + 1)]]
            rows.append([5, *range(members), *range(1, members + 1), 0.5])
            text = "\n".join(",".join(map(str, row)) for row in rows)
            (run.folder / "history.csv").write_text(f"{text}\n")
        (figure,) = training_losses(runs)
        shown = {series.name: (series.kind, series.x, series.y) for series in figure.series}
        if members == 3:
            assert len(shown) == 6 and shown["m2/loss, validation"] == ("dashed", [5], [3.0])
        else:
            assert shown == {
                "mean of 4": ("line", [0, 5], [2, 1.5]),
                "mean of 4, validation": ("dashed", [5], [2.5]),
            }
    (runs[0].folder / "history.csv").write_text("step,lr\n0,0.1\n")
    assert training_losses(runs) == [] == training_losses([])


def test_arms_judged_on_different_rows_are_refused(folder):
    write(folder / "other/probe/seed-0", 8, labels=LABELS[::-1].copy())
    with pytest.raises(ValueError, match="judged on other test rows"):
        evaluate(find_runs(folder), "digits")
    with pytest.raises(ValueError, match="no fine-tuned encoder"):
        evaluate([], "digits")
