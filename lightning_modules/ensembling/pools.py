"""Pools of independently trained classifiers, and ways of combining their stored predictions.

Shared by the papers that average models instead of enlarging them. A pool never runs a network: it reads the logits
that training left behind, so that thousands of combinations cost seconds. Imports no torch.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from lightning_modules.metrics import classification
from lightning_modules.runs import Run, Series

RULES = ("logits", "probabilities", "vote")


@dataclass(frozen=True)
class Member:
    """One trained network: what it is, and what one sample costs it (MACs by input resolution)."""

    name: str
    family: str
    width: int | float | None
    depth: int | None
    copy: int
    params: int
    macs: dict[str, int]
    native: str

    @property
    def architecture(self) -> str:
        """Name without the copy number: copies of one architecture differ in their seed alone."""
        return self.name.rpartition("#")[0] or self.name


@dataclass(frozen=True)
class Pool:
    """Members and their logits on the validation and the test split of one seed.

    `logits[(member, resolution)][split]` is float32 (samples, classes); `labels[split]` is int64.
    """

    seed: int
    num_classes: int
    members: tuple[Member, ...]
    labels: dict[str, np.ndarray]
    logits: dict[tuple[str, str], dict[str, np.ndarray]] = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse predictions that would give numbers without meaning."""
        if not self.members:
            raise ValueError(f"seed {self.seed}: the pool has no members; train at least one.")
        for split in ("val", "test"):
            if len(self.labels.get(split, ())) == 0:
                raise ValueError(
                    f"seed {self.seed}: the {split} split is empty. Thresholds and members are chosen on val and "
                    "reported on test, so both need samples."
                )
        names = [member.name for member in self.members]
        if len(set(names)) < len(names):
            raise ValueError(f"seed {self.seed}: member names are not unique: {sorted(names)}.")
        for member in self.members:
            if (member.name, member.native) not in self.logits:
                raise ValueError(f"{member.name} has no logits at its native resolution {member.native}.")
        for (name, resolution), by_split in self.logits.items():
            for split, labels in self.labels.items():
                if split in by_split:
                    _check_logits(f"{name} at {resolution}, {split}", by_split[split], len(labels), self.num_classes)
                elif resolution == self.member(name).native:
                    raise ValueError(f"{name} has no logits on the {split} split.")

    @cached_property
    def _by_name(self) -> dict[str, Member]:
        return {member.name: member for member in self.members}

    def member(self, name: str) -> Member:
        """A member by its name."""
        if name not in self._by_name:
            raise ValueError(f"no member {name!r} in the pool; there are {sorted(self._by_name)}.")
        return self._by_name[name]

    @cached_property
    def architectures(self) -> dict[str, tuple[Member, ...]]:
        """Copies by architecture, architectures from cheap to dear, copies in order of their number."""
        copies: dict[str, list[Member]] = {}
        for member in sorted(self.members, key=lambda m: (m.macs[m.native], m.architecture, m.copy)):
            copies.setdefault(member.architecture, []).append(member)
        return {name: tuple(members) for name, members in copies.items()}

    @cached_property
    def macs(self) -> dict[str, int]:
        """MACs per sample of each architecture at its native resolution, from cheap to dear."""
        return {name: copies[0].macs[copies[0].native] for name, copies in self.architectures.items()}

    def scores(self, name: str, split: str, resolution: str | None = None) -> Float[np.ndarray, "samples classes"]:
        """Logits of a member; its native resolution unless told."""
        key = (name, resolution or self.member(name).native)
        if split not in self.logits.get(key, {}):
            known = sorted({r for n, r in self.logits if n == name})
            raise ValueError(f"{name} has no {split} logits at resolution {key[1]}; it has {known}.")
        return self.logits[key][split]

    def accuracies(self, split: str) -> dict[str, float]:
        """Mean top-1 share over the copies of each architecture, from cheap to dear."""
        return {
            name: float(
                np.mean([classification.accuracy(self.scores(m.name, split), self.labels[split]) for m in copies])
            )
            for name, copies in self.architectures.items()
        }


