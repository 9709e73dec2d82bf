"""Compares pre-trained encoders: every arm is fine-tuned and probed in the same way, on one data set.

This is a shared file because every paper that pre-trains an encoder needs it. It reads stored predictions only, so it
does not import torch.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from lightning_modules.ensembling.pools import seed_series
from lightning_modules.metrics import classification
from lightning_modules.runs import Evaluation, Figure, Run
from lightning_modules.tasks.comparison import Metrics, arms_of, check_rows, over_arms

PROTOCOLS = {"finetune": "fine-tuned", "probe": "linear probe"}


def evaluate(runs: Sequence[Run], dataset: str) -> Evaluation:
    """Accuracy on test data of every arm and protocol, and what a step of its pre-training costs, per seed.

    Args:
        runs: named `<arm>/<protocol>`, the same seeds of each.
        dataset: first part of every metric's name; the last is the arm: `<dataset>/probe/top1_percent@<arm>`.

    Raises:
        ValueError: there is no run, or two runs of one seed were judged on different rows.
    """
    if not runs:
        raise ValueError("there is no fine-tuned encoder to compare: `make repro` trains it.")
    metrics: dict[int, Metrics] = defaultdict(dict)
    predictions = [run.predictions() for run in runs]
    check_rows(runs, [each["labels/test"] for each in predictions])
    for run, each in zip(runs, predictions, strict=True):
        metrics[run.seed] |= _measured(run, dataset, each["logits/test"], each["labels/test"])
    arms = arms_of(runs)
    return Evaluation(
        metrics=dict(metrics),
        figures=[_accuracies(metrics, dataset, arms), _costs(metrics, dataset, arms)],
    )


def _measured(run: Run, dataset: str, logits: np.ndarray, labels: np.ndarray) -> Metrics:
    arm, _, protocol = run.name.partition("/")
    found = {
        f"{dataset}/{protocol}/top1_percent@{arm}": 100 * classification.accuracy(logits, labels),
        f"{dataset}/{protocol}/nll_nats@{arm}": classification.negative_log_likelihood(logits, labels),
    }
    if "pretrain_macs_per_image" in run.facts["from"]:  # absent where nothing was pre-trained
        found[f"{dataset}/pretrain/macs_per_image@{arm}"] = float(run.facts["from"]["pretrain_macs_per_image"])
    return found


def _accuracies(metrics: Mapping[int, Metrics], dataset: str, arms: Sequence[str]) -> Figure:
    series = []
    for protocol, name in PROTOCOLS.items():
        values = over_arms(metrics, f"{dataset}/{protocol}/top1_percent", arms)
        series.append(seed_series(name, "bars", range(len(arms)), values, arms))
    return Figure(
        id="accuracy",
        title=f"What each pre-training is worth ({dataset})",
        caption="Test accuracy after fine-tuning on few labels, and of a linear classifier on the frozen encoder.",
        x_label="arm",
        y_label="top-1 accuracy, %",
        series=series,
    )


def _costs(metrics: Mapping[int, Metrics], dataset: str, arms: Sequence[str]) -> Figure:
    first = metrics[min(metrics)]
    cost = {arm: first.get(f"{dataset}/pretrain/macs_per_image@{arm}") for arm in arms}
    return Figure(
        id="cost",
        title=f"Accuracy against the cost of a step ({dataset})",
        caption="Multiply-adds of one image in a training step, forward and backward, with the teacher's forward pass "
        "where there is one; all arms take the same number of steps.",
        x_label="MMACs per image",
        y_label="top-1 accuracy after fine-tuning, %",
        series=[
            seed_series(arm, "points", [macs / 1e6], over_arms(metrics, f"{dataset}/finetune/top1_percent", [arm]))
            for arm, macs in cost.items()
            if macs is not None
        ],
    )
