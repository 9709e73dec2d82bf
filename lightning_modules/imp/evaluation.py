"""How well one network does all its tasks, from stored predictions. Imports no torch but in the linear probes.

Read `scored` first: each task has one score in percent, and `mean_score_percent` is the mean of all.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lightning_modules.metrics.retrieval import retrieval
from lightning_modules.metrics.specialisation import mutual_information
from lightning_modules.runs import LARGEST_PICTURE, Evaluation, Exhibit, Figure, Gallery, Picture, Run, Series
from lightning_modules.settings import Count, Positive

PERCENT = 100
DIRECTIONS = ("text_to_video", "video_to_text")  # as `retrieval` names what are a query and an item here
SCORES = {
    "images": "image_accuracy_percent",
    "texts": "masked_word_accuracy_percent",
}  # others: <task>_accuracy_percent
NOT_TRAINED = "this arm has no task that compares texts with it"
ENLARGED = 4  # times, so that small pictures can be looked at
Arrays = Mapping[str, np.ndarray]
Metrics = dict[str, float]


def evaluate(
    runs: Sequence[Run], dataset: str, *, examples: Count = 8, candidates: Count = 64, strength: Positive = 1e-3
) -> Evaluation:
    """Scores of all tasks, zero-shot classes, linear probes, and how experts are used.

    Metrics: of a classification `<task>_accuracy_percent`, `<task>_zero_shot_percent` (class with the most similar
    texts) and `<task>_probe_percent` (ridge regression on frozen features); of a contrast `<task>_recall_at_1_percent`,
    the mean over pairs of modalities and directions, each row among `candidates`; `image_accuracy_percent` and
    `masked_word_accuracy_percent` of the tasks `images` and `texts`; `mean_score_percent` over tasks. Of experts
    `expert_information_bits` and `expert_first_choice_bits`, about the modality, of the router's probabilities and of
    its first choices, in the layer that tells most. `parameters`, `active_parameters` and `encoder_parameters`.

    Args:
        runs: finished runs of `Imp`, one for each seed.
        dataset: first part of every metric's name.
        examples: rows of the gallery.
        candidates: rows among which each finds its own.
        strength: of the probes' penalty.

    Raises:
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("there is no run to evaluate: train the arm first.")
    metrics, missing = {}, {}
    for run in runs:
        arrays, modalities = run.predictions(), run.facts["modalities"]
        found = scored(arrays, modalities, candidates) | zero_shot(arrays) | probed(arrays, strength)
        found |= specialised(arrays)
        for name in ("parameters", "active_parameters", "encoder_parameters"):
            found[name] = float(run.facts[name])
        metrics[run.seed] = {f"{dataset}/{name}": value for name, value in found.items()}
        missing |= {
            f"{task}_zero_shot_percent": NOT_TRAINED
            for task in tasks_with(arrays, "logits")
            if f"{task}/prompts" not in arrays
        }
    first = runs[0].predictions()
    figures = [figure for run in runs[:1] for figure in _figures(run.predictions(), metrics[run.seed], dataset)]
    return Evaluation(
        metrics=metrics, figures=figures, galleries=_galleries(first, examples, candidates), not_computed=missing
    )


def tasks_with(arrays: Arrays, key: str) -> list[str]:
    """The tasks that have an array of this name."""
    return sorted(name.rpartition("/")[0] for name in arrays if name.rpartition("/")[2] == key)


def scored(arrays: Arrays, modalities: Mapping[str, Sequence[str]], candidates: int) -> Metrics:
    """One score of each task in percent, and their mean.

    Args:
        arrays: see `Imp.predictions`.
        modalities: of each task.
        candidates: see `evaluate`.
    """
    found = {}
    for task in tasks_with(arrays, "logits"):
        right = arrays[f"{task}/logits"].argmax(1) == arrays[f"{task}/labels"]
        found[SCORES.get(task, f"{task}_accuracy_percent")] = PERCENT * float(right.mean())
    for task in tasks_with(arrays, "words"):
        right, asked = arrays[f"{task}/words"].sum(0)
        found[SCORES.get(task, f"{task}_accuracy_percent")] = PERCENT * float(right / max(1, asked))
    scores = list(found.values())
    for task, used in modalities.items():
        if f"{task}/{used[0]}_to_{used[-1]}" in arrays:
            recalls = recall(arrays, task, used, candidates)
            found |= {f"{task}/{name}": value for name, value in recalls.items()}
            found[f"{task}_recall_at_1_percent"] = float(np.mean(list(recalls.values())))
            scores.append(found[f"{task}_recall_at_1_percent"])
    return found | {"mean_score_percent": float(np.mean(scores))}