def read_pool(run: Run) -> Pool:
    """The pool that one run holds (`facts.json` and `predictions.safetensors`).

    Raises:
        ValueError: an altered file, NaN logits, members that saw different samples or classes, an empty split.
    """
    members = tuple(
        Member(**{name: entry.get(name) for name in Member.__dataclass_fields__}) for entry in run.facts["members"]
    )
    native = {member.name: member.native for member in members}
    labels: dict[str, np.ndarray] = {}
    logits: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for key, array in run.predictions().items():
        kind, _, rest = key.partition("/")
        if kind == "labels":
            labels[rest] = array
        elif kind == "logits":
            name, _, split = rest.rpartition("/")
            split, _, resolution = split.partition("@")
            if name not in native:
                raise ValueError(f"{run.folder} holds logits of {name!r}, which facts.json does not list.")
            logits.setdefault((name, resolution or native[name]), {})[split] = array
    return Pool(run.seed, run.facts["num_classes"], members, labels, logits)


def join_pools(pools: Sequence[Pool]) -> Pool:
    """One pool from several of the same seed, for members that were trained in different runs.

    Raises:
        ValueError: the runs differ in seed, in classes or in the labels' order, so their logits cannot be averaged.
    """
    first = pools[0]
    for other in pools[1:]:
        if other.seed != first.seed:
            raise ValueError(f"pools of seed {first.seed} and {other.seed} split the data differently: join one seed.")
        if other.num_classes != first.num_classes:
            raise ValueError(
                f"members with {first.num_classes} and with {other.num_classes} classes cannot be averaged: train all "
                "on the same label set."
            )
        for split, labels in first.labels.items():
            if not np.array_equal(labels, other.labels.get(split)):
                raise ValueError(
                    f"seed {first.seed}: the {split} labels of two runs differ, so row i is not one sample in both. "
                    "Store the predictions in the order of one split, without shuffling."
                )
    members = tuple(member for pool in pools for member in pool.members)
    return Pool(
        first.seed,
        first.num_classes,
        members,
        first.labels,
        {key: by_split for pool in pools for key, by_split in pool.logits.items()},
    )


def read_pools(runs: Sequence[Run]) -> list[Pool]:
    """One pool per seed, in order of the seeds; runs of one seed are joined.

    Raises:
        ValueError: no runs, or runs whose pools cannot be compared.
    """
    if not runs:
        raise ValueError("there are no runs to evaluate: list seeds in params.yaml and run the training stage.")
    by_seed: dict[int, list[Pool]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, []).append(read_pool(run))
    pools = [join_pools(by_seed[seed]) for seed in sorted(by_seed)]
    for pool in pools[1:]:
        if list(pool.architectures) != list(pools[0].architectures):
            raise ValueError(
                f"seed {pool.seed} has architectures {list(pool.architectures)}, seed {pools[0].seed} has "
                f"{list(pools[0].architectures)}: paired comparison over seeds needs the same ones. Train again."
            )
    return pools


def combine(
    logits: Float[np.ndarray, "members samples classes"],
    rule: str = "logits",
    weights: Sequence[float | int] | None = None,
) -> Float[np.ndarray, "samples classes"]:
    """Log probabilities of an ensemble.

    `logits`: softmax of the mean logits, the normalised geometric mean of the members' probabilities.
    `probabilities`: arithmetic mean of the probabilities. `vote`: share of members that predict a class; tied classes
    are ordered by their mean probability (the two are mixed as (votes + mean probability / 2) / (members + 1/2), which
    no vote can be outweighed by and which stays a distribution). `weights` are per member and need not sum to 1.

    Raises:
        ValueError: an unknown rule, or weights that do not fit.
    """
    members = len(logits)
    share = _normalised(weights, members)
    if rule == "logits":
        return classification.log_softmax(np.tensordot(share, logits.astype(np.float64), axes=1))
    log_probabilities = classification.log_softmax(logits)
    if rule == "probabilities":
        top = log_probabilities.max(axis=0)
        return np.log(np.tensordot(share, np.exp(log_probabilities - top), axes=1)) + top
    if rule == "vote":
        if weights is not None:
            raise ValueError("weights have no effect with rule 'vote'; use 'probabilities' or 'logits'.")
        votes = (logits.argmax(axis=-1)[..., None] == np.arange(logits.shape[-1])).sum(axis=0)
        return np.log((votes + np.exp(log_probabilities).mean(axis=0) / 2) / (members + 0.5))
    raise ValueError(f"rule ({rule!r}) must be one of {RULES}.")


