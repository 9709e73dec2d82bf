"""What one encoder makes of pictures and of words, from stored predictions; and how arms compare once fine-tuned.

Imports no torch.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from lightning_modules.ensembling.pools import seed_series
from lightning_modules.files import ROOT
from lightning_modules.metrics import classification
from lightning_modules.metrics.glue import scores
from lightning_modules.runs import Evaluation, Exhibit, Figure, Gallery, Picture, Run, Series
from lightning_modules.settings import Count
from lightning_modules.tasks.comparison import arms_of, check_rows, over_arms

PERCENT = 100
NAMES = {"image": "images", "masked_word": "masked words", "pair": "pairs of sentences"}
NOT_LEARNT = "this arm has not learnt this task"
SIZES = ("parameters", "parameters_of_two_models", "encoder_parameters")
GRADIENTS = {"cosine": "cosine", "ratio": "norm of texts / norm of pictures"}
ENLARGED = 4  # times, so that small pictures and masks can be looked at
LARGEST = 512  # pixels a side of an enlarged picture
COLOURS = {"texts": (234, 139, 45), "pictures": (38, 96, 164)}  # of weights in a mask, by who has them
TUNED = "tuned.json"  # which fine-tuned network answers
Arrays = Mapping[str, np.ndarray]
Metrics = dict[str, float]


def evaluate(runs: Sequence[Run], dataset: str, *, examples: Count = 8) -> Evaluation:
    """Of each seed the shares of right answers, and of the first one what its mask and its answers look like.

    Fine-tuned arms are compared instead, see `evaluate_finetuned`.

    Metrics: `image_accuracy_percent` of classes, `masked_word_accuracy_percent` of hidden words,
    `pair_accuracy_percent` of whether a sentence follows, and `mean_accuracy_percent` of pictures and words;
    `parameters`, those of the encoders, and those of two models.

    Args:
        runs: finished runs of `VitBert`, one for each seed.
        dataset: first part of every metric's name.
        examples: rows of a gallery.

    Raises:
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("there is no run to evaluate: train the arm first.")
    if runs[0].name:
        return evaluate_finetuned(runs, dataset)
    metrics, first = {}, runs[0].predictions()
    for run in runs:
        found = judged(run.predictions()) | {name: float(run.facts[name]) for name in SIZES}
        metrics[run.seed] = {f"{dataset}/{name}": value for name, value in found.items()}
    known = judged(first)
    missing = {f"{name}_accuracy_percent": NOT_LEARNT for name in NAMES if f"{name}_accuracy_percent" not in known}
    return Evaluation(
        metrics=metrics,
        figures=[*_densities(runs[0], first), *_gradients(runs[0])],
        galleries=_galleries(first, examples, owners(runs[0])),
        not_computed=missing,
    )


def judged(arrays: Arrays) -> Metrics:
    """Shares of right answers in percent."""
    found = {
        f"{name}_accuracy_percent": PERCENT * float(arrays[f"right/{name}"].mean())
        for name in NAMES
        if f"right/{name}" in arrays
    }
    both = [found.get(f"{name}_accuracy_percent") for name in ("image", "masked_word")]
    if None not in both:
        found["mean_accuracy_percent"] = float(np.mean(both))
    return found


def _densities(run: Run, arrays: Arrays) -> list[Figure]:
    """The share that texts have of each matrix, after each pruning; nothing without a mask."""
    if "densities" not in arrays:
        return []
    first, other = owners(run)
    shares, steps = PERCENT * arrays["densities"], [float(step) for step in range(len(arrays["densities"]))]
    series = [Series(_named(name), "line", steps, shares[:, column].tolist())
              for column, name in enumerate(run.facts["masked"]) if arrays["densities"].shape[1] <= 16]  # fmt: skip
    series.append(Series("mean of all matrices", "dashed", steps, shares.mean(1).tolist()))
    told = (
        f"Share of each matrix of the encoder whose weights learn from {first}, after each pruning; the others learn "
        f"from {other}. First seed. A global ranking gives whole layers away, one within layers none."
    )
    return [Figure("densities", "Who has which layer", told, "prunings", f"weights of {first}, %", series)]


def _named(matrix: str) -> str:
    """A matrix of the encoder in words: `blocks.0.attn.qkv.weight` is `1: attn qkv`."""
    parts = matrix.split(".")
    return f"{int(parts[1]) + 1}: {' '.join(parts[2:-1])}" if parts[0] == "blocks" else " ".join(parts[:-1])


def _gradients(run: Run) -> list[Figure]:
    """How gradients of both modalities compare on the shared weights; nothing where only one was learnt at a time."""
    found = []
    for name, words in GRADIENTS.items():
        if f"pretrain/gradients/{name}" not in run.logged():
            continue
        steps, values = run.history(f"pretrain/gradients/{name}")
        told = "Of the gradients of the text loss and of the image loss, on all shared weights, unmasked. First seed."
        line = Series(words, "line", steps.tolist(), values.tolist())
        found.append(Figure(f"gradients-{name}", f"Do the gradients agree: {words}", told, "step", words, [line]))
    return found


def owners(run: Run) -> tuple[str, str]:
    """The modality that has the weights of the mask, and the one that has the others, in words."""
    return ("pictures", "texts") if run.facts.get("first") == "image" else ("texts", "pictures")


