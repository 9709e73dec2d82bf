"""Singles, ensembles and cascades searched side by side under a compute budget, from stored predictions.

A trial is one configuration: which members, how they are averaged, when a cascade may stop. It trains nothing: it reads
cached logits, so it costs milliseconds. Each kind gets the same number of trials; otherwise the kind with more trials
would have an advantage. Read `CachedSearch.measure` first, then `state`, which says where committees start to beat
singles.

Three rules keep the comparison honest:
- Copies of an architecture are taken in turn and numbers are means over that rotation: no trial can pick lucky copies.
- Configurations and thresholds are chosen on validation data; test data is read once, for what was chosen.
- What is said about a budget is chosen seed by seed, on the validation data of that seed alone, because the test images
  of one seed are validation images of another.
"""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_modules.ensembling import cascades, pools
from lightning_modules.ensembling.cascades import Cascade, StageTable, View
from lightning_modules.ensembling.pools import Pool
from lightning_modules.metrics import classification
from lightning_modules.runs import Evaluation, Figure, Series

if TYPE_CHECKING:
    from optuna.trial import Trial

KINDS = ("single", "ensemble", "cascade")
TITLES = {"single": "single models", "ensemble": "ensembles", "cascade": "cascades"}
TRAINING_FACTOR = 3  # a training step costs about three forward passes: one forward, two for the gradients
Configuration = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What one trial found: the objectives, the constraints (which hold at <= 0), and what is recorded beside them."""

    values: tuple[float, ...]
    constraints: dict[str, float]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def feasible(self) -> bool:
        """Whether every constraint holds."""
        return all(value <= 0 for value in self.constraints.values())


@dataclass(frozen=True)
class Finished:
    """A finished trial as the results need it."""

    number: int
    config: Configuration
    outcome: Outcome


class CachedSearch:
    """The search over the committees that one pool of trained members allows: validation accuracy up, MACs down.

    Args:
        pools: the pool of each seed.
        budget: most MACs per sample; null for those of the dearest member, or of `largest` members if all cost the
            same.
        largest: most members of an ensemble.
        longest: most models of a cascade.
        edges: candidate thresholds per stage of a cascade, by its number of models from 3 on.
        margin: standard errors by which a cascade's own constraint must hold on validation data.
        training_images: images that each member was trained on, epochs times rows; null if that is not known.
        latency: milliseconds per image of each architecture, where they were measured.
        rows: a sentence on the rows that choose and report, where these are not the splits val and test.

    Raises:
        ValueError: the budget is under the cheapest member, or a committee of one member is asked for.
    """

    directions = ("maximize", "minimize")
    metric_names = ("validation_top1_percent", "macs_per_sample")

    def __init__(
        self,
        pools: Sequence[Pool],
        *,
        budget: int | float | None = None,
        largest: int = 4,
        longest: int = 3,
        edges: Mapping[str, int],
        margin: float = 1.0,
        training_images: int | None = None,
        latency: Mapping[str, float] | None = None,
        rows: str = "",
    ) -> None:
        self.first = pools[0]
        self.macs = self.first.macs
        cheapest, dearest = min(self.macs, key=self.macs.get), max(self.macs.values())
        alike = self.macs[cheapest] == dearest  # no single is larger than another
        self.equal = min(largest, len(self.first.members)) if alike else 1
        self.budget = self.equal * dearest if budget is None else budget
        if self.budget < self.macs[cheapest]:
            raise ValueError(
                f"budget ({self.budget}) is under the cheapest member, {cheapest} with {self.macs[cheapest]} MACs per "
                f"sample; expected at least that. Raise `budget` or train smaller members."
            )
        if min(largest, longest) < 2:
            raise ValueError(f"largest ({largest}) and longest ({longest}) must be at least 2: one member is a single.")
        self.limits = {"ensemble": largest, "cascade": longest}
        self.training_images, self.latency, self.rows = training_images, dict(latency or {}), rows
        self.seeds = [_SeedPool(pool, {int(k): v for k, v in edges.items()}, margin) for pool in pools]

    @property
    def space(self) -> dict:
        """What the trials of a study share; a study with another space is another study."""
        return {
            "architectures": self.macs,
            "limits": self.limits,
            "budget": self.budget,
            "edges": {str(stages): count for stages, count in self.seeds[0].edges.items()},
            "margin": self.seeds[0].margin,
            "seeds": [seed.pool.seed for seed in self.seeds],
        }

    def start(self, slot: int) -> dict[str, str]:
        """Parameters that a trial has from the beginning: kinds in turn, so that each gets the same number."""
        return {"kind": KINDS[slot % len(KINDS)]}

    def suggest(self, trial: "Trial") -> Configuration:
        """Ask Optuna for a configuration."""
        kind = trial.suggest_categorical("kind", KINDS)
        if kind == "single":
            return {"kind": kind, "members": [self._architecture(trial, kind)]}
        count = trial.suggest_int(f"{kind}_members", 2, self.limits[kind])
        if trial.suggest_categorical(f"{kind}_choice", ("copies", "mixed")) == "copies":
            members = [self._architecture(trial, f"{kind}_copies")] * count
        else:
            members = [self._architecture(trial, f"{kind}_mixed_{k}") for k in range(count)]
        config = {
            "kind": kind,
            "members": sorted(members, key=list(self.macs).index),
            "average": trial.suggest_categorical(f"{kind}_average", ("logits", "probabilities")),
            "temperature": trial.suggest_categorical(f"{kind}_temperature", (False, True)),
        }
        return config if kind == "ensemble" else config | self._stopping(trial)

    def _architecture(self, trial: "Trial", where: str) -> str:
        """A family, then one of its depths, then one of its widths; what leaves no choice is not asked."""
        found = {name: copies[0] for name, copies in self.first.architectures.items()}
        for attribute in ("family", "depth", "width"):
            options = list(dict.fromkeys(getattr(member, attribute) for member in found.values()))
            if len(options) > 1:
                where = f"{where}_{attribute}"
                chosen = trial.suggest_categorical(where, options)
                found = {name: member for name, member in found.items() if getattr(member, attribute) == chosen}
                where = f"{where}_{chosen}" if attribute != "width" else where
        return next(iter(found)) if len(found) == 1 else trial.suggest_categorical(f"{where}_name", tuple(found))

    def _stopping(self, trial: "Trial") -> Configuration:
        """When a cascade stops: the measure of confidence, and the constraint that its thresholds are chosen under."""
        config: Configuration = {
            "confidence": trial.suggest_categorical("cascade_confidence", cascades.CONFIDENCES),
            "constraint": trial.suggest_categorical("cascade_constraint", ("max_accuracy", "min_macs")),
        }
        if config["constraint"] == "max_accuracy":
            config["share"] = round(trial.suggest_float("cascade_share", 0.05, 1.0), 3)
        return config

    def evaluate(self, config: Configuration, report: Callable[[float, int], None] | None = None) -> Outcome:
        """Validation accuracy in percent and MACs per sample, means over seeds."""
        measured = np.array([seed.measure(config, "val") for seed in self.seeds])
        accuracy, macs = measured[:, 0], measured[:, 1]
        uses = {name: config["members"].count(name) for name in config["members"]}
        spare = [len(self.first.architectures[name]) - count for name, count in uses.items()]
        facts: dict[str, Any] = {
            "config": config,
            "validation_top1_percent_by_seed": [round(float(v), 6) for v in accuracy],
            "macs_per_sample_by_seed": [round(float(v), 6) for v in macs],
        }
        if self.training_images is not None:
            per_image = sum(self.macs[name] for name in config["members"])
            facts["training_macs"] = TRAINING_FACTOR * self.training_images * per_image
        if all(name in self.latency for name in config["members"]):
            facts["worst_case_milliseconds_per_image"] = sum(self.latency[name] for name in config["members"])
        return Outcome(
            (round(float(accuracy.mean()), 6), round(float(macs.mean()), 6)),
            {"budget": round(float(macs.mean() - self.budget), 6), "copies": float(-min(spare))},
            facts,
        )

    def report(self, trials: Sequence[Finished], dataset: str, settings: Mapping[str, Any]) -> Evaluation:
        """Fronts, the comparison at each budget, and the statement, from finished trials.

        Args:
            trials: the finished trials of the study, in order of their slots.
            dataset: first part of every metric's name.
            settings: what the study was asked for, kept with the results.
        """
        fronts = {kind: _front(self, [t for t in trials if t.config["kind"] == kind]) for kind in KINDS}
        metrics = self._at_budgets(trials, dataset)
        gains = {kind: gain_by_budget(self.rungs, metrics, dataset, kind) for kind in KINDS[1:]}
        study = {
            "settings": dict(settings),
            "space": self.space,
            "statement": " ".join([*(state(kind, found, dataset) for kind, found in gains.items()), self.rows]).strip(),
            "gains": {kind: [asdict(gain) for gain in found] for kind, found in gains.items()},
            "trials": [_row(trial) for trial in trials],
        }
        count = len(self.seeds)
        figures = [_front_figure(fronts, dataset, count, self.rows), _gain_figure(gains, dataset, count)]
        return Evaluation(
            metrics=metrics,
            figures=[figure for figure in figures if any(series.x for series in figure.series)],
            files={"study.json": as_json(study), "pareto.json": as_json(fronts)},
        )

    @property
    def rungs(self) -> dict[str, int]:
        """The budgets of the comparison: what each architecture but the cheapest costs, within the search's budget.

        Where all cost the same: what 2, 3, ... of them cost.
        """
        rungs = dict(list(self.macs.items())[1:])
        if self.equal > 1:
            rungs = {f"{k}_members": k * max(self.macs.values()) for k in range(2, self.equal + 1)}
        return {name: macs for name, macs in rungs.items() if macs <= self.budget}

    def _at_budgets(self, trials: Sequence[Finished], dataset: str) -> dict[int, dict[str, float]]:
        """Test accuracy and cost of the best of each kind within each budget, chosen on the same seed's validation."""
        metrics: dict[int, dict[str, float]] = {seed.pool.seed: {} for seed in self.seeds}
        for (name, budget), kind in itertools.product(self.rungs.items(), KINDS):
            chosen = [best_within(trials, kind, budget, index) for index in range(len(self.seeds))]
            if None in chosen:
                continue
            for index, (trial, own) in enumerate(zip(chosen, metrics.values(), strict=True)):
                accuracy, macs = self.test(trial.config, index)
                own[f"{dataset}/sweep_{kind}/top1_percent@{name}"] = accuracy
                own[f"{dataset}/sweep_{kind}/macs_per_sample@{name}"] = macs
        return metrics

    def test(self, config: Configuration, index: int) -> tuple[float, float]:
        """Test accuracy in percent and MACs per sample on the seed at `index`."""
        return self.seeds[index].measure(config, "test")