def greedy_selection(
    logits: Float[np.ndarray, "members samples classes"],
    labels: Int[np.ndarray, " samples"],
    size: int,
    rule: str = "logits",
) -> tuple[int, ...]:
    """Members chosen one by one, with replacement, each to lower the validation NLL most (Caruana et al. 2004).

    Returns:
        The prefix of the choices with the smallest NLL (at most `size`); a member listed twice counts twice. Equal
        candidates: the lower index.

    Raises:
        ValueError: `size` below 1 or a rule without a likelihood that grows member by member.
    """
    if size < 1:
        raise ValueError(f"size ({size}) must be at least 1.")
    if rule not in ("logits", "probabilities"):
        raise ValueError(
            f"rule ({rule!r}) must be 'logits' or 'probabilities': selection adds members to a running sum."
        )
    log_probabilities = classification.log_softmax(logits)
    terms = log_probabilities if rule == "logits" else np.exp(log_probabilities)
    total, chosen, losses = np.zeros_like(terms[0]), [], []
    rows = np.arange(len(labels))
    for step in range(1, size + 1):
        mean = (total + terms) / step
        log_mean = classification.log_softmax(mean) if rule == "logits" else np.log(np.maximum(mean, 1e-300))
        candidates = -log_mean[:, rows, labels].mean(axis=-1)
        chosen.append(int(candidates.argmin()))
        losses.append(candidates.min())
        total = total + terms[chosen[-1]]
    return tuple(chosen[: int(np.argmin(losses)) + 1])


def fit_temperature(logits: Float[np.ndarray, "samples classes"], labels: Int[np.ndarray, " samples"]) -> float:
    """Temperature in [0.05, 20] that minimises the NLL of logits / temperature (Guo et al. 2017, section 4.2).

    Fit it on validation predictions. The predicted class never changes; confidences become comparable between members.
    """
    from scipy.optimize import minimize_scalar

    scaled = logits.astype(np.float64)
    result = minimize_scalar(
        lambda log_t: classification.negative_log_likelihood(scaled / math.exp(log_t), labels),
        bounds=(math.log(0.05), math.log(20.0)),
        method="bounded",
        options={"xatol": 1e-5},
    )
    return float(math.exp(result.x))


def interpolate_log_macs(
    macs: Sequence[float | int] | np.ndarray, values: Sequence[float | int] | np.ndarray, at: float | int | np.ndarray
) -> float | np.ndarray:
    """Values between measured models, linear in log MACs.

    Raises:
        ValueError: `at` outside the measured ladder: a curve continued beyond its ends would be a guess.
    """
    order = np.argsort(macs, kind="stable")
    ladder = np.asarray(macs, dtype=np.float64)[order]
    if np.any(np.asarray(at) < ladder[0]) or np.any(np.asarray(at) > ladder[-1]):
        raise ValueError(f"{at} MACs lie outside the measured models, {ladder[0]:.0f} to {ladder[-1]:.0f} MACs.")
    result = np.interp(np.log(at), np.log(ladder), np.asarray(values, dtype=np.float64)[order])
    return float(result) if np.ndim(at) == 0 else result


def single_envelope(
    macs: Sequence[float | int] | np.ndarray, values: Sequence[float | int] | np.ndarray, at: float | int | np.ndarray
) -> float | np.ndarray:
    """Best single model up to a cost: the running maximum over the ladder, linear in log MACs in between.

    A coarse ladder without interpolation flatters committees; the maximum lets a larger budget fall back on a smaller
    model. Both favour the single models.
    """
    order = np.argsort(macs, kind="stable")
    best = np.maximum.accumulate(np.asarray(values, dtype=np.float64)[order])
    return interpolate_log_macs(np.asarray(macs)[order], best, at)


