"""Wisdom of Committees (Wang et al., ICLR 2022, arXiv 2012.01988): cascades of off-the-shelf models.

The input is the stored predictions of a pool of independently trained classifiers. The result is how ensembles and
cascades compare with single models at equal cost and at equal accuracy. Nothing is trained: a cascade is a sequence of
members and a confidence at which each may answer alone, both chosen on validation data, where most samples are easy
enough for the cheap members. Read `Study.at_equal_macs` first. The chosen cascade as a network is
`committees.network.Committee`.

Choices where the paper leaves room or small data asks for care, fixed before any test number of these pools was seen:
- Copies of an architecture are taken in turn, and every number is a mean over that rotation: only architectures and
  thresholds are chosen, so no committee profits from a lucky seed that its single model lacks.
- A constraint on validation data must hold with a margin of `margin` standard errors (the paper has 50 times the data).
- The single models' curve is the running maximum over their ladder, linear in log MACs, read at the budget or at what
  the cascade really spent on test data, whichever is larger. All three favour the single models.
- There is no cascade below the cheapest member, so the ladder's rungs are all architectures but the cheapest, as in the
  paper's tables.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Annotated

import numpy as np
from pydantic import Field

from lightning_modules.ensembling import cascades, committee_files, pools
from lightning_modules.ensembling.cascades import Cascade, StageTable, View, run_cascade
from lightning_modules.metrics import classification
from lightning_modules.runs import Evaluation, Figure, Run, Series
from lightning_modules.settings import Count, NonNegative, Positive, Share

SHARES = np.linspace(0.0, 1.0, 21)  # of deferred samples, in the figures
Metrics = dict[str, float]


def evaluate(
    runs: Sequence[Run],
    dataset: str,
    *,
    pair: Annotated[Sequence[str], Field(min_length=2, max_length=2)],
    export: str,
    longest: Annotated[int, Field(ge=2, le=10)] = 3,
    order: str = "cheap_first",
    edges: Mapping[int | Annotated[str, Field(pattern="^[0-9]{1,2}$")], Count] | None = None,
    confidence: str = "max_probability",
    average: str = "logits",
    output: str = "running",
    temperature: bool = False,
    margin: NonNegative = 1.0,
    cap: Positive = 1.0,
    deferral: Share = 0.1,
) -> Evaluation:
    """Compare committees with single models, per seed.

    Args:
        runs: finished runs of a pool of members, one or more per seed.
        dataset: first part of every metric's name.
        pair: two architectures, cheap and dear, for the comparison of confidences.
        export: architecture whose MACs are the budget of the committee that is exported.
        longest: most models in a cascade.
        order: `cheap_first` or `any`, see `cascades.sequences`.
        edges: candidate thresholds per stage, by number of models from 3 on; pairs use every threshold.
        confidence: see `cascades.confidence`.
        average: `logits` or `probabilities`.
        output: `running`, `last` or `weighted` (by each member's validation log odds of being right).
        temperature: scale every member's logits to the best validation NLL first.
        margin: standard errors by which a constraint must hold on validation data.
        cap: worst-case MACs of a capped cascade, in units of the single model's.
        deferral: share of samples that goes to the second model of `pair`.

    Raises:
        ValueError: an architecture that the pool does not have, or predictions that cannot be compared.
    """
    studies = [
        Study(
            pool,
            longest=longest,
            order=order,
            edges={int(k): int(v) for k, v in (edges or {3: 40, 4: 16}).items()},
            confidence=confidence,
            average=average,
            output=output,
            temperature=temperature,
            margin=margin,
            cap=cap,
        )
        for pool in pools.read_pools(runs)
    ]
    for name in (*pair, export):
        if name not in studies[0].pool.architectures:
            raise ValueError(f"architecture {name!r} is not in the pool: {list(studies[0].pool.architectures)}.")
    metrics = {study.pool.seed: _prefixed(dataset, study.metrics(tuple(pair), deferral)) for study in studies}
    first = studies[0]
    cascade = first.within(export, 0)
    committee, weights = committee_files.export(
        cascade,
        first.pool,
        [run for run in runs if run.seed == first.pool.seed],
        val=first.val,
        test=first.test,
        macs=first.macs,
        temperatures=first.temperatures,
        single=first.single(export, 0),
        dataset=dataset,
        constraint=f"most accurate on validation data at no more than {first.pool.macs[export]} MACs per sample "
        f"(one {export})",
    )
    trace = run_cascade(first.test, cascade, first.macs)
    return Evaluation(
        metrics=metrics,
        figures=_figures(studies, metrics, dataset, tuple(pair), committee, trace),
        files={
            "committee.json": (json.dumps(committee, indent=2) + "\n").encode(),
            "committee.safetensors": weights,
            "table.json": (json.dumps(_table(studies[0].pool, metrics, dataset), indent=2) + "\n").encode(),
        },
        predictor="lightning_modules.committees.network.CommitteePredictor",
    )


class Study:
    """All measurements on the pool of one seed. Selection reads `val`, results come from `test`."""

    def __init__(
        self,
        pool: pools.Pool,
        *,
        longest: int,
        order: str,
        edges: Mapping[int, int],
        confidence: str,
        average: str,
        output: str,
        temperature: bool,
        margin: float,
        cap: float,
    ) -> None:
        if len(pool.architectures) < 2:
            raise ValueError(f"a committee needs at least 2 architectures, the pool has {list(pool.architectures)}.")
        self.pool, self.edges, self.margin, self.cap = pool, edges, margin, cap
        self.confidence, self.average, self.output = confidence, average, output
        self.macs: dict[View, int] = {(n, r): pool.member(n).macs[r] for n, r in pool.logits}
        self.temperatures = dict.fromkeys(self.macs, 1.0)
        self.scores = {split: {view: pool.logits[view][split] for view in self.macs} for split in ("val", "test")}
        if temperature:
            self._scale()
        self.weights = _log_odds(pool) if output == "weighted" else None
        self.val, self.test = self.table("val"), self.table("test")
        self.rotations = max(len(copies) for copies in pool.architectures.values())
        copies = {name: len(members) for name, members in pool.architectures.items()}
        dearest = float(max(pool.macs.values()))
        self.sequences = [(name,) for name in pool.macs]
        self.sequences += cascades.sequences(pool.macs, copies, longest=longest, order=order, budget=dearest)

    def _scale(self) -> None:
        """Divide every member's logits by the temperature of the best validation NLL."""
        for view in self.macs:
            fitted = pools.fit_temperature(self.scores["val"][view], self.pool.labels["val"])
            self.temperatures[view] = fitted
            for scores in self.scores.values():
                scores[view] = scores[view] / np.float64(fitted)

    def table(self, split: str, confidence: str | None = None) -> StageTable:
        """Stages of all members on a split, with the study's rules."""
        return StageTable(
            self.scores[split],
            self.pool.labels[split],
            confidence=confidence or self.confidence,
            average=self.average,
            output=self.output,
            weights=self.weights,
        )

    @cached_property
    def fronts(self) -> list[list[cascades.Front]]:
        """Validation fronts of all sequences, per rotation of the copies."""
        return [
            cascades.search(
                self.val,
                [cascades.with_copies(s, self.pool.architectures, rotation) for s in self.sequences],
                self.macs,
                self.edges,
            )
            for rotation in range(self.rotations)
        ]

    @cached_property
    def rungs(self) -> list[str]:
        """Architectures that a cascade is compared with: all but the cheapest."""
        return list(self.pool.macs)[1:]

    def single(self, name: str, rotation: int) -> View:
        """The copy of an architecture that a rotation puts first."""
        return cascades.with_copies([name], self.pool.architectures, rotation)[0]

    @cached_property
    def ladder(self) -> tuple[np.ndarray, np.ndarray]:
        """MACs and test accuracy in percent of the single models, from cheap to dear."""
        return np.array(list(self.pool.macs.values())), 100 * np.array(list(self.pool.accuracies("test").values()))

    def single_curve(self, macs: float) -> float:
        """Test accuracy in percent of the best single model of a cost (the ladder's end where it is exceeded)."""
        costs, accuracy = self.ladder
        return float(pools.single_envelope(costs, accuracy, float(np.clip(macs, costs.min(), costs.max()))))

    def metrics(self, pair: tuple[str, ...], deferral: float) -> Metrics:
        """Every number of this seed, named `<what>/<metric>[@<where>]`."""
        return {
            **self.singles(),
            **self.at_equal_macs(),
            **self.at_equal_accuracy(),
            **self.ensembles(),
            **self.greedy(),
            **self.confidences(pair, deferral),
            **self.self_cascades(),
        }

    def singles(self) -> Metrics:
        """Each architecture alone: mean over its copies on test data."""
        measures: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
            "top1_percent": lambda logits, labels: 100 * classification.accuracy(logits, labels),
            "nll_nats": classification.negative_log_likelihood,
            "ece": classification.expected_calibration_error,
            "brier": classification.brier_score,
            "aurc": lambda logits, labels: classification.area_under_risk_coverage(
                cascades.confidence(logits, self.confidence), logits.argmax(axis=-1) == labels
            ),
        }
        labels, found = self.pool.labels["test"], {}
        for name, copies in self.pool.architectures.items():
            found[f"single/macs_per_sample@{name}"] = float(self.pool.macs[name])
            for measure, function in measures.items():
                values = [function(self.test.scores[m.name, m.native], labels) for m in copies]
                found[f"single/{measure}@{name}"] = float(np.mean(values))
        found["single/top1_percent"] = float(np.mean([found[f"single/top1_percent@{name}"] for name in self.rungs]))
        return found

    def at_equal_macs(self) -> Metrics:
        """K1 and K6: the most accurate cascade that costs no more than a single model, without and with a cap.

        `cascade` has the budget of each rung; `cascade_capped` may moreover never spend more than `cap` times the rung
        on any sample. The single model itself is always among the candidates.
        """
        found: Metrics = {}
        for what, cap in (("cascade", math.inf), ("cascade_capped", self.cap)):
            rows = []
            for name in self.rungs:
                chosen = [self.within(name, rotation, cap * self.pool.macs[name]) for rotation in range(self.rotations)]
                rows.append(_mean([self.result(cascade, name) for cascade in chosen]))
                found |= _at(what, name, rows[-1])
            mean = _mean(rows)
            found[f"{what}/top1_percent"] = mean["top1_percent"]
            found[f"{what}/macs_over_budget"] = mean["macs_over_budget"]
            found[f"{what}_reference/top1_percent"] = mean["single_curve_percent"]
        found["cascade_capped/loss_points"] = found["cascade/top1_percent"] - found["cascade_capped/top1_percent"]
        return found

    def within(self, name: str, rotation: int, worst_case: float = math.inf) -> Cascade:
        """The most accurate cascade at no more than the MACs of an architecture, chosen on validation data."""
        cascade = cascades.max_accuracy(
            self.fronts[rotation],
            self.val,
            self.macs,
            self.edges,
            budget=float(self.pool.macs[name]),
            worst_case=worst_case,
            margin=self.margin,
        )
        return cascade or Cascade((self.single(name, rotation),), ())

    def result(self, cascade: Cascade, name: str) -> Metrics:
        """What a chosen cascade does on test data, beside the single model `name`."""
        trace = run_cascade(self.test, cascade, self.macs)
        spent = float(trace.macs.mean())
        return {
            "top1_percent": 100 * float(trace.correct.mean()),
            "macs_per_sample": spent,
            "worst_case_macs": float(sum(self.macs[view] for view in cascade.views)),
            "macs_over_budget": spent / self.pool.macs[name],
            "log_reduction": math.log(self.pool.macs[name] / spent),
            "single_curve_percent": self.single_curve(max(spent, float(self.pool.macs[name]))),
            "models": float(len(cascade.views)),
        }

    def at_equal_accuracy(self) -> Metrics:
        """K2 and K6: the cheapest cascade as accurate as a single model on validation data, without and with a cap.

        `macs_reduction` is the geometric mean over the rungs, `small` and `large` its halves of the ladder;
        `loss_points` is the single models' test accuracy minus the cascades'.
        """
        single = self.ladder[1][1:].mean()
        half, found = len(self.rungs) // 2, {}
        for what, cap in (("min_macs", math.inf), ("min_macs_capped", self.cap)):
            results = []
            for name in self.rungs:
                chosen = [self.as_accurate(name, r, cap * self.pool.macs[name]) for r in range(self.rotations)]
                results.append(_mean([self.result(cascade, name) for cascade in chosen]))
                found |= _at(what, name, results[-1])
                found[f"{what}/macs_reduction@{name}"] = math.exp(results[-1]["log_reduction"])
            found[f"{what}/top1_percent"] = _mean(results)["top1_percent"]
            found[f"{what}/loss_points"] = float(single) - found[f"{what}/top1_percent"]
            found[f"{what}/macs_reduction"] = math.exp(_mean(results)["log_reduction"])
            if half:
                found[f"{what}/macs_reduction@small"] = math.exp(_mean(results[:half])["log_reduction"])
                found[f"{what}/macs_reduction@large"] = math.exp(_mean(results[-half:])["log_reduction"])
        return found

    def as_accurate(self, name: str, rotation: int, worst_case: float = math.inf) -> Cascade:
        """The cheapest cascade as accurate as one copy of an architecture; that copy where none is and is cheaper."""
        view = self.single(name, rotation)
        target = self.val.stage((view,))[1]
        cascade = cascades.min_macs(
            self.fronts[rotation],
            self.val,
            self.macs,
            self.edges,
            target=target,
            worst_case=worst_case,
            margin=self.margin,
        )
        if cascade is None or self.val_macs(cascade).mean() > self.macs[view]:
            return Cascade((view,), ())
        return cascade

    def val_macs(self, cascade: Cascade) -> np.ndarray:
        """MACs that a cascade spends on each validation sample."""
        return run_cascade(self.val, cascade, self.macs).macs

    def ensembles(self) -> Metrics:
        """K3: all copies of an architecture together, and the same ones as a cascade that stays as accurate on val."""
        found, results = {}, []
        for name, copies in self.pool.architectures.items():
            if len(copies) < 2:
                continue
            row = []
            for rotation in range(len(copies)):
                views = cascades.with_copies([name] * len(copies), self.pool.architectures, rotation)
                target = self.val.stage(views)[1]
                fronts = cascades.search(self.val, [views], self.macs, self.edges)
                cascade = cascades.min_macs(fronts, self.val, self.macs, self.edges, target=target, margin=self.margin)
                trace = run_cascade(self.test, cascade or _all_of(views), self.macs)
                row.append(
                    {
                        "ensemble_percent": 100 * float(self.test.stage(views)[1].mean()),
                        "exit_percent": 100 * float(trace.correct.mean()),
                        "log_reduction": math.log(sum(self.macs[v] for v in views) / trace.macs.mean()),
                    }
                )
            results.append(_mean(row))
            found[f"ensemble/top1_percent@{name}"] = results[-1]["ensemble_percent"]
            found[f"ensemble/macs_per_sample@{name}"] = float(self.pool.macs[name] * len(copies))
            found[f"ensemble_exit/top1_percent@{name}"] = results[-1]["exit_percent"]
            found[f"ensemble_exit/macs_reduction@{name}"] = math.exp(results[-1]["log_reduction"])
        if results:
            found["ensemble/top1_percent"] = _mean(results)["ensemble_percent"]
            found["ensemble_exit/top1_percent"] = _mean(results)["exit_percent"]
            found["ensemble_exit/loss_points"] = found["ensemble/top1_percent"] - found["ensemble_exit/top1_percent"]
            found["ensemble_exit/macs_reduction"] = math.exp(_mean(results)["log_reduction"])
        return found

    def greedy(self, size: int = 8) -> Metrics:
        """Up to `size` members chosen greedily on validation NLL: the accuracy that the pool holds, at any cost."""
        views = [(member.name, member.native) for member in self.pool.members]
        chosen = pools.greedy_selection(
            np.stack([self.val.scores[view] for view in views]), self.pool.labels["val"], size, self.average
        )
        logits = np.stack([self.test.scores[views[i]] for i in chosen])
        combined = pools.combine(logits, self.average)
        return {
            "greedy_ensemble/top1_percent": 100 * classification.accuracy(combined, self.pool.labels["test"]),
            "greedy_ensemble/macs_per_sample": float(sum(self.macs[views[i]] for i in set(chosen))),
        }

    def confidences(self, pair: tuple[str, ...], deferral: float) -> Metrics:
        """K4: accuracy when a share of the samples goes from the first model to the second, by who chooses them."""
        curves = self.deferral_curves(pair, np.array([0.0, deferral, 1.0]))
        found = {f"deferral/top1_percent@{kind}": float(curve[1]) for kind, curve in curves.items()}
        return found | {
            "deferral/top1_percent@nobody": float(curves["random"][0]),
            "deferral/top1_percent@everybody": float(curves["random"][2]),
        }

    def deferral_curves(self, pair: tuple[str, ...], shares: np.ndarray) -> dict[str, np.ndarray]:
        """Test accuracy in percent by deferred share, per confidence, for random choice and for an oracle."""
        curves: dict[str, list[np.ndarray]] = {}
        tables = {kind: self.table("test", kind) for kind in cascades.CONFIDENCES}
        for rotation in range(self.rotations):
            views = tuple(self.single(name, rotation) for name in pair)
            for kind, table in tables.items():
                confident, correct = table.stages(views)
                curves.setdefault(kind, []).append(classification.deferral_curve(confident[0], correct, shares))
            curves.setdefault("random", []).append(classification.random_deferral(correct, shares))
            curves.setdefault("oracle", []).append(classification.oracle_deferral(correct, shares))
        return {kind: 100 * np.mean(values, axis=0) for kind, values in curves.items()}

    def self_cascades(self) -> Metrics:
        """K5: one network at a low and then at a high resolution, within the cost of the high one."""
        found, results = {}, []
        for name, copies in self.pool.architectures.items():
            resolutions = sorted({r for n, r in self.macs if n == copies[0].name}, key=lambda r: copies[0].macs[r])
            if len(resolutions) < 2:
                continue
            row = []
            for member in copies:
                views = ((member.name, resolutions[-2]), (member.name, resolutions[-1]))
                cascade = cascades.max_accuracy(
                    cascades.search(self.val, [views], self.macs, self.edges),
                    self.val,
                    self.macs,
                    self.edges,
                    budget=float(self.macs[views[1]]),
                    margin=self.margin,
                )
                row += [self.result(cascade, name)] if cascade else []
            results.append(_mean(row))
            found |= _at("self_cascade", name, results[-1])
            found[f"self_cascade_reference/top1_percent@{name}"] = results[-1]["single_curve_percent"]
        for where, rows in (("", results), ("@large", results[-(len(results) // 2) :] if len(results) > 1 else [])):
            if rows:
                found[f"self_cascade/top1_percent{where}"] = _mean(rows)["top1_percent"]
                found[f"self_cascade_reference/top1_percent{where}"] = _mean(rows)["single_curve_percent"]
        return found


def _log_odds(pool: pools.Pool) -> dict[View, float]:
    """Weight of each member: log odds of being right on validation data, at least 0.01 so that none is negative."""
    samples = len(pool.labels["val"])
    weights = {}
    for view, by_split in pool.logits.items():
        right = float((by_split["val"].argmax(axis=-1) == pool.labels["val"]).sum())
        weights[view] = max(0.01, math.log((right + 0.5) / (samples - right + 0.5)))
    return weights


def _all_of(views: tuple[View, ...]) -> Cascade:
    """The full ensemble as a cascade: no one leaves early."""
    return Cascade(views, (math.inf,) * (len(views) - 1))


def _mean(rows: Sequence[Metrics]) -> Metrics:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def _at(what: str, where: str, row: Metrics) -> Metrics:
    """The reported part of a result, for one rung."""
    return {f"{what}/{m}@{where}": row[m] for m in ("top1_percent", "macs_per_sample", "worst_case_macs", "models")}


def _prefixed(dataset: str, metrics: Metrics) -> Metrics:
    return {f"{dataset}/{name}": value for name, value in metrics.items()}


def _table(pool: pools.Pool, metrics: dict[int, Metrics], dataset: str) -> list[dict]:
    """One row per architecture: its size and every metric `@architecture`, mean and 95 % interval over seeds."""
    rows = []
    for name, copies in pool.architectures.items():
        row: dict = {"architecture": name, "params": copies[0].params, "macs": pool.macs[name], "copies": len(copies)}
        for key in next(iter(metrics.values())):
            if key.endswith(f"@{name}"):
                values = pools.over_seeds(metrics, key)
                low, high = classification.seed_interval(values, bounds=classification.bounds_of(key))
                row[key.removeprefix(f"{dataset}/").removesuffix(f"@{name}")] = {
                    "mean": round(float(values.mean()), 6),
                    "interval": [round(low, 6), round(high, 6)] if len(values) > 1 else None,
                }
        rows.append(row)
    return rows


def _figures(
    studies: list[Study],
    metrics: dict[int, Metrics],
    dataset: str,
    pair: tuple[str, ...],
    committee: dict,
    trace: cascades.Trace,
) -> list[Figure]:
    return [
        _accuracy_figure(studies[0], metrics, dataset),
        _deferral_figure(studies, dataset, pair),
        _exit_figure(studies[0], dataset, committee, trace),
        _risk_figure(studies, dataset, pair),
    ]


def _accuracy_figure(study: Study, metrics: dict[int, Metrics], dataset: str) -> Figure:
    kinds = {
        "single": ("single models", "line"),
        "ensemble": ("ensembles of all copies", "dashed"),
        "cascade": ("cascades chosen on validation data", "line"),
        "cascade_capped": ("cascades that never cost more than the single", "points"),
        "min_macs": ("cascades as accurate as the single", "points"),
        "self_cascade": ("one network at two resolutions", "points"),
    }
    series = []
    for what, (title, kind) in kinds.items():
        names = [n for n in study.pool.macs if all(f"{dataset}/{what}/top1_percent@{n}" in m for m in metrics.values())]
        if names:
            x = [float(pools.over_seeds(metrics, f"{dataset}/{what}/macs_per_sample@{n}").mean()) for n in names]
            y = np.stack([pools.over_seeds(metrics, f"{dataset}/{what}/top1_percent@{n}") for n in names], axis=1)
            series.append(pools.seed_series(title, kind, x, y, labels=names))
    return Figure(
        id=f"{dataset}-accuracy-macs",
        title=f"Accuracy against cost on {dataset}",
        caption=f"Test accuracy and average MACs on test data, mean over {len(metrics)} seeds and 95 % intervals. "
        "Members and thresholds were chosen on validation data alone.",
        x_label="average MACs per sample",
        y_label="top-1 accuracy (%)",
        x_scale="log",
        y_scale="log_error",
        series=series,
    )


def _deferral_figure(studies: list[Study], dataset: str, pair: tuple[str, ...]) -> Figure:
    curves = [study.deferral_curves(pair, SHARES) for study in studies]
    return Figure(
        id=f"{dataset}-deferral",
        title=f"Who should go to the second model? {pair[0]} to {pair[1]}",
        caption="Test accuracy when the least confident share is deferred, by measure of confidence; random choice and "
        "an oracle that knows the labels are the bounds.",
        x_label="deferred samples (%)",
        y_label="top-1 accuracy (%)",
        series=[
            pools.seed_series(
                kind.replace("_", " "),
                "dashed" if kind in ("random", "oracle") else "line",
                100 * SHARES,
                np.stack([curve[kind] for curve in curves]),
            )
            for kind in curves[0]
        ],
    )


def _exit_figure(study: Study, dataset: str, committee: dict, trace: cascades.Trace) -> Figure:
    """Where the samples of each class leave the exported committee."""
    names = [member["name"] for member in committee["members"]]
    labels, classes = study.pool.labels["test"], min(study.pool.num_classes, 20)
    shown = labels < classes
    table = classification.exits_per_class(trace.exit_stage[shown], labels[shown], len(names), classes)
    rows = np.concatenate([[np.bincount(trace.exit_stage, minlength=len(names)) / len(labels)], table])
    return Figure(
        id=f"{dataset}-exits",
        title=f"Where samples leave: {', '.join(names)}",
        caption=f"Exit stage on test data of the committee of seed {study.pool.seed}, {committee['constraint']}.",
        x_label="class",
        y_label="samples (%)",
        series=[
            Series(
                name=f"stage {k + 1}: {name}",
                kind="bars",
                x=[float(i) for i in range(len(rows))],
                y=[round(100 * float(v), 6) for v in rows[:, k]],
                labels=["all", *(str(c) for c in range(classes))],
            )
            for k, name in enumerate(names)
        ],
    )


def _risk_figure(studies: list[Study], dataset: str, pair: tuple[str, ...]) -> Figure:
    """Error among the most confident samples: what a cascade's first stage answers alone."""
    prefixes = {pair[0]: pair[:1], pair[1]: pair[1:], f"{pair[0]} and {pair[1]} averaged": pair}
    coverage = np.linspace(0.05, 1.0, 20)
    series = []
    for title, names in prefixes.items():
        risks = []
        for study in studies:
            curves = []
            for rotation in range(study.rotations):
                views = [study.single(name, rotation) for name in names]
                curves.append(classification.risk_coverage(*study.test.stage(views))[1])
            at = np.maximum(np.rint(coverage * len(curves[0])).astype(np.int64), 1) - 1
            risks.append(100 * np.mean(curves, axis=0)[at])
        series.append(pools.seed_series(title, "line", 100 * coverage, np.stack(risks)))
    return Figure(
        id=f"{dataset}-risk-coverage",
        title="Error among the most confident samples",
        caption="Risk-coverage curves on test data: the lower on the left, the better confidence separates right from "
        "wrong.",
        x_label="coverage (%)",
        y_label="error (%)",
        series=series,
    )