def _galleries(arrays: Arrays, examples: int, owned: tuple[str, str]) -> list[Gallery]:
    """Masked words filled in, classes of pictures, and corners of masks."""
    found = []
    if "shown/words" in arrays:
        parts = zip(*(arrays[f"shown/{name}"][:examples] for name in ("token_ids", "targets", "words")), strict=True)
        rows = [[Exhibit("with hidden words filled in", text=_filled(*part))] for part in parts]
        told = "Test sentences of one seed; hidden words are marked right or wrong, with what was there."
        found.append(Gallery("words", "Masked words", told, rows))
    if "shown/images" in arrays:
        rows = [_classified(arrays, row) for row in range(min(examples, len(arrays["shown/images"])))]
        found.append(Gallery("classes", "Classes of pictures", "Test pictures of one seed.", rows))
    corners = {name.removeprefix("corner/"): x for name, x in arrays.items() if name.startswith("corner/")}
    if corners:
        rows = [
            [Exhibit(_named(name), picture=_corner(name, x, owned))]
            for name, x in list(corners.items())[: 2 * examples]
        ]
        told = "A corner of each matrix: orange weights learn from texts, blue ones from pictures. One seed."
        found.append(Gallery("masks", "Masks", told, rows))
    return found


def _filled(token_ids: np.ndarray, targets: np.ndarray, words: np.ndarray) -> list[tuple[str, bool | None]]:
    """A sentence in pieces; what was asked for is the network's word, and the right one where it differs."""
    from lightning_modules.datasets.tokenizers import world_tokenizer

    tokenizer, pieces = world_tokenizer(), []
    special = (tokenizer.pad_id, tokenizer.start_id)
    for shown, target, word in zip(token_ids.tolist(), targets.tolist(), words.tolist(), strict=True):
        if target >= 0:
            said, there = (tokenizer.backend.id_to_token(number) for number in (word, target))
            pieces.append((f"{said} " if word == target else f"{said} ({there}) ", word == target))
        elif shown not in special:
            pieces.append(("| " if shown == tokenizer.end_id else f"{tokenizer.backend.id_to_token(shown)} ", None))
    return pieces


def _classified(arrays: Arrays, row: int) -> list[Exhibit]:
    pixels = arrays["shown/images"][row].transpose(1, 2, 0)
    label, told = int(arrays["shown/labels"][row]), int(arrays["shown/told"][row])
    return [
        Exhibit("picture", picture=Picture.of(_enlarged(pixels), f"picture of class {label}")),
        Exhibit("its class", text=[(str(label), None)]),
        Exhibit("what is said", text=[(str(told), told == label)]),
    ]


def _corner(name: str, mask: np.ndarray, owned: tuple[str, str]) -> Picture:
    there, other = (np.array(COLOURS[modality], np.uint8) for modality in owned)
    share = f"mask of {_named(name)}: {PERCENT * mask.mean():.0f} % of {owned[0]}"
    return Picture.of(_enlarged(np.where(mask[:, :, None], there, other)), share)


def _enlarged(pixels: np.ndarray) -> np.ndarray:
    times = max(1, min(ENLARGED, LARGEST // max(pixels.shape[:2])))
    return np.ascontiguousarray(pixels.repeat(times, 0).repeat(times, 1))


def evaluate_finetuned(runs: Sequence[Run], dataset: str) -> Evaluation:
    """What each pre-training is worth once it is fine-tuned: `<dataset>/<protocol>/<metric>@<arm>`.

    Metrics are `top1_percent` of classes; of a task of GLUE those that GLUE reports, in percent. What answers is the
    network of the first arm, by its name, and the first seed.

    Args:
        runs: named `<arm>/<protocol>`, the same seeds of each.
        dataset: first part of every metric's name.

    Raises:
        ValueError: two runs of one seed were judged on different rows.
    """
    metrics: dict[int, Metrics] = defaultdict(dict)
    predictions, protocols = [run.predictions() for run in runs], {run.name.partition("/")[2] for run in runs}
    for protocol in protocols:
        chosen = [(run, each) for run, each in zip(runs, predictions, strict=True) if run.name.endswith(f"/{protocol}")]
        check_rows([run for run, _ in chosen], [each["labels"] for _, each in chosen])
    for run, each in zip(runs, predictions, strict=True):
        arm, _, protocol = run.name.partition("/")
        found = _scored(run.facts.get("task"), each["logits"], each["labels"])
        metrics[run.seed] |= {f"{dataset}/{protocol}/{name}@{arm}": value for name, value in found.items()}
    arms = arms_of(runs)
    series = []
    for name in sorted({key.partition("@")[0] for found in metrics.values() for key in found}):
        values = over_arms(metrics, name, arms)
        series.append(seed_series(name.removeprefix(f"{dataset}/"), "bars", range(len(arms)), values, arms))
    told = "Test rows after all weights were fine-tuned on few labels, with a new head."
    figure = Figure("finetuned", f"What each pre-training is worth ({dataset})", told, "arm", "percent", series)
    first = next(run.folder for run in runs if run.name.partition("/")[0] == min(arms))
    place = first.relative_to(ROOT) if first.is_relative_to(ROOT) else first
    return Evaluation(
        metrics=dict(metrics),
        figures=[figure],
        files={TUNED: json.dumps({"dataset": dataset, "run": place.as_posix()}, indent=1).encode()},
        predictor="lightning_modules.vit_bert.predictor.load_tuned",
    )


def _scored(task: str | None, logits: np.ndarray, labels: np.ndarray) -> Metrics:
    if task is not None:
        return scores(task, logits, labels)
    return {"top1_percent": PERCENT * classification.accuracy(logits, labels)}
