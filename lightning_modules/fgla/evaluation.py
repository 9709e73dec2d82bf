"""How well pictures move, from stored predictions. Imports no torch.

Everything is measured with codes from the clip itself (`reconstruction`), so that arms are compared with the same
source of codes, and of whole clips also with those that are recalled or drawn. An encoder that sees its generator's own
last flow is the exception: of a new clip none is remembered, so its code is of the first frame alone. Codes of `prior`
are drawn alike for each batch of clips: there are as many motions as `data.evaluation_batch_size` says.

Baselines: nothing moves, or all moves as the mean of the true flow. They need no training but for `copy/l1` and
`mean/l1` of an arm that models the light, which are seen in the light that the arm reads from the next frame.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from lightning_modules.datasets.world.timelapse import PARTS
from lightning_modules.fgla import study as votes
from lightning_modules.metrics.generation import frechet_distance
from lightning_modules.runs import Evaluation, Exhibit, Figure, Gallery, Picture, Run, Series
from lightning_modules.settings import Count
from lightning_modules.video_tokens.evaluation import not_computed, published, some_run
from lightning_modules.video_tokens.playing import playing

SOURCES = {"reconstruction": "moved as it did", "retrieval": "moved as a training clip did", "prior": "moved by chance"}
FEW, NO_VOTES = "fewer clips than features", "no folder with votes is named (evaluate.study): see fgla/study.py"
ENLARGED = 4  # pixels a side of a flow's vector in the gallery, where frames are small
WHEEL = 64  # pixels a side of the colour wheel
Arrays = Mapping[str, np.ndarray]


def evaluate(runs: Sequence[Run], dataset: str, *, examples: Count = 4, study: str | None = None) -> Evaluation:
    """How near flows and clips are to the truth.

    Of each frame and the next: `epe` in pixels, `epe/<part>` and `l1`; `copy/epe`, `copy/l1`, `mean/epe`, `mean/l1` of
    the baselines. Of whole clips for each source of codes: `<source>/clip_l1`, `/last_l1`, `/ssim`, over all pixels,
    `/frechet_drawn` (see `metrics.motion.DrawnFeatures`: no FVD, and blind to motion), and what published networks
    gave. Of the same flows, warped at once and frame by frame: `accumulated/last_l1`, `by_frame/last_l1`,
    `.../sharpness` as a share of the real last frame's, and `.../true_last_l1` with the true flow; `copy/last_l1`,
    `mean/last_l1`: where it is known, over pixels that show what the first frame showed, so not to be held against
    `<source>/last_l1`. `transfer/epe` where clips have others of the same layout. Votes of a `study` in the arm whose
    films were its first, see `study.judged`. `parameters`, `code_numbers`.

    Args:
        runs: finished runs of `Fgla`, one for each seed.
        dataset: first part of every metric's name.
        examples: clips of each gallery.
        study: folder with key and votes of a blinded study, see `study`; null for none.

    Raises:
        ValueError: there is no run, or the votes cannot be read.
    """
    some_run(runs)
    voted, unvoted = _votes(runs[0], study) if study else ({}, NO_VOTES)
    metrics = {}
    for run in runs:
        found = scores(run.predictions()) | {name: float(run.facts[name]) for name in ("parameters", "code_numbers")}
        metrics[run.seed] = {f"{dataset}/{name}": value for name, value in (found | voted).items()}
    first = runs[0].predictions()
    missing = not_computed(metrics)
    if not voted:
        missing["votes"] = unvoted
    if not any(name.endswith("frechet_drawn") for found in metrics.values() for name in found):
        missing["frechet_drawn"] = FEW
    return Evaluation(
        metrics=metrics,
        figures=_by_frame([run.predictions() for run in runs], dataset),
        galleries=[_clips(first, examples), *([_flows(first, examples)] if "shown/true_flow" in first else [])],
        not_computed=missing,
    )


def _votes(run: Run, study: str) -> tuple[dict[str, float], str]:
    """The votes of a study for the arm of a run, and why there are none if there are none."""
    arm = run.folder.parent.parent.name  # <arm>/<stage>/seed-<seed>
    return votes.judged(study, arm), votes.not_of(study, arm)


def scores(arrays: Arrays) -> dict[str, float]:
    """All numbers of one run, see `evaluate`."""
    found = {"l1": _mean(arrays["step/l1"]), "copy/l1": _mean(arrays["step/copy_l1"])}
    if "epe" in arrays:
        found |= {name: _mean(arrays[name]) for name in ("epe", "copy/epe", "mean/epe")}
        found["mean/l1"] = _mean(arrays["step/mean_l1"])
    if "part_epe" in arrays:
        found |= {f"epe/{name.replace(' ', '_')}": _mean(arrays["part_epe"][:, n]) for n, name in enumerate(PARTS)}
    for source in SOURCES:
        if f"{source}/l1" in arrays:
            found |= {f"{source}/{name}": value for name, value in _of_clips(arrays, source).items()}
    for way in ("accumulated", "by_frame"):
        found[f"{way}/last_l1"] = _mean(arrays[f"{way}/l1"][:, -1])
        found[f"{way}/sharpness"] = _mean(arrays[f"{way}/sharp"][:, -1])
        if f"{way}/true_l1" in arrays:
            found[f"{way}/true_last_l1"] = _mean(arrays[f"{way}/true_l1"][:, -1])
    found |= {f"{way}/last_l1": _mean(arrays[f"{way}/l1"][:, -1]) for way in ("copy", "mean") if f"{way}/l1" in arrays}
    if "transfer/epe" in arrays:
        found["transfer/epe"] = _mean(arrays["transfer/epe"])
    return found


def _of_clips(arrays: Arrays, source: str) -> dict[str, float]:
    """Of clips that move by codes of one source."""
    errors, made, real = arrays[f"{source}/l1"], arrays[f"{source}/features"], arrays["features/real"]
    found = {"clip_l1": _mean(errors), "last_l1": _mean(errors[:, -1]), "ssim": _mean(arrays[f"{source}/ssim"])}
    if len(made) > made.shape[1]:
        found["frechet_drawn"] = frechet_distance(made.astype(np.float64), real.astype(np.float64))
    return found | published(arrays, {name: arrays.get(f"{source}/{name}") for name in ("i3d", "c3d", "lpips")})


def _mean(values: np.ndarray) -> float:
    return float(values.astype(np.float64).mean())


def coloured(flow: Float[np.ndarray, "2 h w"], longest: float) -> UInt8[np.ndarray, "h w 3"]:
    """A flow as colours: the hue is its direction, the saturation its length; what rests is white.

    Args:
        flow: right and down.
        longest: length that has full saturation.
    """
    length = np.minimum(np.hypot(*flow) / longest, 1.0)
    turn = np.arctan2(-flow[1], flow[0]) / (2 * np.pi) % 1.0
    # The hue of each channel: a triangle wave, as in HSV of value 1.
    hue = np.clip(np.abs((6 * turn[..., None] + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return np.rint(255 * (1 - length[..., None] * (1 - hue))).astype(np.uint8)


def wheel() -> UInt8[np.ndarray, "h w 3"]:
    """The colours of all flows up to full length."""
    at = (np.arange(WHEEL) + 0.5) * 2 / WHEEL - 1
    flow = np.stack(np.broadcast_arrays(at, at[:, None]))
    return np.where((np.hypot(*flow) <= 1)[..., None], coloured(flow, 1.0), 255).astype(np.uint8)


def _clips(arrays: Arrays, examples: int) -> Gallery:
    shown = {"real": "real clip"} | SOURCES
    rows = [
        [playing(told, arrays[f"shown/{name}"][row]) for name, told in shown.items() if f"shown/{name}" in arrays]
        for row in range(min(examples, len(arrays["shown/real"])))
    ]
    told = "Test clips of one seed: of all but the real one only the first frame is given, and the motion."
    return Gallery("clips", "Pictures that move", told, rows)


def _flows(arrays: Arrays, examples: int) -> Gallery:
    rows = []
    for row in range(min(examples, len(arrays["shown/real"]))):
        truth, made, real = (arrays[name][row] for name in ("shown/true_flow", "shown/flow", "shown/real"))
        longest = max(float(np.hypot(truth[:, 0], truth[:, 1]).max()), 1e-6)
        rows.append([
            _large("first frame", real[0]),
            *(_large(f"{told}, first and last step", np.concatenate([coloured(flow[n], longest) for n in (0, -1)], 1))
              for told, flow in (("true flow", truth), ("flow of the generator", made))),
        ])  # fmt: skip
    wheel_shown = Exhibit("direction by hue, length by saturation", picture=Picture.of(wheel(), "a wheel of colours"))
    told = (
        "Backward flow of test clips of one seed: where each pixel comes from. The generator saw the first frame alone."
    )
    return Gallery("flows", "Flows as colours", told, [*rows, [wheel_shown]])


def _large(label: str, pixels: UInt8[np.ndarray, "h w 3"]) -> Exhibit:
    factor = ENLARGED if pixels.shape[0] < WHEEL else 1
    step = -(-pixels.shape[1] // 512)
    pixels = np.ascontiguousarray(pixels[::step, ::step].repeat(factor, 0).repeat(factor, 1))
    return Exhibit(label, picture=Picture.of(pixels, label))


def _by_frame(predictions: Sequence[Arrays], dataset: str) -> list[Figure]:
    """The error of each frame of a clip: of warped frames and baselines, and of finished frames over other pixels."""
    warped = {"accumulated": "warped at once", "by_frame": "warped frame by frame", "copy": "first frame again",
              "mean": "mean of the true flow"}  # fmt: skip
    told = "Codes from the clip itself; mean over clips and seeds. Where it is known, over pixels that show what the "
    finished = "Frames that were warped at once, repaired and lit, over all pixels, also those that show something new"
    return [
        _figure("steps", f"How far warped clips leave the truth ({dataset})", f"{told}first frame showed.",
                _series(predictions, warped)),
        _figure("finished", f"How far finished clips leave the truth ({dataset})",
                f"{finished}; mean over clips and seeds.", _series(predictions, SOURCES)),
    ]  # fmt: skip


def _series(predictions: Sequence[Arrays], told: Mapping[str, str]) -> list[Series]:
    series = []
    for name, label in told.items():
        if f"{name}/l1" in predictions[0]:
            values = np.concatenate([arrays[f"{name}/l1"] for arrays in predictions]).mean(0, dtype=np.float64)
            kind = "dashed" if name in ("copy", "mean") else "line"
            steps = [float(n) for n in range(1, len(values) + 1)]
            series.append(Series(label, kind, steps, values.round(6).tolist()))
    return series


def _figure(name: str, title: str, caption: str, series: list[Series]) -> Figure:
    return Figure(
        id=name, title=title, caption=caption, x_label="frame", y_label="mean absolute difference", series=series
    )
