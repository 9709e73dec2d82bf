"""When Ensembling Smaller Models is More Efficient than Single Large Models (Kondratyuk et al., arXiv 2005.00570).

The input is the stored predictions of several independently trained copies of each width of one family. The result is
whether k small copies beat one larger network at the same total MACs. It works where the remaining error of a network
is mostly variance, which averaging removes, and fails where the network is too small to fit the data. Read
`Study.equal_macs` first.

How the comparison is kept fair, fixed before any test number of these pools was seen:
- A k-ensemble is the mean over the k-subsets of the copies, not the best one.
- The single models' curve is the running maximum over the ladder, linear in log MACs; totals beyond the largest single
  model are left out, because extending the curve would be a guess.
- Small and large regime are the lower and the upper half of the widths that can be compared (an odd middle one is in
  neither).
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from lightning_modules.ensembling import pools
from lightning_modules.ensembling.pools import over_seeds, seed_series
from lightning_modules.metrics import classification
from lightning_modules.runs import Evaluation, Figure, Run
from lightning_modules.settings import Count

Metrics = dict[str, float]


def evaluate(
    runs: Sequence[Run],
    dataset: str,
    *,
    largest: Annotated[int, Field(ge=2, le=1000)] = 4,
    average: str = "logits",
    reach: Count = 2,
    subsets: Count = 32,
) -> Evaluation:
    """Compare ensembles of small networks with larger single networks, per seed.

    Args:
        runs: finished runs of a pool of members, one or more per seed.
        dataset: first part of every metric's name.
        largest: most members in an ensemble, the paper's k.
        average: `logits` (geometric mean of the probabilities), `probabilities` (arithmetic mean) or `vote`.
        reach: mixed pairs are made of architectures at most this many steps apart on the ladder.
        subsets: most subsets of copies that an ensemble's accuracy is averaged over.

    Raises:
        ValueError: a pool without copies, or predictions that cannot be compared.
    """
    studies = [
        Study(pool, largest=largest, average=average, reach=reach, subsets=subsets) for pool in pools.read_pools(runs)
    ]
    metrics = {
        study.pool.seed: {f"{dataset}/{name}": value for name, value in study.metrics().items()} for study in studies
    }
    return Evaluation(
        metrics=metrics,
        figures=_figures(studies[0], metrics, dataset),
        files={"table.json": (json.dumps(_table(studies[0], metrics, dataset), indent=2) + "\n").encode()},
    )


class Study:
    """All measurements on the pool of one seed, on test data. Nothing is chosen, so validation data is not read."""

    def __init__(self, pool: pools.Pool, *, largest: int, average: str, reach: int, subsets: int) -> None:
        if average not in pools.RULES:
            raise ValueError(f"average ({average!r}) must be one of {pools.RULES}.")
        self.pool, self.average, self.reach, self.subsets = pool, average, reach, subsets
        self.labels = pool.labels["test"]
        self.logits = {
            name: np.stack([pool.scores(member.name, "test") for member in copies])
            for name, copies in pool.architectures.items()
        }
        self.largest = min(largest, *(len(copies) for copies in self.logits.values()))
        if self.largest < 2:
            raise ValueError(
                f"ensembles need at least 2 copies of each architecture and k >= 2, but the smallest of both is "
                f"{self.largest}: train more copies or raise `largest`."
            )
        self.curves = {name: self._curve(logits) for name, logits in self.logits.items()}

    def _curve(self, logits: np.ndarray) -> np.ndarray:
        """Test accuracy in percent of k = 1 ... K copies, mean over subsets."""
        return 100 * np.array(
            [
                pools.subset_accuracy(logits, self.labels, k, self.average, self.subsets)
                for k in range(1, self.largest + 1)
            ]
        )

    def single_at(self, macs: float) -> float:
        """Accuracy in percent of the best single network of that cost."""
        singles = [curve[0] for curve in self.curves.values()]
        return float(pools.single_envelope(list(self.pool.macs.values()), singles, macs))

    def comparable(self, name: str) -> list[int]:
        """Ensemble sizes k >= 2 whose total cost a single network of the ladder can spend too."""
        dearest = max(self.pool.macs.values())
        return [k for k in range(2, self.largest + 1) if k * self.pool.macs[name] <= dearest]

    def metrics(self) -> Metrics:
        """Every number of this seed, named `<what>/<metric>[@<where>]`."""
        return {**self.points(), **self.equal_macs(), **self.increments(), **self.mixed(), **self.averages()}

    def points(self) -> Metrics:
        """The curves: accuracy and total MACs of k copies of each architecture."""
        found = {}
        for name, curve in self.curves.items():
            for k, value in enumerate(curve, start=1):
                found[f"ensemble/top1_percent@{name}x{k}"] = float(value)
                found[f"ensemble/total_macs@{name}x{k}"] = float(k * self.pool.macs[name])
        return found

    def equal_macs(self) -> Metrics:
        """S1 and S2: k copies against the single network of k times the cost, per width and per regime.

        `gain/points` is the difference, a mean over the sizes k that can be compared.
        """
        rows, found = [], {}
        for name, curve in self.curves.items():
            sizes = self.comparable(name)
            if sizes:
                ensemble = float(np.mean([curve[k - 1] for k in sizes]))
                single = float(np.mean([self.single_at(float(k * self.pool.macs[name])) for k in sizes]))
                rows.append((ensemble, single))
                found[f"gain/points@{name}"] = ensemble - single
        half = len(rows) // 2
        for where, chosen in {"": rows, "@small": rows[:half], "@large": rows[len(rows) - half :]}.items():
            if chosen:
                ensemble, single = np.mean(chosen, axis=0)
                found[f"ensemble/top1_percent{where}"] = float(ensemble)
                found[f"single_curve/top1_percent{where}"] = float(single)
                found[f"gain/points{where}"] = float(ensemble - single)
        return found

    def increments(self) -> Metrics:
        """S3: points won by the k-th member, mean over all architectures."""
        steps = np.mean([np.diff(curve) for curve in self.curves.values()], axis=0)
        return {f"increment/points@k{k}": float(step) for k, step in enumerate(steps, start=2)}

    def mixed(self) -> Metrics:
        """S4: two copies of one architecture against two different architectures of the same total MACs.

        The pairs of equal architecture are interpolated, linear in log MACs, at the mixed pair's cost; no running
        maximum here, since neither side is a choice among models.
        """
        total = {name: 2 * macs for name, macs in self.pool.macs.items()}
        rows = []
        names = list(self.pool.macs)
        for first, second in itertools.combinations(range(len(names)), 2):
            if second - first <= self.reach:
                pair = names[first], names[second]
                cost = self.pool.macs[pair[0]] + self.pool.macs[pair[1]]
                same = [self.curves[name][1] for name in total]
                rows.append(
                    (
                        self._mixed_accuracy(*pair),
                        pools.interpolate_log_macs(list(total.values()), same, float(cost)),
                    )
                )
        if not rows:
            return {}
        mixed, same = np.mean(rows, axis=0)
        return {"mixed_pair/top1_percent": float(mixed), "same_pair/top1_percent": float(same)}

    def _mixed_accuracy(self, first: str, second: str) -> float:
        """Mean over all pairs of a copy of one and a copy of the other architecture, in percent."""
        pairs = itertools.product(self.logits[first], self.logits[second])
        return 100 * float(
            np.mean([classification.accuracy(pools.combine(np.stack(p), self.average), self.labels) for p in pairs])
        )

    def averages(self) -> Metrics:
        """S5, diversity and the exact identity of the geometric mean: means over the subsets of K copies.

        -log p(y) of the geometric mean p equals the mean of the members' -log p_i(y) minus the mean of KL(p || p_i):
        the gain in likelihood is exactly the members' divergence from their mean.
        """
        found, errors = {}, []
        per_name: dict[str, Metrics] = {}
        for name, logits in self.logits.items():
            chosen = pools.subsets(len(logits), self.largest, self.subsets)
            rows = [self._averages(logits[list(copies)]) for copies in chosen]
            errors += [abs(row["nll_gain_nats"] - row["mean_divergence_nats"]) for row in rows]
            per_name[name] = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        found["geometric_mean/identity_error_nats"] = max(errors)
        for what, rule in (("geometric_mean", "logits"), ("arithmetic_mean", "probabilities"), ("vote", "vote")):
            for metric in ("top1_percent", "nll_nats"):
                found[f"{what}/{metric}"] = float(np.mean([row[f"{metric}:{rule}"] for row in per_name.values()]))
        for name, row in per_name.items():
            found |= {f"diversity/{key}@{name}": value for key, value in row.items() if ":" not in key}
        return found

    def _averages(self, logits: np.ndarray) -> Metrics:
        """What each way of averaging gives for these copies, and how far apart they are."""
        row = {"disagreement_percent": 100 * classification.disagreement(logits.argmax(axis=-1))}
        for rule in pools.RULES:
            combined = pools.combine(logits, rule)
            row[f"top1_percent:{rule}"] = 100 * classification.accuracy(combined, self.labels)
            row[f"nll_nats:{rule}"] = classification.negative_log_likelihood(combined, self.labels)
        members = np.mean([classification.negative_log_likelihood(own, self.labels) for own in logits])
        row["mean_divergence_nats"] = mean_divergence(logits)
        row["nll_gain_nats"] = float(members) - row["nll_nats:logits"]
        return row


def mean_divergence(logits: np.ndarray) -> float:
    """Mean over members and samples of KL(geometric mean || member), in nats."""
    mean = pools.combine(logits, "logits")
    members = classification.log_softmax(logits)
    return float((np.exp(mean) * (mean - members)).sum(axis=-1).mean())


def _table(study: Study, metrics: Mapping[int, Metrics], dataset: str) -> list[dict]:
    """One row per architecture and size: total MACs, and mean and 95 % interval over seeds of accuracy and gain."""
    rows = []
    for name, copies in study.pool.architectures.items():
        for k in range(1, study.largest + 1):
            metric = f"{dataset}/ensemble/top1_percent@{name}x{k}"
            values = over_seeds(metrics, metric)
            low, high = classification.seed_interval(values, bounds=classification.bounds_of(metric))
            rows.append(
                {
                    "architecture": name,
                    "k": k,
                    "total_params": k * copies[0].params,
                    "total_macs": k * study.pool.macs[name],
                    "top1_percent": round(float(values.mean()), 6),
                    "interval": [round(low, 6), round(high, 6)] if len(values) > 1 else None,
                }
            )
    return rows


def _figures(study: Study, metrics: Mapping[int, Metrics], dataset: str) -> list[Figure]:
    return [
        _accuracy_figure(study, metrics, dataset),
        _gain_figure(study, metrics, dataset),
        _diversity_figure(study, metrics, dataset),
    ]


def _columns(metrics: Mapping[int, Metrics], names: Sequence[str]) -> np.ndarray:
    return np.stack([over_seeds(metrics, name) for name in names], axis=1)


def _accuracy_figure(study: Study, metrics: Mapping[int, Metrics], dataset: str) -> Figure:
    names, sizes = list(study.pool.macs), range(1, study.largest + 1)
    singles = _columns(metrics, [f"{dataset}/ensemble/top1_percent@{name}x1" for name in names])
    series = [seed_series("single networks", "dashed", list(study.pool.macs.values()), singles, labels=names)]
    for name in names:
        values = _columns(metrics, [f"{dataset}/ensemble/top1_percent@{name}x{k}" for k in sizes])
        x = [float(k * study.pool.macs[name]) for k in sizes]
        series.append(seed_series(f"{name}, k = 1 to {study.largest}", "line", x, values))
    return Figure(
        id=f"{dataset}-ensembles",
        title=f"k copies of one network against one larger network on {dataset}",
        caption=f"Test accuracy over total MACs, mean over {len(metrics)} seeds and 95 % intervals; each line is one "
        "architecture with k = 1, 2, ... copies. Above the dashed line the ensemble wins. Training costs k times as "
        "much and is not part of the comparison.",
        x_label="total MACs per sample",
        y_label="top-1 accuracy (%)",
        x_scale="log",
        y_scale="log_error",
        series=series,
    )


def _gain_figure(study: Study, metrics: Mapping[int, Metrics], dataset: str) -> Figure:
    names = [name for name in study.pool.macs if study.comparable(name)]
    values = _columns(metrics, [f"{dataset}/gain/points@{name}" for name in names])
    x = [float(study.pool.macs[name]) for name in names]
    return Figure(
        id=f"{dataset}-equal-macs",
        title="What copies win over one network of the same total cost",
        caption="Accuracy of k copies minus that of a single network of k times the MACs, mean over the sizes k whose "
        "cost the ladder of single networks reaches; mean over seeds and 95 % intervals. Below zero the single wins.",
        x_label="MACs of one member",
        y_label="difference (points)",
        x_scale="log",
        series=[seed_series("ensemble - single", "line", x, values, labels=names)],
    )


def _diversity_figure(study: Study, metrics: Mapping[int, Metrics], dataset: str) -> Figure:
    names = list(study.pool.macs)
    x = [float(study.pool.macs[name]) for name in names]
    disagreement = _columns(metrics, [f"{dataset}/diversity/disagreement_percent@{name}" for name in names])
    return Figure(
        id=f"{dataset}-disagreement",
        title="Larger networks disagree less",
        caption="Share of test samples on which two copies predict different classes, mean over pairs and seeds.",
        x_label="MACs of one member",
        y_label="disagreement (%)",
        x_scale="log",
        series=[seed_series("pairs of copies", "line", x, disagreement, labels=names)],
    )
