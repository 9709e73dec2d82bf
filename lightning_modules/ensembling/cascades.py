"""Cascades over stored predictions: confidence, the exact threshold search, and selection on validation data.

A cascade runs models in order and stops at the first whose output is confident enough. The search is separate from the
paper's measurements because it is exact arithmetic that is tested and timed on its own. Imports no torch.

Conventions: a sample leaves at stage k iff confidence_k >= threshold_k; the last stage takes all that are left;
threshold -inf lets all samples leave, +inf none. Thresholds lie half-way between two observed confidences, so that a
rounding error of the last bit, on another machine or in another order of addition, moves no sample to another stage.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from lightning_modules.ensembling.pools import Member, pareto_front
from lightning_modules.metrics.classification import log_softmax

CONFIDENCES = ("max_probability", "logit_gap", "probability_gap", "negative_entropy")
OUTPUTS = ("running", "last", "weighted")
LARGEST_GRID = 20_000_000
KEPT = 256  # sequences whose operating points are kept: neighbouring budgets look at the same ones

View = tuple[str, str]
"""A member at an input resolution: (name, resolution)."""


def confidence(scores: Float[np.ndarray, "samples classes"], kind: str) -> Float[np.ndarray, " samples"]:
    """How sure a prediction is, larger is surer (section 3 of the paper), in float64.

    `max_probability` and `probability_gap` (largest minus second largest) are given as value - 1, in [-1, 0]: computed
    from the *other* classes' mass they resolve 1 - 1e-300 from 1, where the value itself is 1.0 for every saturated
    row and leaves the samples without an order. `logit_gap` in [0, inf); `negative_entropy` in nats, [-log C, 0].

    Raises:
        ValueError: an unknown kind.
    """
    top = scores.argmax(axis=-1)[:, None]
    shifted = scores.astype(np.float64)
    shifted -= np.take_along_axis(shifted, top, axis=-1)
    others = np.exp(shifted)
    np.put_along_axis(others, top, 0.0, axis=-1)
    mass = others.sum(axis=-1)
    if kind == "max_probability":
        return -mass / (1.0 + mass)
    if kind == "probability_gap":
        return -(mass + others.max(axis=-1)) / (1.0 + mass)
    if kind == "negative_entropy":
        return (others * shifted).sum(axis=-1) / (1.0 + mass) - np.log1p(mass)
    if kind == "logit_gap":
        np.put_along_axis(shifted, top, -np.inf, axis=-1)
        return -shifted.max(axis=-1)
    raise ValueError(f"confidence ({kind!r}) must be one of {CONFIDENCES}.")


class StageTable:
    """Confidence and correctness of every prefix of every sequence, and whom it defers, each computed once.

    The running average after k models depends on which models ran and not on their order, so it is kept by the sorted
    prefix. Who is deferred depends on the order, and sequences with the same beginning share it. `average` is `logits`
    or `probabilities`; `output` is `running` (the paper's average of all models so far), `last` (the newest model
    alone) or `weighted` (running, with `weights` per view).
    """

    def __init__(
        self,
        scores: Mapping[View, Float[np.ndarray, "samples classes"]],
        labels: Int[np.ndarray, " samples"],
        *,
        confidence: str = "max_probability",
        average: str = "logits",
        output: str = "running",
        weights: Mapping[View, float] | None = None,
    ) -> None:
        if average not in ("logits", "probabilities"):
            raise ValueError(f"average ({average!r}) must be 'logits' or 'probabilities'.")
        if output not in OUTPUTS:
            raise ValueError(f"output ({output!r}) must be one of {OUTPUTS}.")
        if (weights is not None) != (output == "weighted"):
            raise ValueError(f"weights go with output 'weighted' and with no other (output is {output!r}).")
        self.scores, self.labels, self.confidence_kind = scores, labels, confidence
        self.average, self.mode, self.weights = average, output, weights
        self._confident: dict[tuple[View, ...], np.ndarray] = {}
        self._correct: dict[tuple[View, ...], np.ndarray] = {}
        self.deferral, self._unsure = cache(self._deferral), cache(self._less_confident)
        self.cuts = cache(lambda first: cuts(self.stage(first)[0]))
        self.points = lru_cache(KEPT)(self._points)

    def output(self, prefix: Sequence[View]) -> Float[np.ndarray, "samples classes"]:
        """What the cascade answers after the models of `prefix`: logits or log probabilities, float64."""
        views = prefix[-1:] if self.mode == "last" else prefix
        total = np.zeros(self.scores[views[0]].shape)
        for view in views:
            scores = self.scores[view] if self.average == "logits" else np.exp(log_softmax(self.scores[view]))
            total += scores if self.weights is None else self.weights[view] * scores.astype(np.float64)
        mean = total / (len(views) if self.weights is None else sum(self.weights[view] for view in views))
        return mean if self.average == "logits" else np.log(np.maximum(mean, 1e-300))

    def stage(self, prefix: Sequence[View]) -> tuple[Float[np.ndarray, " samples"], Bool[np.ndarray, " samples"]]:
        """Confidence and correctness after the models of `prefix`."""
        key = self._key(prefix)
        if key not in self._confident:
            output = self.output(key)
            self._confident[key] = confidence(output, self.confidence_kind)
            self._correct[key] = output.argmax(axis=-1) == self.labels
        return self._confident[key], self._correct[key]

    def correct(self, prefix: Sequence[View]) -> Bool[np.ndarray, " samples"]:
        """Correctness after the models of `prefix`, without the confidence, which the last stage does not need."""
        key = self._key(prefix)
        if key not in self._correct:
            self._correct[key] = self.output(key).argmax(axis=-1) == self.labels
        return self._correct[key]

    def _key(self, prefix: Sequence[View]) -> tuple[View, ...]:
        return tuple(prefix[-1:]) if self.mode == "last" else tuple(sorted(prefix))

    def stages(
        self, views: Sequence[View]
    ) -> tuple[Float[np.ndarray, "thresholds samples"], Bool[np.ndarray, "stages samples"]]:
        """Confidence of every stage but the last, correctness of all stages."""
        confident = [self.stage(views[: k + 1])[0] for k in range(len(views) - 1)]
        correct = [self.correct(views[: k + 1]) for k in range(len(views))]
        return np.array(confident).reshape(len(views) - 1, len(self.labels)), np.array(correct)

    def deferrals(self, views: tuple[View, ...], count: int) -> "list[Deferral]":
        """Who is deferred by the first model, by the first two and so on, with the edges of `threshold_edges`."""
        return [self.deferral(views[:k], count) for k in range(1, len(views))]

    def _deferral(self, prefix: tuple[View, ...], count: int) -> "Deferral":
        confident, earlier = self.stage(prefix)[0], prefix[:-1]
        edges = _quantiles(confident[self._unsure(earlier)], count)
        return defer(self.deferral(earlier, count) if earlier else None, confident, edges)

    def _less_confident(self, prefix: tuple[View, ...]) -> Int[np.ndarray, " _"]:
        """The samples among which the stage after `prefix` takes its edges, see `threshold_edges`."""
        if not prefix:
            return np.arange(len(self.labels))
        return _less_confident_half(self.stage(prefix)[0], self._unsure(prefix[:-1]))

    def _points(self, views: tuple[View, ...], macs: tuple[int, ...], count: int) -> "Grid":
        """See `operating_points`."""
        correct = self.stages(views)[1]
        if len(views) == 1:
            return Grid(correct.mean(axis=1), np.array([float(macs[0])]), np.zeros(1), ())
        if len(views) == 2:
            *found, thresholds = _every_cut(self.cuts(views[:1]), correct, macs)
            return Grid(*found, (thresholds[:, 0],))
        deferrals = self.deferrals(views, count)
        found = [_accuracy(deferrals, correct), *_costs(deferrals, macs)]
        return Grid(*(values.ravel() for values in found), deferrals[-1].edges)


class Points(NamedTuple):
    """Operating points of one sequence: accuracy (share), average MACs per sample and its standard error, thresholds.

    `thresholds` has the shape (points, stages - 1), the others (points,).
    """

    accuracy: np.ndarray
    macs: np.ndarray
    macs_error: np.ndarray
    thresholds: np.ndarray


class Grid(NamedTuple):
    """All operating points of one sequence, as in `Points`; their thresholds are all combinations of the `edges`.

    The order is that of `itertools.product(*edges)`. A search reads the thresholds of few points, so they are not
    written out.
    """

    accuracy: np.ndarray
    macs: np.ndarray
    macs_error: np.ndarray
    edges: tuple[np.ndarray, ...]

    def at(self, points: Int[np.ndarray, " _"]) -> Points:
        """Some of the points, with their thresholds."""
        places = np.unravel_index(points, [len(edges) for edges in self.edges]) if self.edges else ()
        thresholds = np.empty((len(points), len(self.edges)))
        for stage, (edges, place) in enumerate(zip(self.edges, places, strict=True)):
            thresholds[:, stage] = edges[place]
        return Points(self.accuracy[points], self.macs[points], self.macs_error[points], thresholds)


class Cuts(NamedTuple):
    """Where one threshold can part the samples: positions inside a tie of confidences cannot be reached."""

    order: Int[np.ndarray, " samples"]  # from sure to unsure
    leaving: Int[np.ndarray, " cuts"]  # how many are at or above the threshold
    thresholds: Float[np.ndarray, " cuts"]


def cuts(confident: Float[np.ndarray, " samples"]) -> Cuts:
    """All cuts, from +inf, where no one leaves, to -inf, where all do."""
    order = np.argsort(-confident, kind="stable")
    ordered = confident[order]
    leaving = np.concatenate([[0], np.flatnonzero(ordered[:-1] > ordered[1:]) + 1, [len(order)]])
    between = _half_way(ordered[leaving[1:-1]], ordered[leaving[1:-1] - 1])
    return Cuts(order, leaving, np.concatenate([[np.inf], between, [-np.inf]]))


def every_threshold(
    confident: Float[np.ndarray, " samples"], correct: Bool[np.ndarray, "2 samples"], macs: Sequence[int]
) -> Points:
    """Every distinct operating point of a two-model cascade, in one sort.

    With samples sorted from sure to unsure, leaving the first p at stage 1 has accuracy (correct_1 among the first p +
    correct_2 among the rest) / N and costs c_1 + c_2 (N - p) / N.
    """
    return _every_cut(cuts(confident), correct, macs)


def _every_cut(cuts: Cuts, correct: Bool[np.ndarray, "2 samples"], macs: Sequence[int]) -> Points:
    samples = len(cuts.order)
    first = np.concatenate([[0], np.cumsum(correct[0][cuts.order])])
    second = np.concatenate([[0], np.cumsum(correct[1][cuts.order])])
    accuracy = (first[cuts.leaving] + second[-1] - second[cuts.leaving]) / samples
    deferred = (samples - cuts.leaving) / samples
    error = macs[1] * np.sqrt(deferred * (1 - deferred) / samples)
    return Points(accuracy, macs[0] + macs[1] * deferred, error, cuts.thresholds[:, None])


def threshold_edges(
    confident: Float[np.ndarray, "thresholds samples"], count: int
) -> list[Float[np.ndarray, " edges"]]:
    """Candidate thresholds of each stage: -inf, about `count` quantiles, +inf.

    Quantiles of all samples would be too coarse for the late stages, which see only what the earlier ones defer: each
    stage takes them among the less confident half of the samples that the stage before took them among. The levels are
    (i / (count + 1))^2, denser at the unsure end, because most samples leave.

    Raises:
        ValueError: `count` below 1.
    """
    edges, unsure = [], np.arange(confident.shape[1])
    for stage in confident:
        edges.append(_quantiles(stage[unsure], count))
        unsure = _less_confident_half(stage, unsure)
    return edges


def _quantiles(confident: Float[np.ndarray, " samples"], count: int) -> Float[np.ndarray, " edges"]:
    if count < 1:
        raise ValueError(f"count ({count}) must be at least 1 threshold per stage.")
    ordered = np.sort(confident)
    ranks = ((np.arange(1, count + 1) / (count + 1)) ** 2 * len(ordered)).astype(np.int64)
    ranks = np.unique(np.clip(ranks, 1, max(len(ordered) - 1, 1)))
    ranks = ranks[ordered[ranks - 1] < ordered[np.minimum(ranks, len(ordered) - 1)]]
    between = np.unique(_half_way(ordered[ranks - 1], ordered[ranks]))
    return np.concatenate([[-np.inf], between, [np.inf]])


def _less_confident_half(confident: Float[np.ndarray, " samples"], among: Int[np.ndarray, " _"]) -> np.ndarray:
    half = max(1, len(among) // 2)
    return among[np.argpartition(confident[among], half - 1)[:half]]


class Deferral(NamedTuple):
    """The samples that the first stages of a sequence defer, for every vector of their thresholds at once.

    Each sample lies in one cell of a histogram with an axis for each stage: its bin there is the number of edges at or
    below its confidence, so the stage defers it at edge a iff bin <= a.
    """

    edges: tuple[np.ndarray, ...]
    cell: Int[np.ndarray, " samples"]  # the bins of each sample, as one index
    share: np.ndarray  # of all samples, of shape (len(edges[0]), len(edges[1]), ...)

    def total(self, values: Float[np.ndarray, " samples"]) -> np.ndarray:
        """Sum of a value over the samples that are deferred, of the shape of `share`."""
        return _deferred(self.cell, self.edges, values)


def defer(
    earlier: Deferral | None, confident: Float[np.ndarray, " samples"], edges: Float[np.ndarray, " edges"]
) -> Deferral:
    """One more stage behind those of `earlier`.

    Raises:
        ValueError: the grid would not fit into memory.
    """
    cell, edges_so_far = bins(confident, edges), (edges,)
    if earlier is not None:
        cell, edges_so_far = earlier.cell * (len(edges) + 1) + cell, (*earlier.edges, edges)
    if math.prod(len(each) + 1 for each in edges_so_far) > LARGEST_GRID:
        sizes = " x ".join(str(len(each)) for each in edges_so_far)
        raise ValueError(f"{sizes} threshold vectors exceed {LARGEST_GRID}: use fewer edges or stages.")
    return Deferral(edges_so_far, cell, _deferred(cell, edges_so_far) / len(cell))


def _deferred(cell: np.ndarray, edges: Sequence[np.ndarray], values: np.ndarray | None = None) -> np.ndarray:
    """Sum of a value, or number, of the samples in the bins 0..a_j of every axis j, by prefix sums along each axis."""
    shape = [len(each) + 1 for each in edges]
    totals = np.bincount(cell, values, minlength=math.prod(shape)).reshape(shape)
    for axis in range(len(shape)):
        totals = totals.cumsum(axis=axis)
    return totals[(slice(-1),) * len(shape)]


def every_threshold_vector(
    confident: Float[np.ndarray, "thresholds samples"],
    correct: Bool[np.ndarray, "stages samples"],
    macs: Sequence[int],
    edges: Sequence[Float[np.ndarray, " _"]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Accuracy, average MACs and their standard error for every threshold vector of a sequence at once, exactly.

    See `Deferral`, `_accuracy` and `_costs`. Cost: O(stages * samples + edges^(stages - 1)) instead of
    O(samples * edges^(stages - 1)).

    Returns:
        Three arrays of shape (len(edges[0]), len(edges[1]), ...).

    Raises:
        ValueError: the grid would not fit into memory.
    """
    deferrals: list[Deferral] = []
    for stage in zip(confident, edges, strict=True):
        deferrals.append(defer(deferrals[-1] if deferrals else None, *stage))
    return _accuracy(deferrals, correct), *_costs(deferrals, macs)


