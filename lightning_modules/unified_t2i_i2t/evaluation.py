"""How well one network describes images and draws them, from stored predictions. Imports no torch.

Captions are compared with the references (CIDEr-D, BLEU-4, ROUGE-L), and are parsed and compared with the scene.
Pictures are classified by a judge, a network that had no part in the training or the reward, and its answers are
compared with the caption. The judge's score on pictures decoded from the right codes is the upper limit.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field

from lightning_modules.datasets.tokenizers import TextTokenizer, tokenizer_called
from lightning_modules.datasets.world.parsing import mark, parse
from lightning_modules.ensembling.pools import over_seeds, seed_series
from lightning_modules.metrics.captioning import CaptionScores, score_captions, without_repeated_words
from lightning_modules.metrics.flow_report import BORROWED, flow_figures, flow_metrics
from lightning_modules.metrics.generation import clip_score, fd_world, is_world, r_precision, scene_agreement
from lightning_modules.runs import Evaluation, Exhibit, Figure, Gallery, Picture, Run
from lightning_modules.settings import Count

Metrics = dict[str, float]
PERCENT = 100
CROSSED = "Words and places read each other in modules of their own; a row counts by the length of what each adds."
CAPTION_SCORES = ("cider_d", "bleu_4", "rouge_l", "meteor", "spice")
NO_FID = "torch-fidelity was not installed where the pictures were drawn, see CONTRIBUTING.md, Dependencies"
NO_CLIP = "published CLIP was not the scorer where the pictures were drawn, or its data named no captions to draw"
NOT_PUBLISHED = {
    "fid": NO_FID,
    "inception_score": NO_FID,
    "clip_score": NO_CLIP,
    "r_precision_percent": f"{NO_CLIP}, or fewer than 100",
    "r_precision_hard_percent": f"{NO_CLIP}, or no false ones (drawing.hard)",
}


def evaluate(
    runs: Sequence[Run],
    dataset: str,
    *,
    tokenizer: str,
    attributes: Mapping[str, Count] = MappingProxyType({}),
    examples: Count,
    tasks: Annotated[list[Literal["i2t", "t2i"]], Field(min_length=1)],
    java: bool = False,
    remove_repeated_words: bool = False,
) -> Evaluation:
    """What the arm was trained for, per seed, and `flow/...` between captions and pictures, see `metrics.flow_report`.

    Args:
        runs: the seeds of one arm, with the predictions of `UnifiedGenerator.predictions`.
        dataset: first part of every metric's name.
        tokenizer: of the captions: `world`, or the name of a published one.
        attributes: that the judge reads, in its order, and how many values each has; empty without a judge, where
            captions are held against references only, and pictures are measured as published (FID, Inception Score,
            CLIP score, R-precision).
        examples: rows of each gallery.
        tasks: that the arm was trained for, captioning (`i2t`) and drawing (`t2i`); another one is not measured.
        java: whether METEOR and SPICE are wanted, where they can be had.
        remove_repeated_words: from captions before they are compared with references, as the official code does.

    Raises:
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("there is no trained generator to evaluate: `make repro` trains it.")
    words = tokenizer_called(tokenizer)
    metrics, missing = {}, {}
    for run in runs:
        predictions = run.predictions()
        found = {"parameters": float(run.facts["parameters"])}
        if "i2t" in tasks:
            captions = _captions(predictions, words, java, remove_repeated_words)
            found |= {name: captions.scores[name] for name in CAPTION_SCORES if name in captions.scores}
            missing |= captions.not_computed
            found |= _agreement(predictions, words) if attributes else {}
        if "t2i" in tasks and attributes:
            found |= _pictures(predictions, words, attributes)
        elif "t2i" in tasks:
            published = _published(predictions)
            found |= published
            missing |= {name: why for name, why in NOT_PUBLISHED.items() if name not in published}
        found |= flow_metrics(predictions)
        metrics[run.seed] = {f"{dataset}/{name}": value for name, value in found.items()}
    first, galleries = runs[0].predictions(), []
    if "t2i" in tasks and "pictures/told" in first:
        galleries.append(_drawn(first, words, examples))
    if "i2t" in tasks and attributes:
        galleries.append(_described(first, words, examples))
    return Evaluation(
        metrics=metrics,
        figures=[
            *([_consistency(metrics, dataset)] if "t2i" in tasks and attributes else []),
            *flow_figures(first, f"{BORROWED} {CROSSED}"),
        ],
        galleries=galleries,
        not_computed=missing,
    )


def _captions(
    predictions: Mapping[str, np.ndarray], tokenizer: TextTokenizer, java: bool, remove_repeated_words: bool
) -> CaptionScores:
    said = tokenizer.decode(predictions["captions"])
    if remove_repeated_words:
        said = [without_repeated_words(caption) for caption in said]
    known = {
        row: [text.decode() for text in texts if text]
        for row, texts in enumerate(predictions["references"].view(f"S{predictions['references'].shape[-1]}")[..., 0])
    }
    return score_captions(dict(enumerate(said)), known, java=java)


def _agreement(predictions: Mapping[str, np.ndarray], tokenizer: TextTokenizer) -> Metrics:
    agreement = scene_agreement(parse(tokenizer.decode(predictions["captions"])), _scenes(predictions))
    return {f"scene_{name}_percent": PERCENT * agreement[name] for name in ("precision", "recall", "exact")}


def _scenes(predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix("scene/"): values for name, values in predictions.items() if name.startswith("scene/")}