def training_images(system: Mapping[str, Any]) -> int:
    """Images that each member of an arm is trained on: epochs times the rows of its training split.

    Args:
        system: resolved blocks `data` and `pretrain` of the arm.

    Raises:
        ValueError: the recipe trains on a split whose number of rows it does not state.
    """
    epochs, split = system["pretrain"]["epochs"], system["data"]["splits"].get("train", {"rows": 0})
    if epochs and split["rows"] is None:
        raise ValueError("data.splits.train.rows is null; a sweep counts training MACs and needs a number of rows.")
    return epochs * split["rows"] if epochs else 0


class _SeedPool:
    """The pool of one seed and what was computed from it; every table and temperature is made once."""

    def __init__(self, pool: Pool, edges: Mapping[int, int], margin: float) -> None:
        self.pool, self.edges, self.margin = pool, edges, margin
        self.macs: dict[View, int] = {(m.name, m.native): m.macs[m.native] for m in pool.members}
        self.rotations = max(len(copies) for copies in pool.architectures.values())
        self.table, self.temperature, self.choose = cache(self._table), cache(self._temperature), cache(self._choose)

    def measure(self, config: Configuration, split: str) -> tuple[float, float]:
        """Accuracy in percent and MACs per sample of a configuration on a split, means over the copies in turn."""
        table = self._table_for(config, split)
        if config["kind"] == "cascade":
            traces = [cascades.run_cascade(table, cascade, self.macs) for cascade in self.choose(json.dumps(config))]
            accuracy = np.mean([trace.correct.mean() for trace in traces])
            return 100 * float(accuracy), float(np.mean([trace.macs.mean() for trace in traces]))
        rotations = [self._views(config, rotation) for rotation in range(self.rotations)]
        accuracy = np.mean([table.stage(views)[1].mean() for views in rotations])
        return 100 * float(accuracy), float(sum(self.macs[view] for view in rotations[0]))

    def _choose(self, encoded: str) -> list[Cascade]:
        """The thresholds of a cascade for each rotation, on validation data.

        `max_accuracy`: within a share of what all its models cost; the first model alone where nothing fits.
        `min_macs`: as accurate as the average of all its models; all of them, always, where nothing is.
        """
        config = json.loads(encoded)
        table, chosen = self._table_for(config, "val"), []
        for rotation in range(self.rotations):
            views = self._views(config, rotation)
            fronts = cascades.search(table, [views], self.macs, self.edges)
            if config["constraint"] == "max_accuracy":
                budget = config["share"] * sum(self.macs[view] for view in views)
                cascade = cascades.max_accuracy(fronts, table, self.macs, self.edges, budget=budget, margin=self.margin)
                chosen.append(cascade or Cascade(views[:1], ()))
            else:
                target = table.stage(views)[1]
                cascade = cascades.min_macs(fronts, table, self.macs, self.edges, target=target, margin=self.margin)
                chosen.append(cascade or Cascade(views, (math.inf,) * (len(views) - 1)))
        return chosen

    def _views(self, config: Configuration, rotation: int) -> tuple[View, ...]:
        return cascades.with_copies(config["members"], self.pool.architectures, rotation)

    def _table_for(self, config: Configuration, split: str) -> StageTable:
        rules = config.get("average", "logits"), config.get("temperature", False)
        return self.table(split, *rules, config.get("confidence", "max_probability"))

    def _table(self, split: str, average: str, temperature: bool, confidence: str) -> StageTable:
        scores = {view: self.pool.logits[view][split] for view in self.macs}
        if temperature:
            scores = {view: logits / np.float64(self.temperature(view)) for view, logits in scores.items()}
        return StageTable(scores, self.pool.labels[split], confidence=confidence, average=average)

    def _temperature(self, view: View) -> float:
        return pools.fit_temperature(self.pool.logits[view]["val"], self.pool.labels["val"])