def pareto_front(macs: Float[np.ndarray, " points"], values: Float[np.ndarray, " points"]) -> Int[np.ndarray, " front"]:
    """Indices of the points that no cheaper or equally dear point reaches or exceeds in value, from cheap to dear."""
    order = np.argsort(macs, kind="stable")
    best = np.maximum.accumulate(values[order])
    rising = order[np.concatenate([[True], best[1:] > best[:-1]])]  # few are left, and only they need the exact order
    rising = rising[np.lexsort((-values[rising], macs[rising]))]
    best = np.maximum.accumulate(values[rising])
    return rising[np.concatenate([[True], best[1:] > best[:-1]])]


def subsets(size: int, k: int, limit: int = 32, seed: int = 0) -> list[tuple[int, ...]]:
    """All k-subsets of `size` copies where there are at most `limit`, else `limit` different random ones.

    Raises:
        ValueError: more members asked for than there are copies.
    """
    if not 1 <= k <= size:
        raise ValueError(f"a subset of {k} cannot be drawn from {size} copies: train more copies or lower k.")
    if math.comb(size, k) <= limit:
        return list(itertools.combinations(range(size), k))
    rng = np.random.default_rng(seed)
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < limit:
        drawn.add(tuple(sorted(rng.choice(size, k, replace=False).tolist())))
    return sorted(drawn)


def subset_accuracy(
    logits: Float[np.ndarray, "copies samples classes"],
    labels: Int[np.ndarray, " samples"],
    k: int,
    rule: str = "logits",
    limit: int = 32,
) -> float:
    """Top-1 share of a k-member ensemble, averaged over the k-subsets of the copies (see `subsets`)."""
    chosen = subsets(len(logits), k, limit)
    return float(np.mean([classification.accuracy(combine(logits[list(c)], rule), labels) for c in chosen]))


def over_seeds(metrics: Mapping[int, Mapping[str, float]], name: str) -> Float[np.ndarray, " seeds"]:
    """One metric of all seeds, in the seeds' order."""
    return np.array([metrics[seed][name] for seed in sorted(metrics)])


def seed_series(
    name: str,
    kind: str,
    x: Sequence[float | int] | np.ndarray,
    values: Float[np.ndarray, "seeds points"],
    labels: Sequence[str] | None = None,
) -> Series:
    """A series of a figure: mean over seeds, with the 95 % interval where there are at least two."""
    intervals = [classification.seed_interval(column) for column in values.T] if len(values) > 1 else None
    return Series(
        name=name,
        kind=kind,
        x=[round(float(v), 6) for v in x],
        y=[round(float(v), 6) for v in values.mean(axis=0)],
        low=[round(low, 6) for low, _ in intervals] if intervals else None,
        high=[round(high, 6) for _, high in intervals] if intervals else None,
        labels=list(labels) if labels else None,
    )


def _check_logits(what: str, logits: np.ndarray, samples: int, classes: int) -> None:
    if logits.ndim != 2 or logits.shape[1] != classes:
        raise ValueError(
            f"{what}: logits have shape {logits.shape}, expected ({samples}, {classes}) as for all members."
        )
    if len(logits) != samples:
        raise ValueError(
            f"{what}: {len(logits)} rows of logits for {samples} labels. Members must answer the same samples in the "
            "same order."
        )
    if bad := int((~np.isfinite(logits)).any(axis=1).sum()):
        raise ValueError(
            f"{what}: {bad} rows of logits are NaN or infinite: this member's training diverged. Lower its learning "
            "rate or remove it from the pool."
        )


def _normalised(weights: Sequence[float | int] | None, members: int) -> np.ndarray:
    if weights is None:
        return np.full(members, 1.0 / members)
    array = np.asarray(weights, dtype=np.float64)
    if array.shape != (members,) or (array < 0).any() or array.sum() <= 0:
        raise ValueError(f"weights {list(weights)} must be {members} numbers >= 0, one per member, not all 0.")
    return array / array.sum()
