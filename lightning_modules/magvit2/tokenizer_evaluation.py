"""What MAGVIT-v2's tokenizers are worth, from stored predictions. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import UInt8

from lightning_modules.metrics.tokens import perplexity
from lightning_modules.runs import Evaluation, Exhibit, Figure, Gallery, Picture, Run, Series
from lightning_modules.settings import Count
from lightning_modules.video_tokens import evaluation as shared

PERCENT = 100
ZOOM = 6
FID = "the paper has it of images; it needs the weights of an Inception network"


def evaluate_tokenizer(runs: Sequence[Run], dataset: str, *, examples: Count = 4) -> Evaluation:
    """How well clips come back from their tokens, and whether a frame depends on later ones.

    Metrics: those of `video_tokens.evaluation.evaluate_tokenizer`; of video tokenizers `leaking_percent`, clips in
    which a latent changes at all when frames after its own change, `leak`, the largest such change, and `moved`, the
    mean of the largest change of the other latents.

    Args:
        runs: finished runs of `CausalTraining`, one for each seed.
        dataset: first part of every metric's name.
        examples: clips of the gallery.

    Raises:
        ValueError: there is no run.
    """
    found = shared.evaluate_tokenizer(runs, dataset, examples=examples)
    for run in runs:
        arrays = run.predictions()
        if "leak" in arrays:
            found.metrics[run.seed] |= {
                f"{dataset}/leaking_percent": PERCENT * float((arrays["leak"] > 0).mean()),
                f"{dataset}/leak": float(arrays["leak"].max()),
                f"{dataset}/moved": float(arrays["moved"].mean()),
            }
    return replace(found, not_computed=found.not_computed | {"fid": FID})


def evaluate_vocabulary(runs: Sequence[Run], dataset: str, *, examples: Count = 6) -> Evaluation:
    """Reconstruction and use of the vocabulary as it grows.

    Metrics, for each kind of quantiser and vocabulary, `<kind>/<K>/...`: `mse`, `psnr`, that of the mean `mse`,
    `perplexity` of the test tokens, and `used_percent`, perplexity in percent of K. For each kind `gain_db`, by how
    much the PSNR of the largest vocabulary is above that of the smallest.

    Args:
        runs: finished runs of `VocabularyLadder`, one for each seed.
        dataset: first part of every metric's name.
        examples: images of the gallery.

    Raises:
        ValueError: there is no run.
    """
    shared.some_run(runs)
    metrics: dict[int, dict[str, float]] = {}
    sizes = _by_kind(runs[0].facts["vocabularies"])
    for run in runs:
        arrays, found = run.predictions(), {}
        for kind, vocabularies in sizes.items():
            for size in vocabularies:
                name, mse = f"{kind}/{size}", float(arrays[f"{kind}-{size}/mse"].mean())
                found |= {f"{name}/mse": mse, f"{name}/psnr": -10 * float(np.log10(max(mse, 1e-10)))}
                found[f"{name}/perplexity"] = perplexity(arrays[f"{kind}-{size}/tokens"])
                found[f"{name}/used_percent"] = PERCENT * found[f"{name}/perplexity"] / size
            largest, smallest = (found[f"{kind}/{size}/psnr"] for size in (max(vocabularies), min(vocabularies)))
            found[f"{kind}/gain_db"] = largest - smallest
        metrics[run.seed] = {f"{dataset}/{name}": value for name, value in found.items()}
    arrays = runs[0].predictions()
    shown = [("real", "real")] + [(f"{kind}-{max(v)}", f"{kind}, {max(v):,} codes") for kind, v in sizes.items()]
    rows = [
        [_image(label, arrays[f"shown/{name}"][row]) for name, label in shown]
        for row in range(min(examples, len(arrays["shown/real"])))
    ]
    return Evaluation(
        metrics=metrics,
        figures=[
            _curves(metrics, dataset, sizes, "mse", "Reconstruction by vocabulary", "mean squared error"),
            _curves(metrics, dataset, sizes, "perplexity", "Codes in use by vocabulary", "perplexity of the tokens"),
        ],
        galleries=[Gallery("again", "Images, and what comes back from their tokens", "Test images of one seed.", rows)],
        not_computed={"fid": FID},
    )


def _by_kind(vocabularies: Mapping[str, int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for name, size in vocabularies.items():
        found.setdefault(name.rpartition("-")[0], []).append(size)
    return found


def _curves(
    metrics: Mapping[int, Mapping[str, float]],
    dataset: str,
    sizes: Mapping[str, Sequence[int]],
    name: str,
    title: str,
    label: str,
) -> Figure:
    def values(kind: str, size: int) -> np.ndarray:
        return np.array([m[f"{dataset}/{kind}/{size}/{name}"] for m in metrics.values()])

    return Figure(
        id=name,
        title=f"{title} ({dataset})",
        caption="Mean over seeds, test images. All have the same network, batches and steps.",
        x_label="codes",
        y_label=label,
        x_scale="log",
        series=[
            Series(kind, "line", [float(k) for k in each], [float(values(kind, k).mean()) for k in each])
            for kind, each in sizes.items()
        ],
    )


def _image(label: str, image: UInt8[np.ndarray, "h w 3"]) -> Exhibit:
    zoom = max(1, ZOOM * 8 // len(image))
    return Exhibit(label, picture=Picture.of(image.repeat(zoom, 0).repeat(zoom, 1), f"{label}: an image"))
