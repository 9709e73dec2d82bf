"""How many pictures a trained MM-GEM tells the class of, from stored predictions. Imports no torch."""

from collections.abc import Sequence

from lightning_modules.metrics.actions import top_accuracy
from lightning_modules.runs import Evaluation, Run

PERCENT = 100
TOP = (1, 5)


def evaluate(runs: Sequence[Run], dataset: str) -> Evaluation:
    """How many pictures are told rightly: `top1_percent`, `top5_percent`, and `classes`.

    Args:
        runs: finished runs of `Classifying`, one for each seed.
        dataset: first part of every metric's name.

    Raises:
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("there is no run to evaluate: train the arm first.")
    metrics = {}
    for run in runs:
        arrays = run.predictions()
        scores, labels = arrays["similarities"], arrays["labels"]
        count = scores.shape[1]
        found = {f"top{k}_percent": PERCENT * top_accuracy(scores, labels, k) for k in TOP if k < count}
        metrics[run.seed] = {f"{dataset}/{name}": value for name, value in (found | {"classes": float(count)}).items()}
    return Evaluation(metrics=metrics)
