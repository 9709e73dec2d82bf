"""Committees of any trained classifiers, evaluated: the search of `make sweep` as a row of `evaluate`."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from lightning_modules.ensembling import stored
from lightning_modules.runs import Evaluation, Run
from lightning_modules.settings import Count, Natural, NonNegative
from lightning_modules.sweeps import batches
from lightning_modules.sweeps.search import CachedSearch


def evaluate(
    runs: Sequence[Run],
    dataset: str,
    *,
    protocol: str | None = None,
    task: str | None = None,
    macs: stored.Macs | None = None,
    largest: Count,
    longest: Count,
    edges: dict[str, Count],
    margin: NonNegative,
    trials: Count,
    batch: Count,
    seed: Natural,
) -> Evaluation:
    """Single classifiers, ensembles and cascades of the arms of a row, by accuracy and multiply-adds.

    Args:
        runs: of one arm or of a comparison.
        dataset: first part of every metric's name.
        protocol: see `stored.read_pools`, as `task` and `macs`.
        task: of networks that answer several, the one that counts.
        macs: of a sample, where the runs do not say it.
        largest: most members of an ensemble.
        longest: most models of a cascade.
        edges: candidate thresholds per stage of a cascade, by its number of models from 3 on.
        margin: standard errors by which a cascade's own constraint must hold on the rows that choose.
        trials: a third for each kind.
        batch: trials asked for together.
        seed: of the sampler.

    Raises:
        ValueError: see `stored.read_pools`.
    """
    members = {"protocol": protocol, "task": task, "macs": macs}
    halved = any(stored.is_halved(run, task) for run in stored.of_protocol(runs, protocol))
    limits = {"largest": largest, "longest": longest, "edges": edges, "margin": margin}
    search = CachedSearch(stored.read_pools(runs, **members), **limits, rows=stored.HALVES if halved else "")
    asked = {"trials": trials, "batch": batch, "seed": seed}
    with TemporaryDirectory() as memory:
        _, finished = batches.run(search, **asked, workers=1, memory=Path(memory))
    return search.report(finished, dataset, members | limits | asked)
