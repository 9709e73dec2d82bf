"""Cascades over stored predictions: confidence, the exact threshold search, and selection on validation data.

A cascade runs models in order and stops at the first whose output is confident enough. The search is separate from the
paper's measurements because it is exact arithmetic that is tested and timed on its own. Imports no torch.

Conventions: a sample leaves at stage k iff confidence_k >= threshold_k; the last stage takes all that are left;
threshold -inf lets all samples leave, +inf none. Thresholds lie half-way between two observed confidences, so that a
rounding error of the last bit, on another machine or in another order of addition, moves no sample to another stage.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from lightning_modules.ensembling.pools import Member, pareto_front
from lightning_modules.metrics import classification

CONFIDENCES = ("max_probability", "logit_gap", "probability_gap", "negative_entropy")
OUTPUTS = ("running", "last", "weighted")
LARGEST_GRID = 20_000_000

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
    """Confidence and correctness of every prefix of every sequence, each computed once.

    The running average after k models depends on which models ran and not on their order, so results are kept by the
    sorted prefix. `average` is `logits` or `probabilities`; `output` is `running` (the paper's average of all models so
    far), `last` (the newest model alone) or `weighted` (running, with `weights` per view).
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
        self._stages: dict[tuple[View, ...], tuple[np.ndarray, np.ndarray]] = {}

    def output(self, prefix: Sequence[View]) -> Float[np.ndarray, "samples classes"]:
        """What the cascade answers after the models of `prefix`: logits or log probabilities, float64."""
        views = prefix[-1:] if self.mode == "last" else prefix
        share = [1.0 if self.weights is None else self.weights[view] for view in views]
        total = np.zeros(self.scores[views[0]].shape)
        for view, weight in zip(views, share, strict=True):
            scores = self.scores[view].astype(np.float64)
            total += weight * (scores if self.average == "logits" else np.exp(classification.log_softmax(scores)))
        mean = total / sum(share)
        return mean if self.average == "logits" else np.log(np.maximum(mean, 1e-300))

    def stage(self, prefix: Sequence[View]) -> tuple[Float[np.ndarray, " samples"], Bool[np.ndarray, " samples"]]:
        """Confidence and correctness after the models of `prefix`."""
        key = tuple(prefix[-1:]) if self.mode == "last" else tuple(sorted(prefix))
        if key not in self._stages:
            output = self.output(key)
            self._stages[key] = confidence(output, self.confidence_kind), output.argmax(axis=-1) == self.labels
        return self._stages[key]

    def stages(
        self, views: Sequence[View]
    ) -> tuple[Float[np.ndarray, "thresholds samples"], Bool[np.ndarray, "stages samples"]]:
        """Confidence of every stage but the last, correctness of all stages."""
        both = [self.stage(views[: k + 1]) for k in range(len(views))]
        confident = np.array([c for c, _ in both[:-1]]).reshape(len(views) - 1, len(self.labels))
        return confident, np.array([correct for _, correct in both])


class Points(NamedTuple):
    """Operating points of one sequence: accuracy (share), average MACs per sample, thresholds (points, stages - 1)."""

    accuracy: np.ndarray
    macs: np.ndarray
    thresholds: np.ndarray