def _accuracy(deferrals: Sequence[Deferral], correct: Bool[np.ndarray, "stages samples"]) -> np.ndarray:
    """Accuracy for every threshold vector.

    If no one is deferred, the first model is right on sum(correct_1) samples. Each sample that stage k defers then
    changes this number by correct_(k+1) - correct_k. All of these are whole numbers, so the sums are exact.
    """
    right = float(correct[0].sum())
    for deferral, gain in zip(deferrals, correct[1:].astype(np.float64) - correct[:-1], strict=True):
        right = right + _expand(deferral.total(gain), len(deferrals))
    return right / correct.shape[1]


def _costs(deferrals: Sequence[Deferral], macs: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Average MACs and their standard error for every threshold vector.

    The variance of a sample's MACs follows from the shares r_k that reach stage k: who reaches a stage has reached all
    before it, so two stages covary by r_later (1 - r_earlier). No term is negative, and none is rounded away.
    """
    samples = len(deferrals[0].cell)
    cost, variance, spared = float(macs[0]), 0.0, 0.0
    for deferral, own in zip(deferrals, macs[1:], strict=True):
        share = _expand(deferral.share, len(deferrals))
        spent, unspent = own * share, own * (1 - share)  # mean MACs of this stage
        cost = cost + spent
        variance = variance + spent * (unspent + 2 * spared)
        spared = spared + unspent
    return cost, np.sqrt(variance / samples)


def bins(values: Float[np.ndarray, " samples"], edges: Float[np.ndarray, " edges"]) -> Int[np.ndarray, " samples"]:
    """Number of edges at or below each value, exactly `np.searchsorted(edges, values, side="right")`.

    Binary search of unordered values, half of whose branches are mispredicted, is most of a search's time. A table over
    the leading bits of the values (which order floats like integers, once those of negatives are flipped) gives a
    lower bound, and the few values that share a cell with an edge are moved up by comparison: 4 times faster.
    """
    finite = np.isfinite(edges)
    if len(values) < 4096 or not finite.any():
        return np.searchsorted(edges, values, side="right")
    keys = _leading_bits(edges)
    low, high = keys[finite].min(), keys[finite].max()
    below = np.searchsorted(keys, np.arange(low, high + 1), side="left")  # edges in the cells below each cell
    cells = np.clip(_leading_bits(values), low, high)
    found = below[cells - low]
    padded = np.append(edges, np.nan)  # no value is at or above the end
    rows = np.flatnonzero(values >= padded[found])
    while len(rows):
        found[rows] += 1
        rows = rows[values[rows] >= padded[found[rows]]]
    return found


def _leading_bits(values: np.ndarray) -> np.ndarray:
    """An integer of at most 18 bits that never falls as the value grows."""
    with np.errstate(over="ignore", under="ignore"):
        bits = values.astype(np.float32).view(np.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> 14


def _expand(array: np.ndarray, depth: int) -> np.ndarray:
    return array.reshape(array.shape + (1,) * (depth - array.ndim))


def _half_way(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """A threshold t with low < t <= high."""
    middle = low + (high - low) / 2
    return np.where(middle > low, middle, high)


class Front(NamedTuple):
    """The undominated operating points of one sequence on validation data."""

    views: tuple[View, ...]
    worst_case: int
    points: Points


class Cascade(NamedTuple):
    """Models in order, and the confidence at which each but the last answers alone."""

    views: tuple[View, ...]
    thresholds: tuple[float, ...]


class Trace(NamedTuple):
    """What a cascade did with every sample: stage left (from 0), MACs spent, correct or not."""

    exit_stage: np.ndarray
    macs: np.ndarray
    correct: np.ndarray


def run_cascade(table: StageTable, cascade: Cascade, macs: Mapping[View, int]) -> Trace:
    """Follow every sample of a table through a cascade with fixed thresholds."""
    confident, correct = table.stages(cascade.views)
    leaves = np.concatenate(
        [confident >= np.array(cascade.thresholds)[:, None], np.ones((1, len(table.labels)), dtype=bool)]
    )
    exit_stage = leaves.argmax(axis=0)
    spent = np.cumsum([macs[view] for view in cascade.views])
    return Trace(exit_stage, spent[exit_stage], correct[exit_stage, np.arange(len(table.labels))])


def sequences(
    macs: Mapping[str, int],
    copies: Mapping[str, int],
    *,
    longest: int,
    order: str = "cheap_first",
    budget: float = math.inf,
    worst_case: float = math.inf,
) -> list[tuple[str, ...]]:
    """Sequences of 2 to `longest` architectures, each used at most as often as it has copies.

    `order` is `any` (the paper: 8^2 + 8^3 + 8^4 = 4,672 sequences of eight EfficientNets) or `cheap_first` (costs never
    fall along the sequence). Left out: a first model beyond `budget`, a total beyond `worst_case`.

    Raises:
        ValueError: an unknown order, or `longest` below 2.
    """
    if order not in ("any", "cheap_first"):
        raise ValueError(f"order ({order!r}) must be 'any' or 'cheap_first'.")
    if longest < 2:
        raise ValueError(f"longest ({longest}) must be at least 2: one model alone is no cascade.")
    names = sorted(macs, key=lambda name: (macs[name], name))
    found = []
    for length in range(2, longest + 1):
        if order == "any":
            candidates: Iterable[tuple[str, ...]] = itertools.product(names, repeat=length)
        else:
            candidates = itertools.combinations_with_replacement(names, length)
        found += [
            sequence
            for sequence in candidates
            if macs[sequence[0]] <= budget
            and sum(macs[name] for name in sequence) <= worst_case
            and all(sequence.count(name) <= copies[name] for name in sequence)
        ]
    return found


def with_copies(
    sequence: Sequence[str], architectures: Mapping[str, Sequence[Member]], rotation: int
) -> tuple[View, ...]:
    """Members for a sequence of architectures: the j-th use of an architecture takes copy (rotation + j).

    Copies are assigned in turn and never chosen, so a cascade has no better luck with seeds than a single model.
    """
    views = []
    for position, name in enumerate(sequence):
        copies = architectures[name]
        member = copies[(rotation + list(sequence[:position]).count(name)) % len(copies)]
        views.append((member.name, member.native))
    return tuple(views)


def search(
    table: StageTable, candidates: Iterable[tuple[View, ...]], macs: Mapping[View, int], edges: Mapping[int, int]
) -> list[Front]:
    """Front of every candidate sequence, see `operating_points`; cheap sequences first.

    A sequence of one model is a front of one point, so that a selection may fall back on it.
    """
    fronts: list[Front] = []
    for views in sorted(candidates, key=lambda views: (sum(macs[v] for v in views), views)):
        points = operating_points(table, views, macs, edges)
        kept = points.at(pareto_front(points.macs, points.accuracy))
        fronts.append(Front(views, sum(macs[view] for view in views), kept))
    return fronts


def operating_points(
    table: StageTable, views: tuple[View, ...], macs: Mapping[View, int], edges: Mapping[int, int]
) -> Grid:
    """All operating points of a sequence: every threshold for two models, a grid of `edges[stages]` beyond.

    Args:
        table: the stages on validation data.
        views: the sequence.
        macs: cost of each member.
        edges: candidate thresholds of each stage, by number of stages.

    Raises:
        ValueError: `edges` says nothing of this number of stages.
    """
    if len(views) > 2 and len(views) not in edges:
        raise ValueError(f"edges {dict(edges)} names no number of thresholds for {len(views)} stages.")
    return table.points(views, tuple(macs[view] for view in views), edges.get(len(views), 0))


def _accuracy_on(
    counted: Bool[np.ndarray, " samples"], table: StageTable, views: tuple[View, ...], edges: Mapping[int, int]
) -> Float[np.ndarray, " points"]:
    """Accuracy of all operating points of a sequence if right answers count on some samples alone."""
    correct = table.stages(views)[1] & counted
    if len(views) == 1:
        return correct.mean(axis=1)
    if len(views) == 2:
        return _every_cut(table.cuts(views[:1]), correct, (0, 0)).accuracy
    return _accuracy(table.deferrals(views, edges[len(views)]), correct).ravel()


def max_accuracy(
    fronts: Sequence[Front],
    table: StageTable,
    macs: Mapping[View, int],
    edges: Mapping[int, int],
    *,
    budget: float,
    worst_case: float = math.inf,
    margin: float = 1.0,
) -> Cascade | None:
    """Most accurate cascade on validation data whose average cost stays within the budget; None if there is none.

    The cost counts with `margin` standard errors on top: an average over a small validation set would overrun the
    budget half of the time. The best of all operating points is found, the cheapest of equally accurate ones: a front,
    which knows no margin, only says how good its sequence can be at most.
    """

    def bound(front: Front) -> tuple[float, float] | None:
        within = front.points.macs.searchsorted(budget, side="right")
        return (-float(front.points.accuracy[within - 1]), 0.0) if within else None

    def best(front: Front) -> tuple[tuple[float, float], Cascade] | None:
        points = operating_points(table, front.views, macs, edges)
        allowed = np.flatnonzero(points.macs + margin * points.macs_error <= budget)
        return _first(front, points, allowed, -points.accuracy, points.macs)

    return _best([front for front in fronts if front.worst_case <= worst_case], bound, best)


def min_macs(
    fronts: Sequence[Front],
    table: StageTable,
    macs: Mapping[View, int],
    edges: Mapping[int, int],
    *,
    target: Bool[np.ndarray, " samples"],
    worst_case: float = math.inf,
    margin: float = 1.0,
) -> Cascade | None:
    """Cheapest cascade on validation data that is as accurate as `target` (correctness per sample); None if none is.

    As accurate means that the mean paired difference is at least `margin` of its standard errors: with thousands of
    operating points to choose from, the luckiest would otherwise win and lose its lead on test data. The best of all
    operating points is found, as in `max_accuracy`.
    """
    aim = float(target.mean())

    def bound(front: Front) -> tuple[float, float] | None:
        first = front.points.accuracy.searchsorted(aim)
        return (float(front.points.macs[first]), -1.0) if first < len(front.points.macs) else None

    def best(front: Front) -> tuple[tuple[float, float], Cascade] | None:
        points = operating_points(table, front.views, macs, edges)
        both = _accuracy_on(target, table, front.views, edges)
        lead = points.accuracy - aim
        variance = np.maximum(points.accuracy + aim - 2 * both - lead**2, 0.0)  # of right minus right, per sample
        allowed = np.flatnonzero(lead >= margin * np.sqrt(variance / len(target)))
        return _first(front, points, allowed, points.macs, -points.accuracy)

    return _best([front for front in fronts if front.worst_case <= worst_case], bound, best)


def _best(
    fronts: Iterable[Front],
    bound: Callable[[Front], tuple[float, float] | None],
    best: Callable[[Front], tuple[tuple[float, float], Cascade] | None],
) -> Cascade | None:
    """The cascade with the smallest key. Fronts whose bound is above the smallest key so far are not looked into."""
    bounds = [(found, index, front) for index, front in enumerate(fronts) if (found := bound(front)) is not None]
    chosen = None
    for lowest, _, front in sorted(bounds, key=lambda each: each[:2]):
        if chosen is not None and lowest > chosen[0]:
            break
        found = best(front)
        if found is not None and (chosen is None or found[0] < chosen[0]):
            chosen = found
    return None if chosen is None else chosen[1]


def _first(
    front: Front, points: Grid, allowed: Int[np.ndarray, " _"], first: np.ndarray, second: np.ndarray
) -> tuple[tuple[float, float], Cascade] | None:
    """The allowed point that is smallest by the first value, then by the second: both values, and its cascade."""
    if not len(allowed):
        return None
    equal = allowed[first[allowed] == first[allowed].min()]
    point = equal[second[equal].argmin()]
    return (float(first[point]), float(second[point])), _cascade(
        front.views, points.at(np.array([point])).thresholds[0]
    )


def _cascade(views: tuple[View, ...], thresholds: Float[np.ndarray, " _"]) -> Cascade:
    """A point as a cascade; models behind a stage that lets all samples leave are dropped."""
    kept = thresholds.tolist()
    last = [*kept, -math.inf].index(-math.inf)
    return Cascade(views[: last + 1], tuple(kept[:last]))
