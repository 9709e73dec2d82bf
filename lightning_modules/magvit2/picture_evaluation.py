"""What tokenizers and generators of pictures are worth, from stored predictions. Imports no torch."""

from collections.abc import Sequence
from dataclasses import replace

from lightning_modules.magvit2 import generator_evaluation, tokenizer_evaluation
from lightning_modules.runs import Evaluation, Run
from lightning_modules.settings import Count

SCORES = ("fid", "inception_score")
OF_CLIPS = ("fvd", "leak")  # of no meaning for pictures
NOT_INSTALLED = "torch-fidelity was not installed where predictions were made, see CONTRIBUTING.md, Dependencies"


def evaluate_tokenizer(runs: Sequence[Run], dataset: str, *, examples: Count = 4) -> Evaluation:
    """How well pictures come back from their tokens.

    Metrics: those of `tokenizer_evaluation.evaluate_tokenizer`; `fid` against the pictures themselves (reconstruction
    FID) and `inception_score`, where torch-fidelity was installed.

    Args:
        runs: finished runs of `PictureTraining` or `ReleasedPictures`, one for each seed.
        dataset: first part of every metric's name.
        examples: pictures of the gallery.

    Raises:
        ValueError: there is no run.
    """
    return scored(tokenizer_evaluation.evaluate_tokenizer(runs, dataset, examples=examples), runs, dataset)


def evaluate(runs: Sequence[Run], dataset: str, *, examples: Count = 3) -> Evaluation:
    """What drawn pictures are worth.

    Metrics: those of `generator_evaluation.evaluate`; `fid` against the pictures that are judged and `inception_score`,
    where torch-fidelity was installed.

    Args:
        runs: finished runs of `PictureGenerator`, one for each seed.
        dataset: first part of every metric's name.
        examples: pictures of each gallery.

    Raises:
        ValueError: there is no run.
    """
    return scored(generator_evaluation.evaluate(runs, dataset, examples=examples), runs, dataset)


def scored(found: Evaluation, runs: Sequence[Run], dataset: str) -> Evaluation:
    """With FID and the Inception Score of each run that has them, and the reason where one has not."""
    metrics = dict(found.metrics)
    for run in runs:
        arrays = run.predictions()
        metrics[run.seed] = metrics[run.seed] | {
            f"{dataset}/{name}": float(arrays[name][0]) for name in SCORES if name in arrays
        }
    there = {name for name in SCORES if all(f"{dataset}/{name}" in each for each in metrics.values())}
    reasons = {name: why for name, why in found.not_computed.items() if name not in (*SCORES, *OF_CLIPS)}
    reasons |= {name: NOT_INSTALLED for name in SCORES if name not in there}
    return replace(found, metrics=metrics, not_computed=reasons)
