"""What tokenizers and generators are worth, from stored predictions. Imports no torch.

Clips are compared with the truth where it is known: a tokenizer's with what it was given, a generator's with the clip
that a part was given of, over the pixels that were not given. Their distribution is compared with that of real clips by
`fvd_world`, beside the distance of other real clips.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lightning_modules.metrics.tokens import bits_per_pixel, perplexity
from lightning_modules.metrics.video import fvd_world
from lightning_modules.metrics.video_published import NOT_COMPUTED, fvd, inception_score
from lightning_modules.runs import Evaluation, Figure, Gallery, Run, Series
from lightning_modules.settings import Count
from lightning_modules.video_tokens.playing import playing

PERCENT = 100
PUBLISHED = ("i3d", "c3d", "lpips")
MEANS = ("mse", "psnr", "fvd")  # over tasks


def evaluate_tokenizer(runs: Sequence[Run], dataset: str, *, examples: Count = 4) -> Evaluation:
    """How well clips come back from their tokens.

    Metrics: `psnr`, `ssim`, `mse`, `codes_used_percent`, `perplexity`, `tokens_per_clip`,
    `bits_per_pixel` of tokens written with equally many bits each, `fvd_world`, what `published` gives, `parameters`.

    Args:
        runs: finished runs of `TokenizerTraining`, one for each seed.
        dataset: first part of every metric's name.
        examples: clips of the gallery.

    Raises:
        ValueError: there is no run.
    """
    some_run(runs)
    metrics = {}
    for run in runs:
        arrays = run.predictions()
        found = {name: float(arrays[name].mean()) for name in ("psnr", "ssim", "mse")}
        found["codes_used_percent"] = PERCENT * len(np.unique(arrays["tokens"])) / run.facts["vocabulary"]
        found["perplexity"] = perplexity(arrays["tokens"])
        found["tokens_per_clip"] = float(np.prod(run.facts["grid"]))
        found["bits_per_pixel"] = bits_per_pixel(
            int(found["tokens_per_clip"]), run.facts["vocabulary"], run.facts["pixels"]
        )
        if "features/real" in arrays:
            found |= distance(arrays["features/drawn"], arrays["features/real"])
        found |= published(arrays, {name: arrays.get(f"{name}/drawn", arrays.get(name)) for name in PUBLISHED})
        found["parameters"] = float(run.facts["parameters"])
        metrics[run.seed] = {f"{dataset}/{name}": value for name, value in found.items()}
    first = runs[0].predictions()
    rows = [
        [playing("real", first["shown/real"][row]), playing("from its tokens", first["shown/drawn"][row])]
        for row in range(min(examples, len(first["shown/real"])))
    ]
    gallery = Gallery("again", "Clips, and what comes back from their tokens", "Test clips of one seed.", rows)
    return Evaluation(metrics=metrics, galleries=[gallery], not_computed=not_computed(metrics))


def evaluate(runs: Sequence[Run], dataset: str, *, examples: Count = 3) -> Evaluation:
    """How near generated clips are to the truth, task by task.

    Metrics of a task, `<task>/...`: `psnr` and `mse` over the pixels that were not given; `copied_psnr`, that of the
    condition as it was filled up; `ceiling_psnr`, that of the clip through the tokenizer; `right_percent`, tokens that
    are the truth's, of tasks with a condition also `condition/right_percent` and `rest/right_percent`;
    `differ_percent`, tokens of the condition that are not those of the clip; `fvd_world`, and what `published` gives.
    Over all judged tasks `mean_mse`, `mean_psnr`, and `mean_fvd` where each of them has an FVD. `passes`: how often the
    network runs for a clip. `parameters`.

    Args:
        runs: finished runs of a generator, one for each seed.
        dataset: first part of every metric's name.
        examples: clips of each gallery.

    Raises:
        ValueError: there is no run.
    """
    some_run(runs)
    metrics = {}
    for run in runs:
        arrays, found = run.predictions(), {}
        tasks = [name.removesuffix("/right") for name in arrays if name.endswith("/right")]
        for task in tasks:
            found |= {f"{task}/{name}": value for name, value in _scores(arrays, task).items()}
        for name in MEANS:
            if all(f"{task}/{name}" in found for task in tasks):
                found[f"mean_{name}"] = float(np.mean([found[f"{task}/{name}"] for task in tasks]))
        found |= {name: float(run.facts[name]) for name in ("passes", "parameters")}
        metrics[run.seed] = {f"{dataset}/{name}": value for name, value in found.items()}
    first = runs[0].predictions()
    return Evaluation(
        metrics=metrics,
        figures=[_figure(metrics, dataset, sorted(tasks))],
        galleries=[_gallery(first, task, examples) for task in sorted(tasks)],
        not_computed=not_computed(metrics),
    )


def _scores(arrays: Mapping[str, np.ndarray], task: str) -> dict[str, float]:
    right = arrays[f"{task}/right"]
    found = {name: float(arrays[f"{task}/{name}"].mean()) for name in ("psnr", "mse")}
    found["ceiling_psnr"] = float(arrays[f"{task}/ceiling"].mean())
    found["right_percent"] = PERCENT * float(right.mean())
    if f"{task}/where" in arrays:
        where = arrays[f"{task}/where"]
        found["copied_psnr"] = float(arrays[f"{task}/copied"].mean())
        found["condition/right_percent"] = PERCENT * float(right[where].mean())
        found["differ_percent"] = PERCENT * float(arrays[f"{task}/differ"][where].mean())
        if not where.all():
            found["rest/right_percent"] = PERCENT * float(right[~where].mean())
    if f"{task}/features" in arrays:
        found |= distance(arrays[f"{task}/features"], arrays["features/real"])
    return found | published(arrays, {name: arrays.get(f"{task}/{name}") for name in PUBLISHED})


def published(arrays: Mapping[str, np.ndarray], made: Mapping[str, np.ndarray | None]) -> dict[str, float]:
    """`fvd` and `fvd_real`, `inception_score` and `lpips`, as far as the networks were there.

    Args:
        arrays: predictions, with what I3D sees in real clips.
        made: what I3D (`i3d`), C3D (`c3d`) and LPIPS (`lpips`) gave for the clips that are judged.
    """
    found = {}
    if made["i3d"] is not None:
        found |= fvd(made["i3d"], arrays["i3d/real"])
    if made["c3d"] is not None:
        found["inception_score"] = inception_score(made["c3d"])
    if made["lpips"] is not None:
        found["lpips"] = float(made["lpips"].mean())
    return found


def not_computed(metrics: Mapping[int, Mapping[str, float]]) -> dict[str, str]:
    """Which published numbers no seed has, and why."""
    there = {name.rpartition("/")[2] for found in metrics.values() for name in found}
    return {name: why for name, why in NOT_COMPUTED.items() if name not in there}


def distance(generated: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Nothing where there are too few clips for the distance to be one."""
    if min(len(generated), len(real) // 2) <= generated.shape[1]:
        return {}
    found = fvd_world(generated, real)
    return {name: found[name] for name in ("fvd_world", "fvd_world_real")}


def some_run(runs: Sequence[Run]) -> None:
    """Refuse to evaluate nothing.

    Raises:
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("there is no trained arm to evaluate: `make repro` trains it.")


def _figure(metrics: Mapping[int, Mapping[str, float]], dataset: str, tasks: Sequence[str]) -> Figure:
    def mean(name: str) -> list[float]:
        return [float(np.mean([m[f"{dataset}/{t}/{name}"] for m in metrics.values()])) for t in tasks]

    at = [float(n) for n in range(len(tasks))]
    return Figure(
        id="tasks",
        title=f"What was not given, against the truth ({dataset})",
        caption="PSNR over the pixels that were not given, and the most that the tokenizer allows; mean over seeds.",
        x_label="task",
        y_label="PSNR, dB",
        series=[
            Series("generated", "bars", at, mean("psnr"), labels=list(tasks)),
            Series("tokenizer", "bars", at, mean("ceiling_psnr"), labels=list(tasks)),
        ],
    )


def _gallery(arrays: Mapping[str, np.ndarray], task: str, examples: int) -> Gallery:
    rows = []
    for row in range(min(examples, len(arrays["shown/real"]))):
        shown = [(f"shown/{task}/given", "given"), (f"shown/{task}/made", "generated"), ("shown/real", "truth")]
        rows.append([playing(label, arrays[name][row]) for name, label in shown if name in arrays])
    return Gallery(
        id=f"task-{task}", title=f"Task {task}", caption="Test clips of one seed, as they go on from what is given.",
        rows=rows,
    )  # fmt: skip
