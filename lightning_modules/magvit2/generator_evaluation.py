"""What MAGVIT-v2's generators and classifiers are worth, from stored predictions. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from lightning_modules.metrics.classification import accuracy, negative_log_likelihood
from lightning_modules.runs import Evaluation, Figure, Run, Series
from lightning_modules.settings import Count
from lightning_modules.video_tokens import evaluation as shared

NAMES = {"hevc": "HEVC (x265)", "av1": "AV1 (SVT-AV1)"}
NOT_MEASURED = {
    "vvc": "no encoder for VVC is in the FFmpeg that PyAV brings",
}


def evaluate(runs: Sequence[Run], dataset: str, *, examples: Count = 3) -> Evaluation:
    """How near generated clips are to the truth, and how few bits the generator's probabilities make of tokens.

    Metrics: those of `video_tokens.evaluation.evaluate`; `nll_bits`, bits that a token takes with these probabilities;
    `bits_per_pixel`; `fixed_bits_per_pixel`, with equally many bits for each token; `written_bits_per_pixel`, of the
    real coder, which writes words of 32 bits; `saved_percent`; `lossless_percent`, clips whose tokens came back;
    `coded/psnr` and `coded/ssim` of the clips; `head_parameters`. And, of the clips that codecs are tried on,
    `beside/psnr` and `beside/ssim`, and where a codec reaches the rate `<codec>/psnr` and `<codec>/ssim` at that of the
    generator's probabilities, `<codec>/equal_length/psnr` and `<codec>/equal_length/ssim` at that of tokens which take
    equally many bits each.

    Args:
        runs: finished runs of `Magvit2` or `OpenMagvit2`, one for each seed.
        dataset: first part of every metric's name.
        examples: clips of each gallery.

    Raises:
        ValueError: there is no run.
    """
    base = shared.evaluate(runs, dataset, examples=examples)
    metrics = {}
    for run in runs:
        found = coding(run.predictions(), run.facts["pixels"], run.facts["tokens"])
        found["head_parameters"] = float(run.facts["head_parameters"])
        own = {f"{dataset}/{name}": value for name, value in found.items()}
        metrics[run.seed] = base.metrics[run.seed] | own
    return replace(
        base,
        metrics=metrics,
        figures=[*rate_distortion(runs[0].predictions(), runs[0].facts["pixels"], dataset), *base.figures],
        not_computed=base.not_computed | NOT_MEASURED | out_of_reach(runs),
    )


def out_of_reach(runs: Sequence[Run]) -> dict[str, str]:
    """Which codecs have no numbers at the tokens' rate with every seed, and why."""
    found = {}
    for codec in NAMES:
        for run in runs:
            arrays, pixels = run.predictions(), run.facts["pixels"]
            rates = arrays.get(f"codecs/{codec}/bits_per_pixel")
            if rates is None:
                found[codec] = "too few clips are judged"
                continue
            for place, rate in rates_of(arrays, pixels).items():
                if at_rate(arrays, codec, "psnr", rate) is None:
                    found[f"{codec}{place}"] = (
                        f"at its {len(rates)} qualities it takes {rates.min():.4f} to {rates.max():.4f} bits per "
                        f"pixel, while tokens take {rate:.4f} (seed {run.seed})"
                    )
    return found


def coding(arrays: Mapping[str, np.ndarray], pixels: int, tokens: int) -> dict[str, float]:
    """The metrics of compression, see `evaluate`."""
    bits, fixed = float(arrays["coded/bits"].mean()), float(arrays["coded/fixed"].mean())
    found = {
        "nll_bits": bits / tokens,
        "bits_per_pixel": bits / pixels,
        "fixed_bits_per_pixel": fixed / pixels,
        "written_bits_per_pixel": float(arrays["coded/written"].mean()) / pixels,
        "saved_percent": 100 * (1 - bits / fixed),
        "lossless_percent": 100 * float(arrays["coded/again"].mean()),
    }
    found |= {f"coded/{name}": float(arrays[f"coded/{name}"].mean()) for name in ("psnr", "ssim")}
    for codec in NAMES:
        if f"codecs/{codec}/psnr" in arrays:
            own = beside(arrays, pixels)
            found |= {f"beside/{name}": own[name] for name in ("psnr", "ssim")}
            for name, (place, rate) in product(("psnr", "ssim"), rates_of(arrays, pixels).items()):
                at = at_rate(arrays, codec, name, rate)
                found |= {} if at is None else {f"{codec}{place}/{name}": at}
    return found


