"""What language models and vision towers of our own have learnt, from stored predictions. Imports no torch."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lightning_modules.runs import Evaluation, Run
from lightning_modules.video_tokens.evaluation import some_run

ATTRIBUTES = ("color", "shape", "size")
PERCENT = 100
Arrays = Mapping[str, np.ndarray]
Metrics = dict[str, float]


def evaluate_language(runs: Sequence[Run], dataset: str) -> Evaluation:
    """How surprising texts are, in nats for each token: `caption_nats` and `question_nats`; `parameters`, `tokens`.

    Args:
        runs: finished runs of `CaptionLanguage`, one for each seed.
        dataset: first part of every metric's name.

    Raises:
        ValueError: there is no run.
    """

    def measured(stored: Arrays) -> Metrics:
        return {f"{name}_nats": float(stored[name].mean()) for name in ("caption", "question") if name in stored}

    odd = ("published", "caption_nats", "a published language model was trained elsewhere, with other words")
    return _evaluated(runs, dataset, measured, ("parameters", "tokens"), odd)


def evaluate_tower(runs: Sequence[Run], dataset: str) -> Evaluation:
    """What a linear probe tells from the patches of things: `color_percent`, `shape_percent`, `size_percent`.

    Also `parameters` and `patches`.

    Args:
        runs: finished runs of `CaptionTower`, one for each seed.
        dataset: first part of every metric's name.

    Raises:
        ValueError: there is no run.
    """

    def measured(stored: Arrays) -> Metrics:
        return {f"{name}_percent": PERCENT * float(stored[name].mean()) for name in ATTRIBUTES if name in stored}

    odd = ("unlabelled", "color_percent", "the data set has no labels of things")
    return _evaluated(runs, dataset, measured, ("parameters", "patches"), odd)


def _evaluated(
    runs: Sequence[Run],
    dataset: str,
    measured: Callable[[Arrays], Metrics],
    sizes: Sequence[str],
    odd: tuple[str, str, str],
) -> Evaluation:
    """What a function measures of what each run has stored, with some of its facts.

    `odd` is a stored mark, the metric that is missing then, and why.
    """
    some_run(runs)
    mark, metric, why = odd
    metrics, missing = {}, {}
    for run in runs:
        stored = run.predictions()
        found = measured(stored) | {name: float(run.facts[name]) for name in sizes}
        metrics[run.seed] = {f"{dataset}/{name}": value for name, value in found.items()}
        missing |= {metric: why} if mark in stored else {}
    return Evaluation(metrics=metrics, not_computed=missing)
