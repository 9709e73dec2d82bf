"""Functions that every comparison of arms needs; runs are named `<arm>/<protocol>`. Imports no torch."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from lightning_modules.ensembling.pools import over_seeds
from lightning_modules.runs import Run

Metrics = dict[str, float]


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
