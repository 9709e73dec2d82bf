"""Whether a language model learns in context on texts, from stored predictions. Imports no torch."""

from collections.abc import Mapping, Sequence

import numpy as np

from lightning_modules.runs import Evaluation, Figure, Run, Series
from lightning_modules.video_tokens.evaluation import some_run

PERCENT = 100
PUBLISHED = "a published language model was trained elsewhere, with other words"
Arrays = Mapping[str, np.ndarray]


def evaluate(runs: Sequence[Run], dataset: str) -> Evaluation:
    """The share of right answers in tasks on texts with held-out labels.

    Metrics: `text/<ways>_way_<shots>_shot_<kept>_kept/accuracy_percent`, of label-masked decoding, and
    `.../exact_percent`, of free decoding; `text/<ways>_way/accuracy_percent` and `.../exact_percent`, their means;
    `text/<ways>_way/chance_percent`; `parameters`.

    Args:
        runs: finished runs of `SpaeLanguage`, one for each seed.
        dataset: first part of every metric's name.

    Raises:
        ValueError: there is no run.
    """
    some_run(runs)
    metrics = {}
    for run in runs:
        found = text_scores(run.predictions()) | {"parameters": float(run.facts["parameters"])}
        metrics[run.seed] = {f"{dataset}/{name}": value for name, value in found.items()}
    missing = {} if any("/text/" in name for found in metrics.values() for name in found) else {"text": PUBLISHED}
    return Evaluation(metrics=metrics, figures=text_figures(metrics, dataset), not_computed=missing)


def text_scores(arrays: Arrays) -> dict[str, float]:
    """All metrics of tasks on texts, see `evaluate`; none where none were set."""
    found: dict[str, float] = {}
    means: dict[str, list[float]] = {}
    for key, name in (("masked", "accuracy_percent"), ("exact", "exact_percent")):
        for stored, right in sorted(arrays.items()):
            if stored.startswith("text/") and stored.endswith(f"/{key}"):
                task = stored.removesuffix(f"/{key}")
                found[f"{task}/{name}"] = PERCENT * float(right.mean())
                ways = task.split("_way_")[0].removeprefix("text/")
                means.setdefault(f"text/{ways}_way/{name}", []).append(found[f"{task}/{name}"])
                found[f"text/{ways}_way/chance_percent"] = PERCENT / int(ways)
    return found | {name: float(np.mean(values)) for name, values in means.items()}


def text_interval(arrays: Arrays, ways: int) -> tuple[float, float]:
    """The 95 % interval of the mean share of right answers of label-masked decoding, in percent, over episodes.

    Raises:
        ValueError: there were no tasks of so many ways.
    """
    right = [x for name, x in arrays.items() if name.startswith(f"text/{ways}_way_") and name.endswith("/masked")]
    if not right:
        raise ValueError(f"no tasks on texts of {ways} ways are stored: name {ways} in texts.ways.")
    every = np.concatenate(right).astype(float)
    mean, half = float(every.mean()), 1.96 * float(every.std()) / len(every) ** 0.5
    return PERCENT * (mean - half), PERCENT * (mean + half)


def text_figures(metrics: Mapping[int, Mapping[str, float]], dataset: str) -> list[Figure]:
    """Right answers by the number of words that inputs of a class have in common."""
    tasks = sorted(
        {
            name.split("/text/")[1]
            for found in metrics.values()
            for name in found
            if name.endswith("_kept/accuracy_percent")
        }
    )
    lines: dict[str, dict[int, float]] = {}
    for task in tasks:
        line, kept = task.removesuffix("_kept/accuracy_percent").rsplit("_shot_", 1)
        mean = float(np.mean([found[f"{dataset}/text/{task}"] for found in metrics.values()]))
        lines.setdefault(f"{line.replace('_', ' ')} shot", {})[int(kept)] = mean
    series = [
        Series(name, "line", [float(x) for x in sorted(line)], [line[x] for x in sorted(line)])
        for name, line in sorted(lines.items())
    ]
    if not series:
        return []
    return [
        Figure(
            "text", "Learning in context on texts",
            "Tasks with labels that were labels in no text of the training, and fresh words: right answers of "
            "label-masked decoding, by how many words of an input are those of its class.",
            "words in common", "right answers (%)", series,
        )
    ]  # fmt: skip
