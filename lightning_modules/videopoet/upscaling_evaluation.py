"""What VideoPoet's super-resolution is worth, from stored predictions. Imports no torch."""

from collections.abc import Mapping, Sequence

import numpy as np

from lightning_modules.runs import Evaluation, Figure, Gallery, Run, Series
from lightning_modules.settings import Count
from lightning_modules.video_tokens.evaluation import some_run
from lightning_modules.video_tokens.playing import playing

PERCENT = 100
WAYS = {"true": "true", "corrupted": "corrupted", "redrawn": "drawn of corrupted"}
MADE = (*WAYS, "ceiling", "stretched")
NOT_MEASURED = {
    "fvd": "no table of the super-resolution's numbers is known to compare it with",
}
EXHIBITS = {
    "small": "small clip",
    "stretched": "stretched",
    "true": "super-resolution",
    "corrupted": "with mistakes in the small clip",
    "real": "truth",
}


def evaluate(runs: Sequence[Run], dataset: str, *, examples: Count = 4) -> Evaluation:
    """How well large clips are predicted and drawn from small ones.

    Metrics of a way, `<way>/...`, see `Upscaler.predictions`: `nll`, nats of a hidden token, and `right_percent`,
    hidden tokens that are the truth's; `mse`, `psnr` and `ssim` of drawn clips; these three also of `ceiling` and
    `stretched`.
    `scores` and `full_scores`, products of queries and keys in a block with and without windows; `parameters`;
    `head_parameters`.

    Args:
        runs: finished runs of `Upscaler`, one for each seed.
        dataset: first part of every metric's name.
        examples: clips of the gallery.

    Raises:
        ValueError: there is no run.
    """
    some_run(runs)
    metrics = {}
    for run in runs:
        found = measured(run.predictions())
        found |= {name: float(run.facts[name]) for name in ("scores", "full_scores", "parameters", "head_parameters")}
        metrics[run.seed] = {f"{dataset}/{name}": value for name, value in found.items()}
    return Evaluation(
        metrics=metrics,
        figures=[mistakes(metrics, dataset)],
        galleries=[gallery(runs[0].predictions(), examples)],
        not_computed=NOT_MEASURED,
    )


def measured(arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The metrics of `evaluate` that are means over clips."""
    found = {}
    for way in WAYS:
        found[f"{way}/nll"] = float(arrays[f"{way}/nll"].mean())
        found[f"{way}/right_percent"] = PERCENT * float(arrays[f"{way}/right"].mean())
    for way in MADE:
        found |= {f"{way}/{name}": float(arrays[f"{way}/{name}"].mean()) for name in ("mse", "psnr", "ssim")}
    return found


def mistakes(metrics: Mapping[int, Mapping[str, float]], dataset: str) -> Figure:
    """What mistakes in the small clip cost."""
    values = [float(np.mean([found[f"{dataset}/{way}/nll"] for found in metrics.values()])) for way in WAYS]
    at = [float(place) for place in range(len(WAYS))]
    return Figure(
        id="mistakes",
        title=f"Mistakes in the small clip ({dataset})",
        caption="How well hidden tokens of the large clip are predicted from the small clip's tokens: true ones, with "
        "some replaced by random ones, and the tokens of what is drawn of these; mean over seeds.",
        x_label="tokens of the small clip",
        y_label="nats of a hidden token",
        series=[Series("super-resolution", "bars", at, values, labels=list(WAYS.values()))],
    )


def gallery(arrays: Mapping[str, np.ndarray], examples: int) -> Gallery:
    """Clips of one seed as they are drawn large."""
    rows = [
        [playing(label, arrays[f"shown/{name}"][row]) for name, label in EXHIBITS.items()]
        for row in range(min(examples, len(arrays["shown/real"])))
    ]
    return Gallery(
        "enlarged", "Small clips, drawn large", "Test clips of one seed; the small clip is through its tokens.", rows
    )
