"""What the tokenizer is worth, from stored predictions: what its words say, and what they draw. Imports no torch.

A layer's words are judged by the captions of their picture (`in_caption_percent`), by CLIP (`fit_percent`) and by what
a simple probe can tell from them (`probe_percent`); a prefix of layers by the picture that it draws.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from lightning_modules.metrics.tokens import bits_per_pixel, perplexity
from lightning_modules.runs import Evaluation, Exhibit, Figure, Gallery, Picture, Run, Series
from lightning_modules.settings import Count
from lightning_modules.video_tokens.evaluation import some_run
from lightning_modules.video_tokens.playing import playing
from lightning_modules.vision_language.told import texts_of

PERCENT = 100
SHOWN_WORDS = 8  # of a layer, in the gallery
TURNS = 3  # in which a probe is given other pictures
NO_CAPTIONS = "the data have no captions"
NO_INCEPTION = (
    "{name} needs the weights of an Inception network: of pictures it is computed where model.published is set and "
    "torch-fidelity is installed, see CONTRIBUTING.md, Dependencies"
)
NO_LPIPS = "it needs the package lpips and its weights: where that is installed, set model.published.lpips to true"
NO_LABELS = "the data have no labels, or too few labelled pictures of each class for the probe"
INCEPTION = {"fid": "FID", "inception_score": "the Inception Score"}
Arrays = Mapping[str, np.ndarray]


def evaluate(
    runs: Sequence[Run], dataset: str, *, examples: Count = 4, probe: Sequence[str] = ("class",), shots: Count = 10
) -> Evaluation:
    """What words say of pictures, and how well pictures come back from them.

    Metrics of a layer, `layer_<l>/...` from 1: `in_caption_percent`, of its words; `fit_percent`, of the table that
    CLIP finds less similar to the picture (by chance 50); `similarity`, the cosine; `words_used`, `perplexity`. Of a
    prefix, `prefix_<l>/...`: `mse`, `psnr`, `ssim`, `lpips` where it was asked for, `fid` and `inception_score` where
    their network is installed, `tokens`, `bits_per_pixel`, `probe_percent`. Of all layers the same without a prefix,
    and `parameters`; `before_last/mse` of all but the last; `last/...` of the last layer's words and of the probe on
    all; `chance/in_caption_percent` and `chance/probe_percent`.

    Args:
        runs: finished runs of `Spae`, one for each seed.
        dataset: first part of every metric's name.
        examples: pictures of the gallery.
        probe: labels that together are the class which a probe tells from words.
        shots: labelled pictures of each class that the probe is given: others in up to three turns, whose shares of
            right answers are averaged.

    Raises:
        ValueError: there is no run, or a label is not stored.
    """
    some_run(runs)
    metrics = {}
    for run in runs:
        arrays = run.predictions()
        found = scores(arrays, run.facts) | probed(arrays, probe, shots)
        metrics[run.seed] = {f"{dataset}/{name}": value for name, value in found.items()}
    first, there = runs[0].predictions(), next(iter(metrics.values()))
    missing = {"in_caption_percent": NO_CAPTIONS} if "said" not in first else {}
    if f"{dataset}/last/probe_percent" not in there:
        missing["probe_percent"] = NO_LABELS
    if "lpips" not in first:
        missing["lpips"] = NO_LPIPS
    missing |= {name: NO_INCEPTION.format(name=what) for name, what in INCEPTION.items() if name not in first}
    return Evaluation(
        metrics=metrics,
        figures=figures(metrics, dataset, runs[0].facts["tokens"]),
        galleries=[gallery(first, min(examples, len(first["shown/real"])))],
        not_computed=missing,
    )


def scores(arrays: Arrays, facts: Mapping) -> dict[str, float]:
    """All metrics of a run but those of the probe."""
    layers, found = len(facts["tokens"]), {}
    for layer in range(1, layers + 1):
        words, tokens = arrays[f"words/{layer}"], sum(facts["tokens"][:layer])
        own = {
            "fit_percent": PERCENT * float(arrays["fit"][:, layer - 1].mean()),
            "similarity": float(arrays["similarity"][:, layer - 1].mean()),
            "words_used": float(len(np.unique(words))),
            "perplexity": perplexity(words),
        }
        if "said" in arrays:
            own["in_caption_percent"] = PERCENT * float(np.take_along_axis(arrays["said"], words, axis=1).mean())
        drawn = {name: float(arrays[name][:, layer - 1].mean()) for name in measured(arrays)}
        drawn["tokens"] = float(tokens)
        drawn["bits_per_pixel"] = bits_per_pixel(tokens, facts["vocabulary"], facts["pixels"])
        found |= {f"layer_{layer}/{name}": value for name, value in own.items()}
        found |= {f"prefix_{layer}/{name}": value for name, value in drawn.items()}
    found |= {f"last/{name}": value for name, value in own.items()} | drawn
    found["before_last/mse"] = found[f"prefix_{max(1, layers - 1)}/mse"]
    found["parameters"] = float(facts["parameters"])
    if "said" in arrays:
        found["chance/in_caption_percent"] = PERCENT * float(arrays["said"].mean())
    return found


def measured(arrays: Arrays) -> list[str]:
    """The measures of pictures that were stored."""
    return [name for name in ("mse", "psnr", "ssim", "lpips", *INCEPTION) if name in arrays]


def probed(arrays: Arrays, names: Sequence[str], shots: int) -> dict[str, float]:
    """What a probe tells from the words of each prefix, of classes with enough pictures; nothing of fewer than two.

    Raises:
        ValueError: a label is not stored.
    """
    there = [name.removeprefix("label/") for name in arrays if name.startswith("label/")]
    if not there:
        return {}
    if missing := [name for name in names if name not in there]:
        raise ValueError(f"evaluate.probe names {missing[0]!r}, but pictures are labelled with {', '.join(there)}.")
    classes = np.unique(np.stack([arrays[f"label/{name}"] for name in names]), axis=1, return_inverse=True)[1].ravel()
    rows = often(classes, shots)
    classes = classes[rows]
    if (number := len(np.unique(classes))) < 2:
        return {}
    found = {"chance/probe_percent": PERCENT / number}
    folds, layers = given_in_turn(classes, shots), sum(name.startswith("words/") for name in arrays)
    counts = np.zeros((len(classes), len(arrays["spelled"])))
    for layer in range(1, layers + 1):
        words = arrays[f"words/{layer}"][rows]
        np.add.at(counts, (np.arange(len(words))[:, None], words), 1 / words.shape[1])  # each layer counts alike
        right = [nearest_mean(counts, classes, given) for given in folds]
        found[f"prefix_{layer}/probe_percent"] = PERCENT * float(np.mean(right))
    return {**found, "last/probe_percent": found[f"prefix_{layers}/probe_percent"]}


def often(classes: Int[np.ndarray, " rows"], shots: int) -> Int[np.ndarray, " some"]:
    """The rows of classes that have more than `shots`."""
    _, inverse, counts = np.unique(classes, return_inverse=True, return_counts=True)
    return np.flatnonzero(counts[inverse] > shots)


def given_in_turn(classes: Int[np.ndarray, " rows"], shots: int) -> list[Bool[np.ndarray, " rows"]]:
    """Which rows a probe is given: the first `shots` of each class, then the next ones, while each class has them."""
    places = np.zeros(len(classes), int)
    for number in np.unique(classes):
        own = np.flatnonzero(classes == number)
        places[own] = np.arange(len(own))
    turns = int(np.unique(classes, return_counts=True)[1].min()) // shots
    return [places // shots == turn for turn in range(max(1, min(TURNS, turns)))]


def nearest_mean(
    features: Float[np.ndarray, "rows features"], classes: Int[np.ndarray, " rows"], given: Bool[np.ndarray, " rows"]
) -> float:
    """The share of rows that are not given whose class has the nearest mean of given rows; all classes count alike."""
    means = np.stack([features[given & (classes == number)].mean(0) for number in np.unique(classes)])
    rest = features[~given]
    distances = (means**2).sum(1) - 2 * rest @ means.T
    right = np.unique(classes)[distances.argmin(1)] == classes[~given]
    return float(np.mean([right[classes[~given] == number].mean() for number in np.unique(classes)]))


def spelled(arrays: Arrays) -> list[str]:
    """The words of the table."""
    return texts_of(arrays["spelled"])


def figures(metrics: Mapping[int, Mapping[str, float]], dataset: str, tokens: Sequence[int]) -> list[Figure]:
    """What words say, layer by layer, and what prefixes draw."""

    def line(label: str, name: str, at: list[float]) -> Series:
        values = [[found[f"{dataset}/{name.format(layer)}"] for found in metrics.values()] for layer in layers]
        return Series(label, "line", at, [float(np.mean(value)) for value in values])

    layers, there = range(1, len(tokens) + 1), next(iter(metrics.values()))
    judges = {"in_caption_percent": "stand in a caption", "fit_percent": "words of the table that fit less"}
    numbers = [float(layer) for layer in layers]
    said = [
        line(label, f"layer_{{}}/{name}", numbers)
        for name, label in judges.items()
        if f"{dataset}/layer_1/{name}" in there
    ]
    drawn = [line("first layers", "prefix_{}/psnr", [float(sum(tokens[:layer])) for layer in layers])]
    return [
        Figure(
            "layers", f"What the words of each layer say ({dataset})",
            "Share of words that stand in a caption, and of the table that fits the picture less; mean over seeds.",
            "layer, from the top", "percent", said,
        ),
        Figure(
            "prefixes", f"What the first layers draw ({dataset})", "PSNR against the picture; mean over seeds.",
            "tokens", "PSNR, dB", drawn, x_scale="log",
        ),
    ]  # fmt: skip


def gallery(arrays: Arrays, examples: int) -> Gallery:
    """Pictures, the words of each layer, and what each prefix draws."""
    words = spelled(arrays)
    layers = sum(name.startswith("words/") for name in arrays)
    rows = []
    for row in range(examples):
        exhibits = [shown("picture", arrays["shown/real"][row])]
        for layer in range(1, layers + 1):
            own = arrays[f"words/{layer}"][row][:SHOWN_WORDS]
            right = arrays["said"][row][own].astype(bool).tolist() if "said" in arrays else [None] * len(own)
            text = [(f"{words[index]} ", mark) for index, mark in zip(own, right, strict=True)]
            exhibits.append(Exhibit(f"layer {layer}", text=text))
            exhibits.append(
                shown(f"from {layer} layer{'s' if layer > 1 else ''}", arrays["shown/drawn"][row, layer - 1])
            )
        rows.append(exhibits)
    caption = f"Test pictures of one seed; of each layer up to {SHOWN_WORDS} words, in the order of its places."
    return Gallery("pyramid", "Pictures as words, layer by layer, and what they draw", caption, rows)


def shown(label: str, frames: np.ndarray) -> Exhibit:
    """A picture, or a clip that plays."""
    return playing(label, frames) if len(frames) > 1 else Exhibit(label, picture=Picture.of(frames[0], label))


def evaluate_clip(runs: Sequence[Run], dataset: str) -> Evaluation:
    """How well a CLIP of our own tells which words are said of a picture.

    Metrics: `best_percent`, pictures whose most similar word stands in a caption; `first_percent`, of as many most
    similar words as stand in a picture's captions the share that does; `parameters`, `words`.

    Args:
        runs: finished runs of `SpaeClip`, one for each seed.
        dataset: first part of every metric's name.

    Raises:
        ValueError: there is no run.
    """
    some_run(runs)
    metrics = {}
    for run in runs:
        found = {f"{name}_percent": PERCENT * float(values.mean()) for name, values in run.predictions().items()}
        found |= {name: float(run.facts[name]) for name in ("parameters", "words")}
        metrics[run.seed] = {f"{dataset}/{name}": value for name, value in found.items()}
    return Evaluation(metrics=metrics)