def _pictures(
    predictions: Mapping[str, np.ndarray], tokenizer: TextTokenizer, attributes: Mapping[str, int]
) -> Metrics:
    asked, named = predictions["labels"], parse(tokenizer.decode(predictions["loose"]))
    found = {}
    for name in ("real", "decoded", "told"):
        seen = predictions[f"seen/{name}"]
        there = asked[..., 0] < next(iter(attributes.values()))
        found[f"{name}_right_percent"] = PERCENT * float((seen == asked).all((1, 2)).mean())
        found[f"{name}_attributes_percent"] = PERCENT * float((seen == asked)[there].mean())
    for steps in _steps(predictions):
        shown = consistent(predictions[f"seen/loose-{steps}"], named, attributes)
        found[f"consistent_{steps}_steps_percent"] = PERCENT * float(shown.mean())
    distance = fd_world(predictions["features/told"], predictions["features/real"])
    found |= {name: value for name, value in distance.items() if name != "fd_world_samples"}
    for name, key in (("told", "is_world"), ("real", "is_world_real")):
        found[key] = is_world(_heads(predictions[f"odds/{name}"], attributes))
    return found


def _published(predictions: Mapping[str, np.ndarray]) -> Metrics:
    found = {name: float(predictions[name][0]) for name in ("fid", "inception_score") if name in predictions}
    if "clip_logits" in predictions:
        found["clip_score"] = clip_score(predictions["clip_logits"])
    if "clip_others" in predictions:
        found["r_precision_percent"] = PERCENT * r_precision(predictions["clip_others"])
    if hard := [r_precision(values) for name, values in predictions.items() if name.startswith("clip_hard/")]:
        found["r_precision_hard_percent"] = PERCENT * float(np.mean(hard))
    return found


def _heads(odds: Float[np.ndarray, "pictures places _"], attributes: Mapping[str, int]) -> list[np.ndarray]:
    """Probabilities of each attribute at each place, nothing being one more value."""
    ends = np.cumsum([count + 1 for count in attributes.values()])[:-1]
    return [part for place in odds.swapaxes(0, 1) for part in np.split(place, ends, axis=1)]


def _steps(predictions: Mapping[str, np.ndarray]) -> list[int]:
    return sorted(int(name.removeprefix("seen/loose-")) for name in predictions if name.startswith("seen/loose-"))


def consistent(
    seen: Int[np.ndarray, "pictures places attributes"],
    named: Mapping[str, Int[np.ndarray, "pictures things"]],
    attributes: Mapping[str, int],
) -> Bool[np.ndarray, " pictures"]:
    """Whether everything that a caption names is in its picture exactly once, wherever it is.

    Where places of a picture are filled without regard to one another, a thing is drawn in two corners, or in none.

    Args:
        seen: what is at each place; the number of values where nothing is.
        named: attribute -> what is said of each thing; -1 where nothing is said.
        attributes: in the order of `seen`, with their numbers of values.
    """
    said = np.stack([named[name] for name in attributes], axis=-1)
    there = (said >= 0).any(-1)
    matches = ((said[:, :, None] == seen[:, None]) | (said[:, :, None] < 0)).all(-1)
    return ((matches.sum(-1) == 1) | ~there).all(-1) & there.any(-1)


def _consistency(metrics: Mapping[int, Metrics], dataset: str) -> Figure:
    names = sorted(
        (name for name in next(iter(metrics.values())) if "/consistent_" in name),
        key=lambda name: int(name.split("_")[-3]),
    )
    values = np.stack([over_seeds(metrics, name) for name in names], axis=1)
    steps = [int(name.split("_")[-3]) for name in names]
    return Figure(
        id="steps",
        title=f"Pictures in which each named thing is there once ({dataset})",
        caption="Captions do not say where things are; the more steps, the more a place knows of the others.",
        x_label="steps of mask-predict",
        y_label="consistent pictures, %",
        x_scale="log",
        series=[seed_series("mask-predict", "line", steps, values)],
    )


def _drawn(predictions: Mapping[str, np.ndarray], tokenizer: TextTokenizer, examples: int) -> Gallery:
    captions = tokenizer.decode(predictions["told"][:examples])
    return Gallery(
        id="drawn",
        title="Captions in, pictures out",
        caption="Test captions of one seed. What is decoded is the real picture, through codebook and decoder.",
        rows=[
            [
                Exhibit("caption", text=[(caption, None)]),
                *(
                    Exhibit(label, picture=Picture.of(predictions[f"pictures/{name}"][row], f"{label}: {caption}"))
                    for name, label in (("told", "drawn"), ("decoded", "decoded"), ("real", "real"))
                    if f"pictures/{name}" in predictions
                ),
            ]
            for row, caption in enumerate(captions)
        ],
    )


def _described(predictions: Mapping[str, np.ndarray], tokenizer: TextTokenizer, examples: int) -> Gallery:
    scenes, rows = _scenes(predictions), []
    for row, caption in enumerate(tokenizer.decode(predictions["captions"][:examples])):
        truth = tokenizer.decode(predictions["told"][row : row + 1])[0]
        pieces = mark(caption, {name: values[row] for name, values in scenes.items()})
        rows.append(
            [
                Exhibit("real", picture=Picture.of(predictions["pictures/real"][row], truth)),
                Exhibit("caption", text=pieces),
                Exhibit("reference", text=[(truth, None)]),
            ]
        )
    return Gallery(
        id="described",
        title="Pictures in, captions out",
        caption="Test pictures of one seed; words that agree with the scene, and words that do not.",
        rows=rows,
    )
