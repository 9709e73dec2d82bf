"""What VideoPoet's language models are worth, from stored predictions. Imports no torch."""

from collections.abc import Mapping, Sequence

import numpy as np

from lightning_modules.runs import Evaluation, Exhibit, Figure, Gallery, Run, Series
from lightning_modules.settings import Count
from lightning_modules.video_tokens.evaluation import PERCENT, PUBLISHED, not_computed, published, some_run
from lightning_modules.video_tokens.playing import playing
from lightning_modules.videopoet.sounds import sounding

AVERAGED = ("t2v", "fp", "inpaint")  # tasks of `mean_nll`
DIRECTIONS = 4
NOT_COMPUTED = {
    "clipsim": "it needs the weights of CLIP ViT-B/16, and captions of real videos",
    "fad": "it needs the weights of VGGish",
}


def evaluate(runs: Sequence[Run], dataset: str, *, examples: Count = 3) -> Evaluation:
    """How probable the truth is, and whether clips and sounds that are written fit what was given.

    Metrics: `<task>/nll` of each judged task, nats per token that it writes, and `mean_nll` over text to video, frame
    prediction and inpainting; `positions` in thousands and `padding_percent` of the training; `parameters`.

    Where clips were written, `chaining/boundary_mse` and `chaining/speed_error_percent`, see `measuring`, over those
    `chaining/clips` that have room to go on, and `chaining/control_...` of segments written from nothing. As far as
    their networks are there, `t2v/fvd` and `t2v/inception_score`.

    In the captioned world `t2v/motion_percent`, clips that go as the caption tells, the same of real clips and through
    the tokenizer (`truth/...`, `ceiling/...`), and `t2v/motion_chance_percent`; `a2v/height_error_percent` and
    `v2a/...`, the distance between heights seen and heard, as a share of the frame, with
    `.../control_height_error_percent` to another clip, also of real clips (`truth/...`) and of the sound written
    for a clip written from text (`t2v_v2a/...`).

    Args:
        runs: finished runs of `VideoPoet`, one for each seed.
        dataset: first part of every metric's name.
        examples: clips of each gallery.

    Raises:
        ValueError: there is no run.
    """
    some_run(runs)
    metrics = {}
    for run in runs:
        arrays = run.predictions()
        found = surprises(arrays) | agreements(arrays) | chaining(arrays)
        found |= {f"t2v/{name}": x for name, x in published(arrays, seen_by(arrays)).items()}
        computed, useful = arrays["positions"].astype(float)
        found |= {
            "positions": computed / 1000,
            "padding_percent": PERCENT * (1 - useful / computed) if computed else 0.0,
        }
        found["parameters"] = float(run.facts["parameters"])
        metrics[run.seed] = {f"{dataset}/{name}": value for name, value in found.items()}
    return Evaluation(
        metrics=metrics,
        figures=[figure(metrics, dataset)],
        galleries=galleries(runs[0].predictions(), runs[0].facts["rate"], examples),
        not_computed=not_computed(metrics) | NOT_COMPUTED,
    )


def seen_by(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray | None]:
    """What published networks gave for clips from text."""
    return {name: arrays.get(f"t2v/{name}") for name in PUBLISHED}


def surprises(arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The metrics of the truth's probability, see `evaluate`."""
    found = {name: float(values.mean()) for name, values in arrays.items() if name.endswith("/nll")}
    if all(f"{task}/nll" in found for task in AVERAGED):
        found["mean_nll"] = float(np.mean([found[f"{task}/nll"] for task in AVERAGED]))
    return found


def agreements(arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The metrics of what is written from text, from sound and from clips of the captioned world, see `evaluate`."""
    if "truth/right" not in arrays:
        return {}
    found = {"t2v/motion_chance_percent": PERCENT / DIRECTIONS}
    for name in ("truth", "ceiling", "t2v"):
        found[f"{name}/motion_percent"] = PERCENT * float(arrays[f"{name}/right"].mean())
    for name in ("truth", "a2v", "v2a", "t2v_v2a"):
        found[f"{name}/height_error_percent"] = PERCENT * float(arrays[f"{name}/height"].mean())
        found[f"{name}/control_height_error_percent"] = PERCENT * float(arrays[f"{name}/other_height"].mean())
    return found


def chaining(arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The metrics of clips that are continued, see `evaluate`; only their number where none can go on."""
    if "chaining/step" not in arrays:
        return {}
    room = arrays.get("chaining/room", np.ones(len(arrays["chaining/step"]), bool)).astype(bool)
    found = {"chaining/clips": float(room.sum())}
    if room.any():
        for name, own in (("chaining/", "chaining/"), ("chaining/control_", "chaining/control/")):
            found[f"{name}boundary_mse"] = float(arrays[f"{own}step"][room].mean())
            if f"{own}speed" in arrays:
                found[f"{name}speed_error_percent"] = PERCENT * float(arrays[f"{own}speed"][room].mean())
    return found


def figure(metrics: Mapping[int, Mapping[str, float]], dataset: str) -> Figure:
    """Nats per token of each judged task."""
    names = [name.removeprefix(f"{dataset}/") for name in next(iter(metrics.values())) if name.endswith("/nll")]
    values = [float(np.mean([found[f"{dataset}/{name}"] for found in metrics.values()])) for name in names]
    return Figure(
        id="tasks",
        title=f"What the truth costs ({dataset})",
        caption="Nats per token that a task writes, mean over test clips and seeds.",
        x_label="task",
        y_label="nats per token",
        series=[
            Series("tasks", "bars", [float(at) for at in range(len(names))], values,
                   labels=[name.removesuffix("/nll") for name in names]),
        ],
    )  # fmt: skip


def galleries(arrays: Mapping[str, np.ndarray], rate: int, examples: int) -> list[Gallery]:
    """Clips and sounds as they are written, beside the truth; none where nothing was written.

    Args:
        arrays: predictions.
        rate: samples a second of the sounds.
        examples: rows of each gallery.
    """
    if "shown/real" not in arrays:
        return []
    shown = {  # clip, sound and label of each exhibit
        "text": ("Video from text", [("t2v", "", "from its caption"), ("real", "", "the clip with this caption")]),
        "image": ("Video from an image", [("i2v", "", "from its first frame"), ("real", "", "truth")]),
        "seen": ("Video from sound", [("a2v", "real", "from its sound"), ("real", "real", "truth")]),
        "heard": (
            "Sound from video",
            [("real", "v2a", "from the clip"), ("real", "codec", "truth, from its codes"), ("real", "real", "truth")],
        ),
        "longer": (
            "Clips that go on", [("longer", "", "continued"), ("apart", "", "followed by others, the control")]
        ),
    }  # fmt: skip
    return [
        Gallery(name, title, "Test clips of one seed.", [
            [_exhibit(arrays, row, rate, *exhibit) for exhibit in exhibits]
            for row in range(min(examples, len(arrays["shown/real"])))
        ])
        for name, (title, exhibits) in shown.items()
    ]  # fmt: skip


def _exhibit(arrays: Mapping[str, np.ndarray], row: int, rate: int, clip: str, sound: str, label: str) -> Exhibit:
    video = arrays[f"shown/{clip}"][row]
    if not sound:
        return playing(label, video)
    return sounding(label, video, arrays[f"shown/sound/{sound}"][row], rate)
