"""What a frozen language model makes of pictures' words in context, from stored predictions. Imports no torch."""

import re
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from lightning_modules.runs import Evaluation, Exhibit, Figure, Gallery, Picture, Run, Series
from lightning_modules.settings import Count, Share
from lightning_modules.spae.language_evaluation import text_figures, text_interval, text_scores
from lightning_modules.video_tokens.evaluation import some_run
from lightning_modules.vision_language.told import texts_of

PERCENT = 100
KINDS = {
    "masked": "mean_percent", "overlap": "overlap_percent", "exact": "exact_mean_percent", "right": "right_mean_percent"
}  # fmt: skip
REPEATS = re.compile(r"_\d+_repeats_induced$")
WRITTEN = ("denoised", "copied", "voted")
NOT_LEARNT = (
    "the language model does not learn in context on texts: {low:.1f} to {high:.1f} % right of two classes, and the "
    "lower end must be above {needed:.0f} %"
)
TOO_LONG = "its prompts are longer than the language model's positions; means over settings are those of the others"
Arrays = Mapping[str, np.ndarray]


def evaluate(runs: Sequence[Run], dataset: str, *, layers: Count = 2, needed: Share | None = 0.6) -> Evaluation:
    """Right answers of few-shot classification, and right words of pictures that were written.

    Metrics, of the first `layers` layers of words: `<ways>_way_<shots>_shot_<repeats>_repeats[_induced]/` with
    `masked_percent` (label-masked decoding), `right_percent` (the chance of the right label in it), `exact_percent`
    (free decoding, exact match) and `overlap_percent` (the class with most words in common); `<ways>_way/` with
    `mean_percent`, `right_mean_percent`, `exact_mean_percent` and `overlap_percent`, their means over the settings;
    for each number of layers `<ways>_way/<l>_layers/mean_percent`. `<ways>_way_<shots>_shot_best_repeats_induced/` with
    `exact_percent`, the best of several numbers of repeats: so one-shot figures with induction are told.
    `<ways>_way_<shots>_shot/left_out`, where there are any: questions that were not asked since two of their classes
    have one name.
    `denoised/token_percent`, `copied/token_percent` and `voted/token_percent`, means over tasks, and the same of each
    task, `<task>/...`. `named/right_percent`. Those of tasks on texts: see `language_evaluation.evaluate`.

    Args:
        runs: finished runs of `SpaeInContext`, one for each seed.
        dataset: first part of every metric's name.
        layers: of words that the named metrics read.
        needed: share of right answers that a model must surpass in tasks on texts of two classes, with the lower end of
            the interval over episodes, in the first seed; where it does not, nothing is said about pictures. Null for a
            published model, which has no tasks on texts.

    Raises:
        ValueError: there is no run, `needed` is set without tasks on texts, or no words of so many layers were read.
    """
    some_run(runs)
    first = runs[0].predictions()
    learnt, why = learns(first, needed)
    metrics, missing = {}, {} if learnt else {"pictures": why}
    for run in runs:
        arrays = run.predictions()
        found = text_scores(arrays)
        if learnt:
            found |= classified(arrays, layers) | written(arrays)
        metrics[run.seed] = {f"{dataset}/{name}": value for name, value in found.items()}
    if learnt:
        missing |= {name: TOO_LONG for name in runs[0].facts["settings"] if f"few_shot/{name}/masked" not in first}
    figures = text_figures(metrics, dataset)
    galleries = []
    if learnt:
        figures, galleries = [*by_layers(metrics, dataset), *figures], gallery(first)
    return Evaluation(metrics=metrics, figures=figures, galleries=galleries, not_computed=missing)


def learns(arrays: Arrays, needed: float | None) -> tuple[bool, str]:
    """Whether the model learns in context on texts, and otherwise why nothing is said about pictures."""
    if needed is None:
        return True, ""
    low, high = text_interval(arrays, 2)
    if low > PERCENT * needed:
        return True, ""
    return False, NOT_LEARNT.format(low=low, high=high, needed=PERCENT * needed)


