"""What language models and vision towers of our own have learnt, from stored predictions. Imports no torch."""

from collections.abc import Sequence

from lightning_modules.runs import Evaluation, Run
from lightning_modules.video_tokens.evaluation import some_run

ATTRIBUTES = ("color", "shape", "size")
PERCENT = 100


def evaluate_language(runs: Sequence[Run], dataset: str) -> Evaluation:
    """How surprising texts are, in nats for each token: `caption_nats` and `question_nats`; `parameters`, `tokens`.

    Args:
        runs: finished runs of `CaptionLanguage`, one for each seed.
        dataset: first part of every metric's name.

    Raises:
        ValueError: there is no run.
    """
    some_run(runs)
    metrics, missing = {}, {}
    for run in runs:
        stored = run.predictions()
        found = {f"{name}_nats": float(stored[name].mean()) for name in ("caption", "question") if name in stored}
        found |= {name: float(run.facts[name]) for name in ("parameters", "tokens")}
        metrics[run.seed] = {f"{dataset}/{name}": value for name, value in found.items()}
        if "published" in stored:
            missing = {"caption_nats": "a published language model was trained elsewhere, with other words"}
    return Evaluation(metrics=metrics, not_computed=missing)


def evaluate_tower(runs: Sequence[Run], dataset: str) -> Evaluation:
    """What a linear probe tells from the patches of things: `color_percent`, `shape_percent`, `size_percent`.

    Also `parameters` and `patches`.

    Args:
        runs: finished runs of `CaptionTower`, one for each seed.
        dataset: first part of every metric's name.

    Raises:
        ValueError: there is no run.
    """
    some_run(runs)
    metrics, missing = {}, {}
    for run in runs:
        stored = run.predictions()
        found = {f"{name}_percent": PERCENT * float(stored[name].mean()) for name in ATTRIBUTES if name in stored}
        found |= {name: float(run.facts[name]) for name in ("parameters", "patches")}
        metrics[run.seed] = {f"{dataset}/{name}": value for name, value in found.items()}
        if "unlabelled" in stored:
            missing = {"color_percent": "the data set has no labels of things"}
    return Evaluation(metrics=metrics, not_computed=missing)
