"""How well cameras of generated clips follow the paths that were asked for, from stored predictions. Imports no torch.

The same is measured in the real clips and in these as they come back from their tokens: no generator can be judged more
finely than that.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from lightning_modules.camvig.missing import restored
from lightning_modules.camvig.paths import AXES
from lightning_modules.datasets.world.camera import COMPOSITE, MOVES
from lightning_modules.runs import Evaluation, Figure, Gallery, Run, Series
from lightning_modules.settings import Count
from lightning_modules.video_tokens.evaluation import some_run
from lightning_modules.video_tokens.playing import playing

PERCENT = 100
NO_DEPTH = "the depth of what is seen is not known in these clips"
ORIGINS = {"made": "", "again": "tokenizer/", "real": "real/"}
TOLD = ("real", "from its tokens", "generated along its path")
SHOWN_PATHS = {"truck right": 0, "dolly in": 2, "pan right": 4}  # moves of the figures, and the number that they change
Arrays = Mapping[str, np.ndarray]


def evaluate(runs: Sequence[Run], dataset: str, *, examples: Count = 4) -> Evaluation:
    """How far cameras go where they were sent.

    Of clips whose depths are known, shifts of things in pixels against those that the pinhole camera asks for, of moves
    that were trained on and, under `composite/`, of those that were not: `correlation` (Pearson's, over clips,
    frames, things and directions) and `rmse_px`; `parallax_px`, how much further the near thing goes than the far one
    with a truck than with a pan; `scene_motion`, how far things go that move by themselves, without a path, as a
    share of what they really do. All of these also under `tokenizer/` and `real/`. Of other clips
    `turn_error_deg`, `direction_error_deg` and `measured_percent`. Of all `psnr`, `parameters` and `path_tokens`, and
    `posed/nll` and `broad/nll`, nats per token of true clips with and without a path.

    Args:
        runs: finished runs of `CamViG`, one for each seed.
        dataset: first part of every metric's name.
        examples: clips of the gallery.

    Raises:
        ValueError: there is no run.
    """
    some_run(runs)
    metrics = {}
    for run in runs:
        arrays = restored(run.predictions())
        found = {"psnr": float(arrays["psnr"].mean())}
        for name, rows in (("posed", arrays["posed"]), ("broad", ~arrays["posed"])):
            if rows.any():
                found[f"{name}/nll"] = float(arrays["nll"][rows].mean())
        for origin, place in ORIGINS.items():
            measure = by_depths if "asked/shifts" in arrays else by_essential_matrices
            found |= {f"{place}{name}": value for name, value in measure(arrays, origin).items()}
        found |= {name: float(run.facts[name]) for name in ("parameters", "path_tokens")}
        metrics[run.seed] = {f"{dataset}/{name}": value for name, value in found.items()}
    first = runs[0].predictions()
    rows = [
        [playing(told, first[f"shown/{name}"][row]) for told, name in zip(TOLD, ("real", "again", "made"), strict=True)]
        for row in range(min(examples, len(first["shown/made"])))
    ]
    told = "Test clips of one seed: their first frame and their camera's path are given."
    return Evaluation(
        metrics=metrics,
        figures=_figures([restored(run.predictions()) for run in runs], dataset) if "made/path" in first else [],
        galleries=[Gallery("cameras", "Pictures along camera paths", told, rows)],
        not_computed={} if "asked/shifts" in first else {"rmse_px": NO_DEPTH, "scene_motion": NO_DEPTH},
    )


def by_depths(arrays: Arrays, origin: str) -> dict[str, float]:
    """What the shifts of things say, see `evaluate`.

    Args:
        arrays: predictions.
        origin: `made`, `again` or `real`.
    """
    shifts, asked, moves, posed = arrays[f"{origin}/shifts"], arrays["asked/shifts"], arrays["labels"], arrays["posed"]
    composite = np.isin(moves, COMPOSITE)
    found = agreement(shifts, asked, posed & ~composite)
    found |= {f"composite/{name}": value for name, value in agreement(shifts, asked, posed & composite).items()}
    apart = {kind: further(shifts, asked, posed & np.isin(moves, _named(kind))) for kind in ("truck", "pan")}
    found |= {f"{kind}/near_minus_far_px": value for kind, value in apart.items()}
    found["parallax_px"] = apart["truck"] - apart["pan"]
    lengths = {name: np.hypot(*np.moveaxis(arrays[f"{name}/own"][~posed, -1], -1, 0)) for name in (origin, "real")}
    seen = np.isfinite(lengths["real"])
    if seen.any():
        found["scene_motion"] = float(lengths[origin][seen].mean() / lengths["real"][seen].mean())
    return {name: value for name, value in found.items() if np.isfinite(value)}


def agreement(
    shifts: Float[np.ndarray, "clips things later 2"],
    asked: Float[np.ndarray, "clips things later 2"],
    rows: Bool[np.ndarray, " clips"],
) -> dict[str, float]:
    """`correlation` and `rmse_px` of what was measured with what was asked for, over some clips.

    Where nothing moves at all, the correlation is 0.
    """
    one, two = shifts[rows], asked[rows]
    both = np.isfinite(one) & np.isfinite(two)
    one, two = one[both], two[both]
    if not len(one):
        return {}
    still = min(one.std(), two.std()) == 0
    return {
        "correlation": 0.0 if still else float(np.corrcoef(one, two)[0, 1]),
        "rmse_px": float(np.sqrt(((one - two) ** 2).mean())),
    }


def further(
    shifts: Float[np.ndarray, "clips things later 2"],
    asked: Float[np.ndarray, "clips things later 2"],
    rows: Bool[np.ndarray, " clips"],
) -> float:
    """How much further the second thing goes than the first in the last frame, along the way that is asked of it.

    Args:
        shifts: of the far and the near thing.
        asked: likewise.
        rows: clips that count.
    """
    one, two = shifts[rows, :2, -1], asked[rows, 1, -1]
    both = np.isfinite(one).all((1, 2)) & np.isfinite(two).all(1)
    length = np.maximum(np.hypot(*two[both].T), 1e-9)[:, None]
    along = ((one[both, 1] - one[both, 0]) * two[both] / length).sum(1)
    return float(along.mean()) if len(along) else float("nan")


def by_essential_matrices(arrays: Arrays, origin: str) -> dict[str, float]:
    """Errors of directions and turns where they could be measured, and how often that was."""
    turn, direction = (arrays[f"{origin}/{name}"][arrays["posed"]] for name in ("turn_error", "direction_error"))
    found = {"measured_percent": PERCENT * float(np.isfinite(turn).mean())}
    for name, errors in (("turn_error_deg", turn), ("direction_error_deg", direction)):
        if np.isfinite(errors).any():
            found[name] = float(np.nanmedian(errors))
    return found


def _named(kind: str) -> list[int]:
    return [number for number, name in enumerate(MOVES) if name.startswith(kind)]


def _figures(predictions: Sequence[Arrays], dataset: str) -> list[Figure]:
    """For a few moves what was asked of the camera and what was measured, frame by frame, the mean over seeds."""
    return [_figure(predictions, dataset, name, axis) for name, axis in SHOWN_PATHS.items()]


def _figure(predictions: Sequence[Arrays], dataset: str, move: str, axis: int) -> Figure:
    def mean(name: str) -> list[float]:
        rows = [arrays[name][(arrays["labels"] == MOVES.index(move)) & arrays["posed"], :, axis]
                for arrays in predictions]  # fmt: skip
        return [0.0, *np.nanmean(np.concatenate(rows), 0).round(6).tolist()]

    asked, seen = mean("asked/path"), mean("made/path")
    frames = [float(n) for n in range(len(asked))]
    return Figure(
        id=f"path-{move.replace(' ', '-')}",
        title=f"{move}: the path that was asked for, and the one measured ({dataset})",
        caption="Mean over clips and seeds; measured by optical flow where the depth is known.",
        x_label="frame",
        y_label=AXES[axis] + (", radians" if axis > 2 else ""),
        series=[Series("asked for", "dashed", frames, asked), Series("measured", "line", frames, seen)],
    )