def classified(arrays: Arrays, layers: int) -> dict[str, float]:
    """The metrics of few-shot classification.

    Raises:
        ValueError: no words of so many layers were read.
    """
    read = sorted({int(name.split("/")[1].split("_")[0]) for name in arrays if name.startswith("few_shot/")})
    if read and layers not in read:
        raise ValueError(
            f"layers is {layers}, but words of {read} layers were read: name one of them in evaluate.layers."
        )
    found: dict[str, float] = {}
    means: dict[str, list[float]] = {}
    repeated: dict[str, list[float]] = {}
    for name, right in sorted(arrays.items()):
        if not name.startswith("few_shot/"):
            continue
        _, depth, setting, kind = name.split("/")
        share, ways = PERCENT * float(right.mean()), setting.split("_way_")[0]
        if kind == "masked":
            means.setdefault(f"{ways}_way/{depth}/mean_percent", []).append(share)
        if int(depth.split("_")[0]) == layers:
            found[f"{setting}/{kind}_percent"] = share
            means.setdefault(f"{ways}_way/{KINDS[kind]}", []).append(share)
            if kind == "exact" and (fixed := REPEATS.sub("_best_repeats_induced", setting)) != setting:
                repeated.setdefault(f"{fixed}/{kind}_percent", []).append(share)
            found[f"{ways}_way/chance_percent"] = PERCENT / int(ways)
    left_out = {f"{name.split('/')[1]}/left_out": float(x[0]) for name, x in arrays.items() if name[:9] == "left_out/"}
    found |= {name: max(shares) for name, shares in repeated.items() if len(shares) > 1}
    return found | left_out | {name: float(np.mean(values)) for name, values in means.items()}


def written(arrays: Arrays) -> dict[str, float]:
    """The metrics of pictures that were written."""
    tasks = sorted({name.split("/")[1] for name in arrays if name.startswith("generation/")})
    found = {
        f"{task}/{kind}/token_percent": PERCENT * float(arrays[f"generation/{task}/{kind}"].mean())
        for task, kind in product(tasks, WRITTEN)
    }
    for kind in WRITTEN if tasks else ():
        found[f"{kind}/token_percent"] = float(np.mean([found[f"{task}/{kind}/token_percent"] for task in tasks]))
    if "named/right" in arrays:
        found["named/right_percent"] = PERCENT * float(arrays["named/right"].mean())
    return found


def by_layers(metrics: Mapping[int, Mapping[str, float]], dataset: str) -> list[Figure]:
    """Right answers by the number of layers whose words are read."""
    lines: dict[str, dict[int, list[float]]] = {}
    for found in metrics.values():
        for name, value in found.items():
            parts = name.removeprefix(f"{dataset}/").split("/")
            if len(parts) == 3 and parts[1].endswith("_layers"):
                ways, depth = parts[0].replace("_", " "), int(parts[1].split("_")[0])
                lines.setdefault(ways, {}).setdefault(depth, []).append(value)
    series = [
        Series(ways, "line", [float(depth) for depth in sorted(line)], [float(np.mean(line[x])) for x in sorted(line)])
        for ways, line in sorted(lines.items())
    ]
    if not series:
        return []
    return [
        Figure(
            "few_shot", "Few-shot classification by layers of words",
            "Mean over all settings of shots and repeats, label-masked decoding by the frozen language model.",
            "layers of words", "right answers (%)", series,
        )
    ]  # fmt: skip


def gallery(arrays: Arrays) -> list[Gallery]:
    """Pictures that the language model wrote."""
    return [*corrected(arrays), *from_names(arrays)]


def from_names(arrays: Arrays) -> list[Gallery]:
    """Pictures that it wrote for names, each with its name."""
    if "named/drawn" not in arrays:
        return []
    names = texts_of(arrays["named/wanted"])
    rows = [
        [Exhibit(name, Picture.of(picture, f"written for {name}"))]
        for name, picture in zip(names, arrays["named/drawn"], strict=True)
    ]
    caption = "The context shows names and pictures in words; the model wrote the words of a picture for each name."
    return [Gallery("names", "Pictures that a frozen language model wrote for names", caption, rows)]


def corrected(arrays: Arrays) -> list[Gallery]:
    """Progressive in-context denoising: condition, what it wrote, and the target as its words draw it."""
    rows = []
    for task in sorted({name.split("/")[1] for name in arrays if name.startswith("shown/")}):
        kinds = {"condition": task, "denoised": "written by the model", "target": "target, drawn from its words"}
        for number in range(len(arrays[f"shown/{task}/target"])):
            rows.append(
                [
                    Exhibit(label, Picture.of(arrays[f"shown/{task}/{kind}"][number], f"{task}: {label}"))
                    for kind, label in kinds.items()
                ]
            )
    if not rows:
        return []
    caption = (
        "Progressive in-context denoising: the context shows condition and target with fewer and fewer exchanged words."
    )
    return [Gallery("written", "Pictures that a frozen language model wrote", caption, rows)]
