"""Pools of any trained classifiers: a member is a trained seed of an arm whose run holds logits and labels.

The arms were trained by themselves, so a pool of one seed has as many members as there are arms with that seed. Read
`read_pools` first. Imports no torch.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field

from lightning_modules.ensembling.pools import Member, Pool, join_pools, read_pool
from lightning_modules.runs import Run

BOTH = ("val", "test")
HALVES = "Half of the test rows chose configurations and thresholds, and the other half is reported."
COST = "macs_per_"  # a fact such as `macs_per_clip`: what one sample costs
Macs = Annotated[int, Field(ge=1)]
NATIVE = "as trained"
Answers = tuple[Float[np.ndarray, "samples members classes"], Int[np.ndarray, " samples"]]


def read_pools(
    runs: Sequence[Run],
    *,
    protocol: str | None = None,
    task: str | None = None,
    macs: Macs | dict[str, Macs] | None = None,
) -> list[Pool]:
    """One pool for each seed that all arms have, in order of the seeds.

    Most runs hold the logits of the split that is judged, and no others. Half of these rows then take the place of the
    validation rows, see `halves`: what is chosen on one half is reported on the other.

    Args:
        runs: of one arm, of several, or of a comparison. A run that is a pool itself (`members` in its facts) gives all
            its members.
        protocol: of a comparison, the trainings that count, such as `finetune`; null for all.
        task: of runs that answer several tasks, the one that counts.
        macs: multiply-adds of one sample, for all members or by `name_of` a run, where the runs do not say it
            themselves (`macs_per_...` in their facts).

    Raises:
        ValueError: no run holds such logits, one holds none, costs are not known, or members saw different rows.
    """
    chosen = of_protocol(runs, protocol)
    if not chosen:
        known = sorted({run.name.partition("/")[2] for run in runs} - {""})
        said = f" of protocol {protocol!r}; expected one of {', '.join(known) or 'null'}" if protocol else ""
        raise ValueError(f"there are no runs{said}: a committee needs trained classifiers, which `make repro` trains.")
    names = {run: name_of(run, chosen) for run in chosen}
    given = macs if isinstance(macs, Mapping) else dict.fromkeys(names.values(), macs)
    by_seed: dict[int, list[Run]] = {}
    for run in chosen:
        by_seed.setdefault(run.seed, []).append(run)
    every = set(names.values())
    shared = [seed for seed, own in sorted(by_seed.items()) if {names[run] for run in own} == every]
    if not shared:
        raise ValueError(f"the arms {', '.join(sorted(every))} have no seed in common: train them with the same seeds.")

    def read(run: Run) -> Pool:
        return read_pool(run) if "members" in run.facts else _pool(run, names[run], task, given.get(names[run]))

    return [join_pools([read(run) for run in by_seed[seed]]) for seed in shared]


def of_protocol(runs: Sequence[Run], protocol: str | None) -> list[Run]:
    """Of the trainings of a comparison, those of one protocol; null for all."""
    return [run for run in runs if protocol in (None, run.name.partition("/")[2])]


def name_of(run: Run, among: Sequence[Run]) -> str:
    """The arm of a run; with its protocol, `<arm>/<protocol>`, if the others have several."""
    if not run.name:
        return run.folder.parents[1].name
    arm, _, _ = run.name.partition("/")
    several = len({other.name.partition("/")[2] for other in among if other.name}) > 1
    return run.name if several else arm


def cost_of(run: Run) -> int | None:
    """Multiply-adds of one sample, as the run itself says; None if it does not."""
    told = [value for key, value in run.facts.items() if key.startswith(COST)]
    return int(told[0]) if len(told) == 1 else None


def is_halved(run: Run, task: str | None = None) -> bool:
    """Whether its rows are divided into halves, because it did not answer both validation rows and test rows."""
    return "members" not in run.facts and not set(BOTH) <= set(answers(run, task))


def _pool(run: Run, name: str, task: str | None, macs: int | None) -> Pool:
    """The networks of one run as copies of one architecture; what it says of costs is about all of them together.

    Raises:
        ValueError: no logits with labels, or nobody says what a sample costs.
    """
    found = answers(run, task)
    by_split = found if set(BOTH) <= set(found) else halves(*next(iter(found.values())))
    members, classes = by_split["val"][0].shape[1:]
    told = cost_of(run)
    if told is None and macs is None:
        raise ValueError(
            f"{run.folder} does not say what a sample costs, and macs is null; expected multiply-adds there, such as "
            "`macs: 3688960`"
        )
    cost = macs if told is None else told // members
    shape = {"family": "trained", "width": None, "depth": None, "params": run.facts.get("parameters", 0) // members}
    own = tuple(Member(f"{name}#{k}", copy=k, macs={NATIVE: cost}, native=NATIVE, **shape) for k in range(members))
    logits = {
        (member.name, NATIVE): {split: np.ascontiguousarray(by_split[split][0][:, k]) for split in BOTH}
        for k, member in enumerate(own)
    }
    return Pool(run.seed, classes, own, {split: by_split[split][1] for split in BOTH}, logits)


def answers(run: Run, task: str | None = None) -> dict[str, Answers]:
    """Logits and labels of a run by split: `logits[/<split>]` and `labels[/<split>]`, or the same after `<task>/`.

    Raises:
        ValueError: there are none, of no such task, or of several tasks; or rows have more than one label.
    """
    arrays = run.predictions()
    tasks: dict[str, dict[str, Answers]] = {}
    for key, logits in arrays.items():
        parts = key.split("/")
        if "logits" not in parts:
            continue
        place = parts.index("logits")
        labels = arrays.get("/".join([*parts[:place], "labels", *parts[place + 1 :]]))
        if labels is None or labels.ndim != 1 or len(labels) != len(logits) or logits.ndim not in (2, 3):
            continue
        stacked = logits[:, None] if logits.ndim == 2 else logits
        tasks.setdefault("/".join(parts[:place]), {})["/".join(parts[place + 1 :])] = stacked, labels.astype(np.int64)
    if not tasks:
        held = f"it has {', '.join(sorted(arrays)[:6])}" if arrays else "it has no predictions at all"
        raise ValueError(
            f"{run.folder} holds no logits with one label a row, which a committee averages ({held}). Take an arm that "
            "classifies: of a pre-trained encoder, the comparison that fine-tunes it."
        )
    if task not in tasks and (task is not None or len(tasks) > 1):
        raise ValueError(f"{run.folder} has logits of the tasks {sorted(tasks)}; task is {task}, choose one.")
    return tasks[task if task is not None else next(iter(tasks))]


def halves(logits: Float[np.ndarray, "samples members classes"], labels: Int[np.ndarray, " samples"]) -> dict:
    """Two halves of the judged rows, with equal shares of each class: `val` to choose on, `test` to report.

    In the order of their labels, rows go to the two in turn, so that every arm of a seed divides its rows alike.
    """
    order = np.argsort(labels, kind="stable")
    return {
        split: (logits[rows], labels[rows])
        for split, rows in zip(BOTH, (np.sort(order[start::2]) for start in (0, 1)), strict=True)
    }
