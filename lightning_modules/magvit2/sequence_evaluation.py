"""What tokenizers are worth as video codecs, from stored predictions. Imports no torch."""

from collections.abc import Mapping, Sequence

import numpy as np

from lightning_modules.magvit2.generator_evaluation import NAMES, NOT_MEASURED, at_rate
from lightning_modules.metrics.video_published import NOT_COMPUTED
from lightning_modules.runs import Evaluation, Figure, Gallery, Run, Series
from lightning_modules.settings import Count
from lightning_modules.video_tokens.evaluation import some_run
from lightning_modules.video_tokens.playing import playing

SCORES = {"psnr": "PSNR, dB", "ms_ssim": "MS-SSIM", "lpips": "LPIPS"}
TOO_SMALL = "it halves frames four times, and these are smaller than 176 pixels"
FEW = 9  # frames of the gallery


def evaluate_sequences(runs: Sequence[Run], dataset: str, *, examples: Count = 1) -> Evaluation:
    """Rate and distortion of whole videos.

    Metrics, means over videos: `bits_per_pixel` of tokens; `psnr`, `ms_ssim` and `lpips`, each the mean over a video's
    frames, as far as they can be computed; and `<codec>/...` of them at the same rate, where the codec reaches it, on
    the curve of its means over videos.

    Args:
        runs: finished runs of `SequenceCompression` or `CodedSequences`, one for each seed.
        dataset: first part of every metric's name.
        examples: videos of the gallery, at most one.

    Raises:
        ValueError: there is no run.
    """
    some_run(runs)
    metrics, missing = {}, {}
    for run in runs:
        arrays = run.predictions()
        own = curve(arrays, "")
        found = {name: float(values[0]) for name, values in own.items()}
        rate = found["bits_per_pixel"]
        for codec in run.facts["codecs"]:
            named = {f"codecs/{codec}/{name}": x for name, x in curve(arrays, f"codecs/{codec}/").items()}
            for score in found.keys() & SCORES.keys():
                if (at := at_rate(named, codec, score, rate)) is not None:
                    found[f"{codec}/{score}"] = at
                else:
                    rates = named[f"codecs/{codec}/bits_per_pixel"]
                    missing[codec] = (
                        f"at its {len(rates)} qualities it takes {rates.min():.4f} to {rates.max():.4f} bits per "
                        f"pixel, while tokens take {rate:.4f} (seed {run.seed})"
                    )
        metrics[run.seed] = {f"{dataset}/{name}": value for name, value in found.items()}
    first = runs[0].predictions()
    there = curve(first, "")
    missing |= {"vvc": NOT_MEASURED["vvc"]}
    missing |= {} if "lpips" in there else {"lpips": NOT_COMPUTED["lpips"]}
    missing |= {} if "ms_ssim" in there else {"ms_ssim": TOO_SMALL}
    rows = [
        [playing("real", first["shown/real"][n][:FEW]), playing("from its tokens", first["shown/drawn"][n][:FEW])]
        for n in range(min(examples, len(first["shown/real"])))
    ]
    return Evaluation(
        metrics=metrics,
        figures=[_figure(first, runs[0].facts["codecs"], score, dataset) for score in SCORES if score in there],
        galleries=[Gallery("again", "A video, and what comes back from its tokens", "Its first frames.", rows)],
        not_computed=missing,
    )


def curve(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """`bits_per_pixel` and scores, means over videos, at each quality; tokens have one.

    Args:
        arrays: predictions.
        prefix: of a codec's; empty for the tokens.
    """
    bits = arrays[f"{prefix}bits"].reshape(len(arrays["pixels"]), -1)
    found = {"bits_per_pixel": (bits / arrays["pixels"][:, None]).mean(0)}
    for score in SCORES:
        if f"{prefix}{score}" in arrays:
            found[score] = arrays[f"{prefix}{score}"].reshape(bits.shape).mean(0)
    return found


def _figure(arrays: Mapping[str, np.ndarray], codecs: Sequence[str], score: str, dataset: str) -> Figure:
    own = curve(arrays, "")
    series = []
    for codec in codecs:
        at = curve(arrays, f"codecs/{codec}/")
        series.append(Series(NAMES[codec], "line", at["bits_per_pixel"].tolist(), at[score].tolist()))
    series.append(Series("tokens", "points", own["bits_per_pixel"].tolist(), own[score].tolist()))
    return Figure(
        id=score,
        title=f"Rate and distortion ({dataset})",
        caption="Means over the frames of a video, and over videos, of one seed. Headers count, containers do not.",
        x_label="bits per pixel",
        y_label=SCORES[score],
        x_scale="log",
        series=series,
    )
