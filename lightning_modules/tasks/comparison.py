"""Functions that every comparison of arms needs; runs are named `<arm>/<protocol>`. Imports no torch."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from lightning_modules.ensembling.pools import over_seeds
from lightning_modules.runs import Figure, Run, Series

Metrics = dict[str, float]
FEW = 3  # pairs of curves that one figure shows


def arms_of(runs: Sequence[Run]) -> list[str]:
    """The arms that are compared, in the order of their runs."""
    return list(dict.fromkeys(run.name.partition("/")[0] for run in runs))


def check_rows(runs: Sequence[Run], rows: Sequence[np.ndarray]) -> None:
    """Refuse to compare what was judged on different rows.

    Args:
        runs: of all arms and protocols.
        rows: of each run, what tells its rows, such as their labels.

    Raises:
        ValueError: two runs of one seed differ.
    """
    first: dict[int, np.ndarray] = {}
    for run, own in zip(runs, rows, strict=True):
        if not np.array_equal(first.setdefault(run.seed, own), own):
            raise ValueError(
                f"{run.folder} was judged on other test rows than {runs[0].folder}: give all arms one split."
            )


def over_arms(metrics: Mapping[int, Metrics], name: str, arms: Sequence[str]) -> Float[np.ndarray, "seeds arms"]:
    """`<name>@<arm>` of every seed and arm."""
    return np.stack([over_seeds(metrics, f"{name}@{arm}") for arm in arms], axis=1)


def fine_tuning_losses(runs: Sequence[Run]) -> list[Series]:
    """The loss of each arm while it is fine-tuned, the mean over its seeds; dashed, that on the split val."""
    tuned = defaultdict(list)
    for run in runs:
        arm, _, protocol = run.name.partition("/")
        if protocol == "finetune":
            tuned[arm].append(run)
    found = []
    for arm in arms_of(runs):
        found += _pair(arm, tuned[arm], ["finetune/loss"], ["validation/loss"])
    return found


def training_losses(runs: Sequence[Run]) -> list[Figure]:
    """The losses of a training that were validated too, the mean over its seeds; none if there are none.

    A pool of many members has its mean loss.
    """
    names = sorted(set.intersection(*(run.logged() for run in runs))) if runs else []
    validated = [name.removeprefix("validation/") for name in names if name.startswith("validation/")]
    both = [name for name in validated if f"pretrain/{name}" in names]
    groups = {name: [name] for name in both} if len(both) <= FEW else {f"mean of {len(both)}": both}
    found = []
    for label, group in groups.items():
        found += _pair(label, runs, [f"pretrain/{name}" for name in group], [f"validation/{name}" for name in group])
    if not found:
        return []
    caption = "Mean over seeds of the loss on training batches and, dashed, on the split val."
    return [Figure("training", "Loss while training", caption, "step", "loss", found)]


def _pair(label: str, runs: Sequence[Run], trained: Sequence[str], validated: Sequence[str]) -> list[Series]:
    """The curves in training and validation, each the mean over runs and names, or only the first."""
    found = []
    for name, kind, columns in ((label, "line", trained), (f"{label}, validation", "dashed", validated)):
        curves = [run.history(column) for run in runs for column in columns]
        steps, values = curves[0][0], np.mean([values for _, values in curves], axis=0)
        if len(steps):
            found.append(Series(name, kind, steps.tolist(), values.round(6).tolist()))
    return found