def every_threshold(
    confident: Float[np.ndarray, " samples"], correct: Bool[np.ndarray, "2 samples"], macs: Sequence[int]
) -> Points:
    """Every distinct operating point of a two-model cascade, in one sort.

    With samples sorted from sure to unsure, leaving the first p at stage 1 has accuracy (correct_1 among the first p +
    correct_2 among the rest) / N and costs c_1 + c_2 (N - p) / N. Positions inside a tie cannot be reached and are
    left out.
    """
    samples = len(confident)
    order = np.argsort(-confident, kind="stable")
    ordered = confident[order]
    first = np.concatenate([[0], np.cumsum(correct[0][order])])
    second = np.concatenate([[0], np.cumsum(correct[1][order])])
    leaving = np.concatenate([[0], np.flatnonzero(ordered[:-1] > ordered[1:]) + 1, [samples]])
    between = _half_way(ordered[leaving[1:-1]], ordered[leaving[1:-1] - 1])
    thresholds = np.concatenate([[np.inf], between, [-np.inf]])
    accuracy = (first[leaving] + second[-1] - second[leaving]) / samples
    return Points(accuracy, macs[0] + macs[1] * (samples - leaving) / samples, thresholds[:, None])


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
    if count < 1:
        raise ValueError(f"count ({count}) must be at least 1 threshold per stage.")
    edges, reaching = [], np.arange(confident.shape[1])
    for stage in confident:
        ordered = np.sort(stage[reaching])
        ranks = ((np.arange(1, count + 1) / (count + 1)) ** 2 * len(ordered)).astype(np.int64)
        ranks = np.unique(np.clip(ranks, 1, max(len(ordered) - 1, 1)))
        ranks = ranks[ordered[ranks - 1] < ordered[np.minimum(ranks, len(ordered) - 1)]]
        between = np.unique(_half_way(ordered[ranks - 1], ordered[ranks]))
        edges.append(np.concatenate([[-np.inf], between, [np.inf]]))
        half = max(1, len(reaching) // 2)
        reaching = reaching[np.argpartition(stage[reaching], half - 1)[:half]]
    return edges


def every_threshold_vector(
    confident: Float[np.ndarray, "thresholds samples"],
    correct: Bool[np.ndarray, "stages samples"],
    macs: Sequence[int],
    edges: Sequence[Float[np.ndarray, " _"]],
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and average MACs of every threshold vector of a sequence at once, exactly.

    Each sample falls into one cell of a (stages - 1)-dimensional histogram: its bin at stage k is the number of edges
    at or below its confidence, so it leaves at edge a iff bin > a. Prefix sums along each axis then count, for all
    vectors (a_1, a_2, ...) together, who is deferred by the first stages and leaves at the next. Cost: O(stages *
    samples + edges^(stages - 1)) instead of O(samples * edges^(stages - 1)).

    Returns:
        Two arrays of shape (len(edges[0]), len(edges[1]), ...).

    Raises:
        ValueError: the grid would not fit into memory.
    """
    depth, samples = confident.shape
    sizes = [len(e) for e in edges]
    if math.prod(size + 1 for size in sizes) > LARGEST_GRID:
        raise ValueError(
            f"{' x '.join(map(str, sizes))} threshold vectors exceed {LARGEST_GRID}: use fewer edges or stages."
        )
    accuracy, cost = np.zeros([1] * depth), np.full([1] * depth, float(macs[0]))
    cell, shape = np.zeros(samples, dtype=np.int64), []
    for k in range(depth):
        shape.append(sizes[k] + 1)
        cell = cell * shape[k] + bins(confident[k], edges[k])
        right = _deferred(cell[correct[k]], shape)  # by the stages before k for a_k = all, and by k too
        reach = _deferred(cell, shape)
        leaving = right[..., -1:] - right[..., :-1]
        accuracy = accuracy + _expand(leaving, depth)
        cost = cost + macs[k + 1] / samples * _expand(reach[..., :-1], depth)
    accuracy = accuracy + _deferred(cell[correct[depth]], shape)[..., :-1]
    return accuracy / samples, np.broadcast_to(cost, sizes)


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


def _deferred(cell: np.ndarray, shape: list[int]) -> np.ndarray:
    """Number of samples in the bins 0..a_j of every axis j; the last axis keeps its last entry, "all of them"."""
    counts = np.bincount(cell, minlength=math.prod(shape)).reshape(shape)
    for axis in range(len(shape)):
        np.cumsum(counts, axis=axis, out=counts)
    return counts[(slice(None, -1),) * (len(shape) - 1)]


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
    """Front of every candidate sequence: all thresholds for two models, a grid of `edges[stages]` beyond.

    A sequence of one model is a front of one point, so that a selection may fall back on it.

    A sequence is skipped where nothing in it can help: even if every sample left at the right stage, a single model
    that costs no more than its first one is already as accurate.
    """
    fronts: list[Front] = []
    alone: list[tuple[int, float]] = []  # cost and accuracy of single models among the candidates
    for views in sorted(candidates, key=lambda views: (sum(macs[v] for v in views), views)):
        confident, correct = table.stages(views)
        costs = [macs[view] for view in views]
        ceiling = correct.any(axis=0).mean()
        if any(cost <= costs[0] and accuracy >= ceiling for cost, accuracy in alone):
            continue
        points = _front(confident, correct, costs, edges)
        fronts.append(Front(views, sum(costs), points))
        if len(views) == 1:  # only its worst case, too, is no more than that of whatever begins with a dearer model
            alone.append((costs[0], float(correct[0].mean())))
    return fronts


def _front(confident: np.ndarray, correct: np.ndarray, macs: list[int], edges: Mapping[int, int]) -> Points:
    if len(macs) == 1:
        return Points(correct.mean(axis=1), np.array([float(macs[0])]), np.zeros((1, 0)))
    if len(macs) == 2:
        points = every_threshold(confident[0], correct, macs)
        keep = pareto_front(points.macs, points.accuracy)
        return Points(*(values[keep] for values in points))
    if len(macs) not in edges:
        raise ValueError(f"edges {dict(edges)} names no number of thresholds for {len(macs)} stages.")
    candidates = threshold_edges(confident, edges[len(macs)])
    accuracy, cost = every_threshold_vector(confident, correct, macs, candidates)
    keep = pareto_front(cost.ravel(), accuracy.ravel())
    index = np.unravel_index(keep, accuracy.shape)
    thresholds = np.stack([e[i] for e, i in zip(candidates, index, strict=True)], axis=1)
    return Points(accuracy.ravel()[keep], cost.ravel()[keep], thresholds)


def _merged(fronts: Sequence[Front], worst_case: float) -> tuple[np.ndarray, np.ndarray, list[tuple[Front, int]]]:
    """Common front of all sequences under a worst-case cap, from cheap to dear: accuracy, MACs, (front, point)."""
    fronts = [front for front in fronts if front.worst_case <= worst_case]
    if not fronts:
        return np.zeros(0), np.zeros(0), []
    accuracy = np.concatenate([front.points.accuracy for front in fronts])
    macs = np.concatenate([front.points.macs for front in fronts])
    owner = np.repeat(np.arange(len(fronts)), [len(front.points.macs) for front in fronts])
    start = np.cumsum([0] + [len(front.points.macs) for front in fronts])
    keep = pareto_front(macs, accuracy)
    owned = [(fronts[o], int(i - start[o])) for i, o in zip(keep, owner[keep], strict=True)]
    return accuracy[keep], macs[keep], owned


def _cascade(front: Front, point: int) -> Cascade:
    """An operating point as a cascade, without the models behind a stage that lets everyone leave."""
    thresholds = front.points.thresholds[point].tolist()
    last = [*thresholds, -math.inf].index(-math.inf)
    return Cascade(front.views[: last + 1], tuple(thresholds[:last]))


def max_accuracy(
    fronts: Sequence[Front],
    table: StageTable,
    macs: Mapping[View, int],
    *,
    budget: float,
    worst_case: float = math.inf,
    margin: float = 1.0,
) -> Cascade | None:
    """Most accurate cascade on validation data whose average cost stays within the budget; None if there is none.

    The cost counts with `margin` standard errors on top: an average over a small validation set would overrun the
    budget half of the time.
    """
    _, costs, candidates = _merged(fronts, worst_case)
    for cost, candidate in reversed(list(zip(costs, candidates, strict=True))):
        if cost <= budget:
            cascade = _cascade(*candidate)
            spent = run_cascade(table, cascade, macs).macs
            if cost + margin * _standard_error(spent) <= budget:
                return cascade
    return None


def min_macs(
    fronts: Sequence[Front],
    table: StageTable,
    macs: Mapping[View, int],
    *,
    target: Bool[np.ndarray, " samples"],
    worst_case: float = math.inf,
    margin: float = 1.0,
) -> Cascade | None:
    """Cheapest cascade on validation data that is as accurate as `target` (correctness per sample); None if none is.

    As accurate means that the mean paired difference is at least `margin` of its standard errors: with thousands of
    operating points to choose from, the luckiest would otherwise win and lose its lead on test data.
    """
    accuracy, _, candidates = _merged(fronts, worst_case)
    for value, candidate in zip(accuracy, candidates, strict=True):
        if value >= target.mean() - 1e-12:
            cascade = _cascade(*candidate)
            difference = run_cascade(table, cascade, macs).correct.astype(np.float64) - target
            if difference.mean() >= margin * _standard_error(difference):
                return cascade
    return None


def _standard_error(values: np.ndarray) -> float:
    return float(values.std() / math.sqrt(len(values)))
