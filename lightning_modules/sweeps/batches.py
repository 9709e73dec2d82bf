"""A study in batches: ask for a batch, evaluate it anywhere, tell it in order. The same trials on every machine.

The result of an asynchronous study depends on which trial finishes first. Here a suggestion depends only on the trials
of earlier batches, and each batch has a sampler that is seeded by the number of trials so far. So the result is a pure
function of the settings and the search. Evaluated trials are stored on disk: if the study is killed and started again,
they are read from there, and only the running trials are lost.
"""

import json
import multiprocessing
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import optuna

from lightning_modules.files import digest, replace_file, write_json
from lightning_modules.processes import die_with_parent
from lightning_modules.sweeps.search import CachedSearch, Configuration, Finished, Outcome

optuna.logging.set_verbosity(optuna.logging.WARNING)  # it tells of every trial, and there are thousands


def run(
    search: CachedSearch, *, trials: int, batch: int, seed: int, workers: int, memory: Path
) -> tuple[optuna.Study, list[Finished]]:
    """Run a study of `trials` trials.

    Args:
        search: what is searched.
        trials: number of trials.
        batch: trials that are asked for together; part of the result, as the sampler's seed is.
        seed: of the sampler.
        workers: processes that evaluate; no part of the result.
        memory: folder of evaluated configurations, named by all that can change an evaluation.

    Raises:
        ValueError: fewer than one trial, batch or worker.
    """
    for name, value in (("trials", trials), ("batch", batch), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1.")
    study = optuna.create_study(directions=search.directions)
    name_metrics(study, search.metric_names)
    finished: list[Finished] = []
    with _evaluators(search, workers) as each:
        while len(finished) < trials:
            study.sampler = sampler(seed + len(finished), startup=2 * batch)
            asked = [_ask(study, search, len(finished) + k) for k in range(min(batch, trials - len(finished)))]
            outcomes = _remembered([config for _, config in asked], memory, each)
            for (trial, config), outcome in zip(asked, outcomes, strict=True):
                record(trial, outcome)
                study.tell(trial, outcome.values)
                finished.append(Finished(trial.number, config, outcome))
    return study, finished


def publish(study: optuna.Study, folder: Path, name: str) -> None:
    """Copy a finished study to the journal `<folder>/<name>.journal`, where `make dashboard` finds it."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    with replace_file(folder / f"{name}.journal") as path:
        storage = JournalStorage(JournalFileBackend(str(path)))
        copy = optuna.create_study(study_name=name, storage=storage, directions=study.directions)
        name_metrics(copy, study.metric_names)
        copy.add_trials(study.get_trials(deepcopy=False))


def sampler(seed: int | None, startup: int = 10) -> optuna.samplers.BaseSampler:
    """The sampler of every study: TPE, which takes trials that are still running as bad ones and so spreads a batch."""
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)


def name_metrics(study: optuna.Study, names: Sequence[str]) -> None:
    """Tell what the objectives are, for the dashboard."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(names))


def record(trial: optuna.Trial, outcome: Outcome) -> None:
    """Constraints and facts of an outcome, for the sampler and for whoever looks at the study."""
    for name, value in outcome.constraints.items():
        trial.set_constraint(name, value)
    for name, value in outcome.facts.items():
        trial.set_user_attr(name, value)


def _ask(study: optuna.Study, search: CachedSearch, slot: int) -> tuple[optuna.Trial, Configuration]:
    study.enqueue_trial(search.start(slot))
    trial = study.ask()
    return trial, search.suggest(trial)


def _remembered(
    configs: list[Configuration], memory: Path, each: Callable[[list[Configuration]], Iterator[Outcome]]
) -> list[Outcome]:
    """The outcome of every configuration; those that are not on disk yet are evaluated and put there."""
    paths = [memory / f"{digest(c)}.json" for c in configs]
    new = {path: config for path, config in zip(paths, configs, strict=True) if not path.exists()}
    for path, outcome in zip(new, each(list(new.values())), strict=True):
        write_json(path, asdict(outcome))
    return [_read(path) for path in paths]


def _read(path: Path) -> Outcome:
    stored = json.loads(path.read_text())
    return Outcome(tuple(stored["values"]), stored["constraints"], stored["facts"])


@contextmanager
def _evaluators(search: CachedSearch, workers: int) -> Iterator[Callable[[list[Configuration]], Iterator[Outcome]]]:
    """A `map` of the search's evaluation, in this process or in forked ones that already hold the predictions."""
    if workers == 1:
        yield lambda configs: map(search.evaluate, configs)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, initializer=_adopt, initargs=(search,)) as pool:
        yield lambda configs: pool.map(_evaluate, configs)


def _adopt(search: CachedSearch) -> None:
    die_with_parent()
    global _search
    _search = search


def _evaluate(config: Configuration) -> Outcome:
    return _search.evaluate(config)