def best_within(trials: Sequence[Finished], kind: str, budget: int | float, index: int) -> Finished | None:
    """The trial of a kind that is most accurate on the validation data of one seed within a budget, if there is one.

    Among equals the cheaper one, then the earlier one.
    """

    def preference(trial: Finished) -> tuple[float, float, int]:
        facts = trial.outcome.facts
        return (
            -facts["validation_top1_percent_by_seed"][index],
            facts["macs_per_sample_by_seed"][index],
            trial.number,
        )

    fitting = (
        trial
        for trial in trials
        if trial.config["kind"] == kind
        and trial.outcome.feasible
        and trial.outcome.facts["macs_per_sample_by_seed"][index] <= budget
    )
    return min(fitting, key=preference, default=None)


@dataclass(frozen=True)
class Gain:
    """Points that a kind of committee gains over the best single model at one budget: mean and 95 % interval."""

    budget: int
    rung: str
    mean: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def sure(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.low is not None and self.low > 0


def gain_by_budget(
    rungs: Mapping[str, int], metrics: Mapping[int, Mapping[str, float]], dataset: str, kind: str
) -> list[Gain]:
    """Paired differences over seeds at every budget where the kind has a configuration, from small to large."""
    gains = []
    for name, budget in rungs.items():
        metric = f"{dataset}/sweep_{kind}/top1_percent@{name}"
        if all(metric in own for own in metrics.values()):
            single = pools.over_seeds(metrics, f"{dataset}/sweep_single/top1_percent@{name}")
            difference = pools.over_seeds(metrics, metric) - single
            low, high = classification.seed_interval(difference)
            ends = (round(low, 6), round(high, 6)) if math.isfinite(low) else (None, None)
            gains.append(Gain(budget, name, round(float(difference.mean()), 6), *ends, len(difference)))
    return gains


def state(kind: str, gains: Sequence[Gain], dataset: str) -> str:
    """Where a kind of committee starts to beat single models, and where that is certain.

    It starts at the budget from which on the mean gain is above zero at every budget; it is certain where the interval
    is above zero, each budget taken by itself.
    """
    what = f"On {dataset}, {TITLES[kind]}"
    if not gains:
        return f"{what} do not fit into any budget of the single models."
    start = len(gains)
    while start and gains[start - 1].mean > 0:
        start -= 1
    searched = f"{len(gains)} budgets from {gains[0].budget:,} to {gains[-1].budget:,}, n = {gains[0].seeds}"
    if start == len(gains):
        return f"{what} are not ahead of single models at the largest budget ({searched})."
    certain = [f"{gain.budget:,}" for gain in gains if gain.sure]
    where = f"for certain at {', '.join(certain)}" if certain else "but nowhere for certain"
    return (
        f"{what} are ahead of single models from {gains[start].budget:,} MACs per sample on, {where} (95 % interval "
        f"above zero; {searched})."
    )


def _front(search: CachedSearch, trials: Sequence[Finished]) -> list[dict]:
    """Undominated configurations on mean validation accuracy and MACs, with their test accuracy over seeds."""
    feasible = [trial for trial in trials if trial.outcome.feasible]
    if not feasible:
        return []
    accuracy, macs = np.array([trial.outcome.values for trial in feasible]).T
    return [_point(search, feasible[index]) for index in pools.pareto_front(macs, accuracy)]


def _point(search: CachedSearch, trial: Finished) -> dict:
    tested = np.array([search.test(trial.config, index) for index in range(len(search.seeds))])
    low, high = classification.seed_interval(tested[:, 0], bounds=classification.bounds_of("test_top1_percent"))
    return {
        **_row(trial),
        **{name: value for name, value in trial.outcome.facts.items() if name == "training_macs"},
        "test_top1_percent": round(float(tested[:, 0].mean()), 6),
        "test_top1_percent_interval": [round(low, 6), round(high, 6)] if math.isfinite(low) else None,
        "test_top1_percent_by_seed": [round(float(v), 6) for v in tested[:, 0]],
        "test_macs_per_sample": round(float(tested[:, 1].mean()), 6),
    }


def _row(trial: Finished) -> dict:
    accuracy, macs = trial.outcome.values
    return {
        "trial": trial.number,
        "configuration": trial.config,
        "validation_top1_percent": accuracy,
        "macs_per_sample": macs,
        "feasible": trial.outcome.feasible,
    }


def as_json(content: object) -> bytes:
    """A file of results."""
    return (json.dumps(content, indent=1) + "\n").encode()


def _front_figure(fronts: Mapping[str, list[dict]], dataset: str, seeds: int, rows: str) -> Figure:
    drawn = {kind: sorted(front, key=lambda point: point["test_macs_per_sample"]) for kind, front in fronts.items()}
    caption = (
        "Configurations that no other of their kind beats in both mean validation accuracy and MACs; shown is their "
        f"test accuracy, mean over {seeds} seeds and 95 % interval. Each kind had the same number of trials."
    )
    return Figure(
        id=f"{dataset}-sweep-fronts",
        title=f"Pareto fronts of {', '.join(TITLES.values())} on {dataset}",
        caption=f"{caption} {rows}".strip(),
        x_label="average MACs per sample",
        y_label="top-1 accuracy (%)",
        x_scale="log",
        y_scale="log_error",
        series=[
            pools.seed_series(
                TITLES[kind],
                "line",
                [point["test_macs_per_sample"] for point in front],
                np.array([point["test_top1_percent_by_seed"] for point in front]).T,
            )
            for kind, front in drawn.items()
            if front
        ],
    )


def _gain_figure(gains: Mapping[str, list[Gain]], dataset: str, seeds: int) -> Figure:
    drawn = [
        Series(
            name=TITLES[kind],
            kind="line",
            x=[float(gain.budget) for gain in found],
            y=[gain.mean for gain in found],
            low=[gain.low for gain in found] if seeds > 1 else None,
            high=[gain.high for gain in found] if seeds > 1 else None,
        )
        for kind, found in gains.items()
        if found
    ]
    budgets = sorted({x for series in drawn for x in series.x})
    drawn.insert(0, Series(TITLES["single"], "dashed", budgets, [0.0] * len(budgets)))
    return Figure(
        id=f"{dataset}-sweep-gain",
        title=f"What committees gain over the best single model on {dataset}",
        caption="Difference in test accuracy at equal budgets, paired over seeds, with 95 % intervals. On either side "
        "the configuration was chosen on the validation data of the same seed, on which it keeps the budget.",
        x_label="budget (MACs per sample)",
        y_label="gain (points)",
        x_scale="log",
        series=drawn,
    )