def beside(arrays: Mapping[str, np.ndarray], pixels: int) -> dict[str, float]:
    """Rate, PSNR and SSIM of tokens over the clips that codecs are tried on."""
    count = int(arrays["codecs/hevc/clips"])
    found = {name: float(arrays[f"coded/{name}"][:count].mean()) for name in ("psnr", "ssim")}
    return found | {"rate": float(arrays["coded/bits"][:count].mean()) / pixels}


def rates_of(arrays: Mapping[str, np.ndarray], pixels: int) -> dict[str, float]:
    """Bits per pixel at which codecs are compared, by what is put between the codec's name and the metric's."""
    return {"": beside(arrays, pixels)["rate"], "/equal_length": float(arrays["coded/fixed"].mean()) / pixels}


def at_rate(arrays: Mapping[str, np.ndarray], codec: str, name: str, rate: float) -> float | None:
    """What a codec reaches at a rate: linear in the logarithm of the rate between two qualities; null beyond them."""
    rates = arrays[f"codecs/{codec}/bits_per_pixel"]
    order = np.argsort(rates)
    if not rates[order[0]] <= rate <= rates[order[-1]]:
        return None
    return float(np.interp(np.log(rate), np.log(rates[order]), arrays[f"codecs/{codec}/{name}"][order]))


def rate_distortion(arrays: Mapping[str, np.ndarray], pixels: int, dataset: str) -> list[Figure]:
    """Codecs as curves, and tokens as points: equally long ones, and those that the generator makes shorter."""
    if "codecs/hevc/psnr" not in arrays:
        return []
    own = beside(arrays, pixels)
    fixed = float(arrays["coded/fixed"].mean()) / pixels
    series = [
        Series(title, "line", *(arrays[f"codecs/{codec}/{name}"].tolist() for name in ("bits_per_pixel", "psnr")))
        for codec, title in NAMES.items()
    ]
    labels = ["with the generator", "equally long"]
    tokens = Series("tokens", "points", [own["rate"], fixed], [own["psnr"]] * 2, labels=labels)
    return [
        Figure(
            id="rate",
            title=f"Rate and distortion ({dataset})",
            caption="Test clips of one seed. For the codecs, small clips are put side by side into one picture; "
            "headers count, containers do not.",
            x_label="bits per pixel",
            y_label="PSNR, dB",
            x_scale="log",
            series=[*series, tokens],
        )
    ]


def evaluate_classifier(runs: Sequence[Run], dataset: str) -> Evaluation:
    """How well actions are recognised.

    Metrics: `accuracy_percent`; where clips are reversed `class_percent` and `direction_percent`, of the class and of
    forward or backward alone; `nll`; `parameters`.

    Args:
        runs: finished runs of `ActionClassifier`, one for each seed.
        dataset: first part of every metric's name.

    Raises:
        ValueError: there is no run.
    """
    shared.some_run(runs)
    metrics = {}
    for run in runs:
        arrays, classes = run.predictions(), run.facts["classes"]
        chosen, actions = arrays["logits"].argmax(1), arrays["actions"]
        found = {
            "accuracy_percent": 100 * accuracy(arrays["logits"], actions),
            "nll": negative_log_likelihood(arrays["logits"], actions),
            "parameters": float(run.facts["parameters"]),
        }
        if arrays["logits"].shape[1] > classes:
            found["class_percent"] = 100 * float((chosen % classes == actions % classes).mean())
            found["direction_percent"] = 100 * float((chosen // classes == actions // classes).mean())
        metrics[run.seed] = {f"{dataset}/{name}": value for name, value in found.items()}
    return Evaluation(metrics=metrics)


def evaluate_targets(runs: Sequence[Run], dataset: str) -> Evaluation:
    """How well hidden places are predicted: `loss`, of tokens in nats, of pixels the mean squared error; `parameters`.

    Args:
        runs: finished runs of `TargetPredictor`, one for each seed.
        dataset: first part of every metric's name.

    Raises:
        ValueError: there is no run.
    """
    shared.some_run(runs)
    metrics = {
        run.seed: {
            f"{dataset}/loss": float(run.predictions()["losses"].mean()),
            f"{dataset}/parameters": float(run.facts["parameters"]),
        }
        for run in runs
    }
    return Evaluation(metrics=metrics)