def recall(arrays: Arrays, task: str, modalities: Sequence[str], candidates: int) -> Metrics:
    """`<query>_to_<item>/recall_at_1_percent` of all ordered pairs; rows are compared in parts of `candidates`."""
    found = {}
    for number, first in enumerate(modalities):
        for second in modalities[number + 1 :]:
            queries, items = arrays[f"{task}/{first}_to_{second}"], arrays[f"{task}/{second}_to_{first}"]
            whole = max(1, len(queries) // candidates) * candidates
            parts = [slice(start, start + candidates) for start in range(0, min(whole, len(queries)), candidates)]
            each = [retrieval(queries[part] @ items[part].T) for part in parts]
            for way, name in zip(DIRECTIONS, (f"{first}_to_{second}", f"{second}_to_{first}"), strict=True):
                values = [recalls[f"{way}/recall_at_1_percent"] for recalls in each]
                found[f"{name}/recall_at_1_percent"] = float(np.mean(values))
    return found


def zero_shot(arrays: Arrays) -> Metrics:
    """How often the class whose texts are most similar is the right one."""
    return {
        f"{task}_zero_shot_percent": PERCENT
        * float(
            ((arrays[f"{task}/prompted"] @ arrays[f"{task}/prompts"].T).argmax(1) == arrays[f"{task}/labels"]).mean()
        )
        for task in tasks_with(arrays, "prompts")
    }


def probed(arrays: Arrays, strength: float) -> Metrics:
    """How often a linear probe of frozen features is right, learnt from rows that the network was trained on."""
    import torch

    from lightning_modules.metrics.probing import ridge_probe

    found = {}
    for task in tasks_with(arrays, "probe_features"):
        names = ("probe_features", "probe_labels", "features")
        features, labels, asked = (torch.from_numpy(arrays[f"{task}/{name}"]) for name in names)
        told = ridge_probe(features, labels, asked, strength=strength).numpy()
        found[f"{task}_probe_percent"] = PERCENT * float((told == arrays[f"{task}/labels"]).mean())
    return found


def specialised(arrays: Arrays) -> Metrics:
    """What experts tell of the modality, in the layer that tells most; nothing without experts or with one modality."""
    found = {}
    for key, name in (("probability", "expert_information_bits"), ("first", "expert_first_choice_bits")):
        load = loads(arrays, key)
        if len(load) > 1:
            layers = np.stack(list(load.values()), axis=1)
            found[name] = max(mutual_information(layer) for layer in layers)
    return found


def loads(arrays: Arrays, key: str) -> dict[str, np.ndarray]:
    """Of each modality, how it is spread over the experts of each layer, (layers experts)."""
    return {
        name.split("/")[1]: x
        for name, x in sorted(arrays.items())
        if name.startswith("experts/") and name.endswith(key)
    }


def _figures(arrays: Arrays, metrics: Metrics, dataset: str) -> list[Figure]:
    """Scores of the first seed, and the load of the experts in the last layer."""
    scores = {
        name.removeprefix(f"{dataset}/").removesuffix("_percent").replace("_", " "): value
        for name, value in metrics.items()
        if name.endswith(("_accuracy_percent", "_recall_at_1_percent", "_zero_shot_percent", "_probe_percent"))
        and name.count("/") == 1
    }
    bars = Series(
        "score", "bars", [float(place) for place in range(len(scores))], list(scores.values()), labels=list(scores)
    )
    told = "Of the first seed, on test rows."
    found = [Figure("scores", "What one network does", told, "task", "percent", [bars])]
    if load := loads(arrays, "probability"):
        series = [
            Series(
                modality,
                "bars",
                [float(place) for place in range(layers.shape[1])],
                (PERCENT * layers[-1]).tolist(),
                labels=[f"expert {number + 1}" for number in range(layers.shape[1])],
            )
            for modality, layers in load.items()
        ]
        told = (
            "Mean probability that the router of the last layer gives each expert, for tokens of each modality; the "
            "first seed, on test rows. No loss asks for an even load, nor for a division of labour."
        )
        found.append(Figure("experts", "Who works on what", told, "expert", "percent", series))
    return found


def _galleries(arrays: Arrays, examples: int, candidates: int) -> list[Gallery]:
    """For the first rows of each contrast with texts and vision the text that is nearest."""
    found = []
    for task in sorted({name.split("/")[1] for name in arrays if name.startswith("shown/")}):
        pixels = arrays.get(f"shown/{task}/images", arrays.get(f"shown/{task}/video"))
        texts, vectors = arrays.get(f"shown/{task}/texts"), arrays.get(f"{task}/vision_to_text")
        if pixels is None or texts is None or vectors is None or arrays[f"{task}/text_to_vision"].shape[0] < 2:
            continue
        count = min(examples, len(pixels), len(texts))
        said = [bytes(row).rstrip(b"\0").decode(errors="replace") for row in texts]
        nearest = (vectors[:count] @ arrays[f"{task}/text_to_vision"][: len(texts)].T).argmax(1)
        rows = [
            [
                Exhibit("picture", picture=Picture.of(_pixels(pixels[row]), f"picture: {said[row]}")),
                Exhibit("its text", text=[(said[row], None)]),
                Exhibit("nearest of the texts shown", text=[(said[near], said[near] == said[row])]),
            ]
            for row, near in enumerate(nearest.tolist())
        ]
        told = "Test rows of one seed; the nearest among the texts of these rows."
        found.append(Gallery(f"nearest-{task}", f"Nearest texts: {task}", told, rows))
    return found


def _pixels(shown: np.ndarray) -> np.ndarray:
    """A picture, or the first, the middle and the last frame of a clip side by side, enlarged."""
    if shown.ndim == 4:
        frames = (0, shown.shape[1] // 2, shown.shape[1] - 1)
        shown = np.concatenate([shown[:, frame] for frame in frames], axis=2)
    pixels, longest = shown.transpose(1, 2, 0), max(shown.shape[1:])
    every, times = -(-longest // LARGEST_PICTURE), max(1, min(ENLARGED, LARGEST_PICTURE // longest))
    return np.ascontiguousarray(pixels[::every, ::every].repeat(times, 0).repeat(times, 1))
