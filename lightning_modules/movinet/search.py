"""The search for a MoViNet under a budget of operations, held against as many random networks (section 3.1).

A trial is a network of a space (`architecture.Space`) that costs as much as the budget, up to a few percent. It is
trained for a short, fixed schedule, and its value is TuNAS's reward: validation accuracy less a tenth of the relative
distance to the budget. The paper shares weights between all networks and learns a policy over choices; here Optuna's
TPE proposes whole networks, and each is trained by itself. What it proposes outside the window is refused by the
closed form of the cost, before anything is trained, and proposed again: so the search and its random baseline train
the same number of networks. The best few of each, and the network of the arm, are then trained again from fresh seeds.

Read `ArchitectureSearch.evaluate` first, then `conduct`.
"""

import copy
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.pruners import HyperbandPruner, NopPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial
from pydantic import Field

from lightning_modules.datasets import storage
from lightning_modules.ensembling.pools import seed_series
from lightning_modules.files import digest
from lightning_modules.metrics.classification import seed_interval
from lightning_modules.movinet.architecture import Architecture, Choice, Space, cost
from lightning_modules.movinet.clips import ClipData
from lightning_modules.movinet.module import MoViNets
from lightning_modules.runs import Evaluation, Figure, Series
from lightning_modules.settings import Count, Natural, Share, bind
from lightning_modules.sweeps.search import Configuration, Finished, Outcome, as_json
from lightning_modules.validation import untouched

if TYPE_CHECKING:
    from optuna.trial import Trial

Sampler = Literal["tpe", "random"]
TITLES = {"tpe": "searched", "random": "random", "arm": "hand-made"}
DRAWS = 2_000  # random networks after which a window counts as empty
FACTS = ("validation_top1_percent", "test_top1_percent", "macs_per_clip", "parameters")
PROPOSALS = 50  # of TPE, after which a trial takes a random network


class ArchitectureSearch:
    """The search over the networks of a space whose cost lies in a window around a budget.

    Args:
        system: resolved blocks `model`, `data` and `pretrain` of an arm of MoViNets; a trial replaces `architecture`.
        dataset: folder of its prepared data set.
        space: see `WrittenSpace`; what is left out is as in the paper. Frames and their size are the arm's.
        samplers: each has as many trials: `tpe`, which learns from them, and `random`. Both begin with the same ones.
        budget: MACs of a clip; null for those of the arm's own network.
        window: largest distance from the budget, as a share of it.
        beta: what the reward loses by a distance as large as the budget, as a number below 0; TuNAS has -0.1.
        epochs: of a trial; null for those of the arm's recipe, which the networks trained again have in any case.
        reduction: Hyperband goes on with one of so many trials at each of its rungs; null to prune nothing.
        startup: random trials before TPE learns.
        seed: of the proposals.
        data_seed: of every trial: rows, order and weights at the beginning.
        top: so many networks of each sampler, the best ones, are trained again.
        fresh_seeds: those that they are trained again with.

    Raises:
        ValueError: the arm is none of MoViNets, has no accuracy or no validation rows, or is not trained; the space is
            none, or hardly a network of it lies in the window; or a fresh seed is given twice or that of the trials.
    """

    directions = ("maximize",)
    metric_names = ("reward",)

    def __init__(
        self,
        system: dict,
        dataset: Path,
        *,
        space: dict[str, Any],
        samplers: Annotated[list[Sampler], Field(min_length=1)],
        budget: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0)] | None,
        window: Share,
        beta: Annotated[float, Field(le=0)],
        epochs: Count | None,
        reduction: Annotated[int, Field(ge=2, le=100)] | None,
        startup: Natural,
        seed: Natural,
        data_seed: Natural,
        top: Count,
        fresh_seeds: list[Natural],
    ) -> None:
        self.model, self.data, self.recipe = system["model"], system["data"], dict(system["pretrain"])
        if "architecture" not in self.model:
            raise ValueError("the arm's model has no `architecture`; expected an arm of MoViNets.")
        if "val" not in self.data["splits"]:
            raise ValueError(f"networks are judged on the split val, but data.splits has {list(self.data['splits'])}.")
        if self.model.get("targets", "one") == "many":
            raise ValueError("model.targets is many, but networks are searched by accuracy; expected another arm.")
        if len(set(fresh_seeds)) < len(fresh_seeds):
            raise ValueError(f"fresh_seeds ({fresh_seeds}) hold a seed twice; expected each once.")
        if data_seed in fresh_seeds:
            raise ValueError(f"fresh_seeds ({fresh_seeds}) hold data_seed ({data_seed}); expected other seeds.")
        storage.card(dataset)  # missing data is said before there are workers
        self.dataset, self.samplers, self.sampler = dataset, samplers, samplers[0]
        frames = len(range(0, self.model["frames"], self.model.get("stride", 1)))
        self.space_searched = replace(Space.parse(space), frames=frames, size=self.model["size"])
        if self.model.get("squeeze") == "none":
            self.space_searched = replace(self.space_searched, squeeze=self.space_searched.squeeze[:1])
        self.epochs, self.reduction, self.startup = epochs or self.recipe["epochs"], reduction, startup
        if not self.recipe["epochs"]:
            raise ValueError("pretrain.epochs of the arm is 0, expected at least 1: the networks found are trained.")
        self.seed, self.data_seed, self.top, self.fresh_seeds = seed, data_seed, top, fresh_seeds
        self.beta, self.window = beta, window
        self.own = Architecture.parse(self.model["architecture"])
        self.budget = self.macs(self.own) if budget is None else budget
        self.draw(Random(f"{seed}"))

    @property
    def space(self) -> dict:
        """What the trials of a study share; a study with another space is another study."""
        shared = {
            "space": asdict(self.space_searched), "sampler": self.sampler, "budget": self.budget,
            "window": self.window, "beta": self.beta, "epochs": self.epochs, "reduction": self.reduction,
            "startup": self.startup, "seed": self.seed, "data_seed": self.data_seed, "recipe": self.recipe,
            "model": {name: value for name, value in self.model.items() if name != "architecture"},
            "data": self.data,
        }  # fmt: skip
        return json.loads(json.dumps(shared))

    def macs(self, architecture: Architecture) -> int:
        """Multiply-accumulates of one clip, in microseconds: those of all members of the arm."""
        names = ("num_classes", "form", "causal", "squeeze", "positions")
        given = {name: self.model[name] for name in names if name in self.model}
        found = cost(architecture, frames=self.space_searched.frames, size=self.space_searched.size, **given)
        return self.model.get("members", 1) * found.macs

    def distance(self, architecture: Architecture) -> float:
        """How far the cost is from the budget, as a share of it."""
        return abs(self.macs(architecture) / self.budget - 1)

    def reward(self, accuracy: float, architecture: Architecture) -> float:
        """TuNAS's reward, accuracy + beta * |cost / budget - 1|, accuracy as a share."""
        return round(accuracy + self.beta * self.distance(architecture), 6)

    def draw(self, random: Random) -> dict[str, Choice]:
        """Choices that are random among those of all networks in the window.

        Raises:
            ValueError: none of many networks lies there.
        """
        seen = []
        for _ in range(DRAWS):
            chosen = self.space_searched.draw(random)
            architecture = self.space_searched.build(chosen)
            if self.distance(architecture) <= self.window:
                return chosen
            seen.append(self.macs(architecture))
        seen.sort()
        raise ValueError(
            f"budget ({self.budget:,} MACs per clip, up to {self.window:.0%} more or less) is met by none of {DRAWS:,} "
            f"random networks of the space, which cost {seen[0]:,} to {seen[-1]:,}, half of them at most "
            f"{seen[len(seen) // 2]:,}. Choose a budget that is common there, another space, or a wider window."
        )

    def start(self, slot: int) -> dict[str, Choice]:
        """Nothing is given: the sampler proposes whole networks."""
        return {}

    def tune(self, study: optuna.Study) -> None:
        """Give a study the sampler and the pruner of this search."""
        study.sampler = WindowSampler(self, study)
        study.pruner = (
            HyperbandPruner(min_resource=1, max_resource=self.epochs, reduction_factor=self.reduction)
            if self.reduction
            else NopPruner()
        )

    def suggest(self, trial: "Trial") -> Configuration:
        """Ask Optuna for a network; only decisions that have an effect on it are asked for.

        Raises:
            TrialPruned: it lies outside the window, which only happens to networks that a user enqueued.
        """
        architecture = self.space_searched.build(self.space_searched.decide(trial.suggest_categorical))
        if self.distance(architecture) > self.window:
            raise optuna.TrialPruned(f"{self.macs(architecture):,} MACs lie outside the window around {self.budget:,}.")
        return {"kind": self.sampler, "architecture": architecture.written_out()}

    def evaluate(self, config: Configuration, report: Callable[[float, int], None] | None = None) -> Outcome:
        """Train a network and give its reward; all trials have the same schedule and seed.

        The reward so far is reported after every epoch but the last, together with the number of epochs.
        """
        architecture = Architecture.parse(config["architecture"])

        def after_epoch(accuracy: float, epoch: int) -> None:
            if report and epoch < self.epochs:
                report(self.reward(accuracy, architecture), epoch)

        model, _, accuracy = self.train(architecture, seed=self.data_seed, epochs=self.epochs, after_epoch=after_epoch)
        facts = {"config": config, **self._facts(architecture, model, accuracy)}
        window = {"window": round(self.distance(architecture) - self.window, 6)}
        return Outcome((self.reward(accuracy, architecture),), window, facts)

    def train(
        self,
        architecture: Architecture,
        *,
        seed: int,
        epochs: int,
        after_epoch: Callable[[float, int], None] | None = None,
    ) -> tuple[MoViNets, ClipData, float]:
        """Train a network with the arm's recipe.

        Args:
            architecture: the network.
            seed: decides rows, their order, and the weights at the beginning.
            epochs: over which the recipe's schedule is laid.
            after_epoch: takes the validation accuracy after each epoch, and the number of epochs so far.

        Returns:
            The trained module, its data, and its validation accuracy, from 0 to 1.
        """
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        given = {**self.model, "architecture": architecture.written_out()}
        model: MoViNets = bind(given, "the arm's model")().to(device)
        data: ClipData = bind(self.data, "the arm's data", folder=self.dataset, seed=seed)()
        model.check_data(data)
        model.recipe = self.recipe
        loader = data.train_dataloader()
        optimizer, schedule = model.optimizer_and_schedule(epochs * len(loader))
        accuracy = math.nan
        for epoch in range(epochs):
            loader.sampler.set_epoch(epoch)
            model.train()
            for batch in loader:
                optimizer.zero_grad()
                model.training_step({name: x.to(device) for name, x in batch.items()}).backward()
                optimizer.step()
                schedule.step()
            accuracy = accuracy_on("val", model, data)
            if after_epoch:
                after_epoch(accuracy, epoch + 1)
        return model, data, accuracy

    def _facts(self, architecture: Architecture, model: MoViNets, accuracy: float) -> dict[str, Any]:
        return {
            "validation_top1_percent": round(100 * accuracy, 6),
            "macs_per_clip": self.macs(architecture),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        }

    def conduct(self, finish: Callable[[str, Any, int], list[Finished]], study: str, trials: int) -> list[Finished]:
        """The studies that the comparison consists of, one after another: each sampler, then what they found.

        Args:
            finish: takes the name of a study, its search and its number of trials, and gives the complete ones.
            study: what names begin with.
            trials: of each sampler.
        """
        found: list[Finished] = []
        for sampler in self.samplers:
            one = copy.copy(self)
            one.sampler = sampler
            found += finish(f"{study}-{sampler}", one, trials)
        again = Retraining(self, self.chosen(found))
        if again.trials:
            found += finish(f"{study}-again-{digest(again.space)[:8]}", again, len(again.trials))
        return found

    def best(self, trials: Sequence[Finished]) -> dict[str, list[Finished]]:
        """The `top` networks of each sampler by their rewards; among equals the cheaper, then the earlier one."""
        found = {}
        for sampler in self.samplers:
            own = [trial for trial in trials if trial.config["kind"] == sampler and trial.outcome.feasible]
            own.sort(key=lambda t: (-t.outcome.values[0], t.outcome.facts["macs_per_clip"], t.number))
            different: dict[str, Finished] = {}
            for trial in own:
                different.setdefault(json.dumps(trial.config["architecture"]), trial)
            if own:
                found[sampler] = list(different.values())[: self.top]
        return found

    def chosen(self, trials: Sequence[Finished]) -> dict[str, dict]:
        """What is trained again: the best networks of each sampler (`tpe`, `tpe_2` and so on), and that of the arm."""
        found = {
            _called(sampler, place): trial.config["architecture"]
            for sampler, best in self.best(trials).items()
            for place, trial in enumerate(best, start=1)
        }
        return {**found, "arm": self.own.written_out()}

    def report(self, trials: Sequence[Finished], dataset: str, settings: Mapping[str, Any]) -> Evaluation:
        """The best networks of each sampler, what they and the arm's are worth from fresh seeds, and the trials.

        Args:
            trials: the complete trials of all studies; pruned ones lagged behind those of their own study.
            dataset: first part of every metric's name.
            settings: what the search was asked for, kept with the results.
        """
        best, again = self.best(trials), [trial for trial in trials if trial.config["kind"] == "again"]
        metrics: dict[int, dict[str, float]] = {}
        for trial in again:
            own = metrics.setdefault(trial.config["seed"], {})
            for name in set(FACTS) & trial.outcome.facts.keys():
                own[f"{dataset}/architecture_{trial.config['network']}/{name}"] = float(trial.outcome.facts[name])
        study = {
            "settings": dict(settings),
            "space": self.space,
            "statement": self._state(best, metrics, dataset),
            "networks": self.chosen(trials),
            "trials": [_row(trial) for trial in trials],
        }
        fronts = {sampler: [_row(trial) for trial in own] for sampler, own in best.items()}
        figures = [self._progress(trials, dataset), *self._again(metrics, dataset)]
        return Evaluation(
            metrics=metrics or {self.data_seed: {}},
            figures=[figure for figure in figures if figure.series],
            files={"study.json": as_json(study), "pareto.json": as_json(fronts)},
        )

    def _accuracies(self, metrics: Mapping[int, Mapping[str, float]], dataset: str) -> dict[str, list[np.ndarray]]:
        """Validation accuracies of the networks of each sampler, and of the arm's, by seed; those with all seeds."""
        found: dict[str, list[np.ndarray]] = {}
        for origin in (*self.samplers, "arm"):
            for place in range(1, 1 + self.top):
                name = f"{dataset}/architecture_{_called(origin, place)}/validation_top1_percent"
                if metrics and all(name in own for own in metrics.values()):
                    found.setdefault(origin, []).append(np.array([own[name] for own in metrics.values()]))
        return found

    def _state(
        self, best: Mapping[str, Sequence[Finished]], metrics: Mapping[int, Mapping[str, float]], dataset: str
    ) -> str:
        where = f"On {dataset}, within {self.window:.0%} of {self.budget:,} MACs per clip,"
        if not best:
            return f"{where} no trial is complete."
        told = ", ".join(
            f"{TITLES[sampler]} {own[0].outcome.facts['validation_top1_percent']:.2f} %"
            for sampler, own in best.items()
        )
        told = f"{where} the best networks have this validation accuracy in their trials: {told}."
        again = {origin: np.mean(values, axis=0) for origin, values in self._accuracies(metrics, dataset).items()}
        if not again:
            return told
        means = ", ".join(f"{TITLES[origin]} {values.mean():.2f} %" for origin, values in again.items())
        each = f", the mean of the best {self.top} of each sampler" if self.top > 1 else ""
        told += f" Trained again from {len(metrics)} fresh seeds{each}: {means}."
        if {"tpe", "random"} <= again.keys():
            difference = again["tpe"] - again["random"]
            low, high = seed_interval(difference)
            told += f" Searched less random: {difference.mean():+.2f} points"
            told += f" (95 % interval {low:+.2f} to {high:+.2f})." if math.isfinite(low) else " (one seed)."
        return told

    def _progress(self, trials: Sequence[Finished], dataset: str) -> Figure:
        series = []
        for sampler in self.samplers:
            own = sorted((trial for trial in trials if trial.config["kind"] == sampler), key=lambda t: t.number)
            if own:
                numbers, values = [float(t.number + 1) for t in own], [t.outcome.values[0] for t in own]
                series.append(Series(TITLES[sampler], "points", numbers, values))
                best = list(itertools.accumulate(values, max))
                series.append(Series(f"{TITLES[sampler]}, best so far", "line", numbers, best))
        return Figure(
            id=f"{dataset}-architectures",
            title=f"Searched against random architectures on {dataset}",
            caption=f"Reward of the complete trials: validation accuracy {self.beta:+g} times the distance from the "
            "budget. One seed.",
            x_label="trials",
            y_label="reward",
            series=series,
        )

    def _again(self, metrics: Mapping[int, Mapping[str, float]], dataset: str) -> list[Figure]:
        again = self._accuracies(metrics, dataset)
        if not again:
            return []
        titles = [
            f"{TITLES[origin]} {place}" if len(own) > 1 else TITLES[origin]
            for origin, own in again.items()
            for place in range(1, 1 + len(own))
        ]
        values = np.stack([values for own in again.values() for values in own], axis=1)
        return [
            Figure(
                id=f"{dataset}-architectures-again",
                title=f"The networks found on {dataset}, trained again",
                caption=f"Validation accuracy from {len(metrics)} fresh seeds, with the whole schedule of the arm.",
                x_label="network",
                y_label="top-1 accuracy (%)",
                series=[seed_series("validation", "bars", range(len(titles)), values, titles)],
            )
        ]


class WindowSampler(BaseSampler):
    """Proposes whole networks until one lies in the window: those of TPE, or random ones.

    A proposal depends on the seed, on the number of the trial and, for TPE, on the trials before it. The first random
    ones are the same for both.

    Args:
        search: what is searched.
        study: that it proposes for. All its trials are learned from, not those of one bracket of Hyperband alone.
    """

    def __init__(self, search: ArchitectureSearch, study: optuna.Study) -> None:
        self.search, self.study = search, study
        self.distributions = {
            name: CategoricalDistribution(choices) for name, choices in search.space_searched.decisions().items()
        }

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All decisions."""
        return self.distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Choice]:
        """A choice for each decision of one network in the window."""
        search, name = self.search, f"{self.search.seed}/{trial.number}"
        if search.sampler == "tpe" and trial.number >= search.startup:
            tpe = TPESampler(
                seed=Random(f"{name}/tpe").getrandbits(32), n_startup_trials=search.startup, multivariate=False
            )
            for _ in range(PROPOSALS):
                chosen = search.space_searched.decide(
                    lambda decision, _: tpe.sample_independent(
                        self.study, trial, decision, self.distributions[decision]
                    )
                )
                if search.distance(search.space_searched.build(chosen)) <= search.window:
                    return chosen
        return search.draw(Random(name))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Choice:
        """A decision that the proposed network does not have: a user enqueued a part of another one."""
        return Random(f"{self.search.seed}/{trial.number}/{param_name}").choice(param_distribution.choices)


class Retraining:
    """Each network once with each fresh seed, with the arm's whole schedule: a study in which nothing is chosen.

    Args:
        search: where the networks are from.
        networks: written out, by name.
    """

    directions = ("maximize",)
    metric_names = ("validation_top1_percent",)

    def __init__(self, search: ArchitectureSearch, networks: Mapping[str, dict]) -> None:
        self.search, self.networks = search, dict(networks)
        self.trials = list(itertools.product(search.fresh_seeds, networks))

    @property
    def space(self) -> dict:
        """What the trials share."""
        names = ("recipe", "model", "data")
        shared = {name: value for name, value in self.search.space.items() if name in names}
        return {**shared, "networks": self.networks, "seeds": self.search.fresh_seeds}

    def start(self, slot: int) -> dict[str, Choice]:
        """Everything is given."""
        seed, network = self.trials[slot]
        return {"network": network, "seed": seed}

    def tune(self, study: optuna.Study) -> None:
        """Nothing is pruned."""
        study.pruner = NopPruner()

    def suggest(self, trial: "Trial") -> Configuration:
        """The network and the seed."""
        network = trial.suggest_categorical("network", tuple(self.networks))
        seed = trial.suggest_categorical("seed", tuple(self.search.fresh_seeds))
        return {"kind": "again", "network": network, "seed": seed, "architecture": self.networks[network]}

    def evaluate(self, config: Configuration, report: Callable[[float, int], None] | None = None) -> Outcome:
        """Validation accuracy in percent; the accuracy on test rows, where there are any, is a fact beside it."""
        architecture, epochs = Architecture.parse(config["architecture"]), self.search.recipe["epochs"]
        model, data, accuracy = self.search.train(architecture, seed=config["seed"], epochs=epochs)
        facts = {"config": config, **self.search._facts(architecture, model, accuracy)}
        if "test" in data.splits:
            facts["test_top1_percent"] = round(100 * accuracy_on("test", model, data), 6)
        return Outcome((facts["validation_top1_percent"],), {}, facts)

    def report(self, trials: Sequence[Finished], dataset: str, settings: Mapping[str, Any]) -> Evaluation:
        """What all studies of the search say."""
        return self.search.report(trials, dataset, settings)


def accuracy_on(split: str, model: MoViNets, data: ClipData) -> float:
    """The share of a split that a network, or the average of its members, has right."""
    device = next(model.parameters()).device
    batches = ({name: x.to(device) for name, x in batch.items()} for batch in data.evaluation_batches(split))
    with untouched(model):
        return float(model.validate(data, batches)["accuracy"])


def _called(origin: str, place: int) -> str:
    """The name of the network that is the best, the second best and so on of its origin."""
    return origin if place == 1 else f"{origin}_{place}"


def _row(trial: Finished) -> dict:
    facts = {name: trial.outcome.facts[name] for name in FACTS if name in trial.outcome.facts}
    reward = {} if trial.config["kind"] == "again" else {"reward": trial.outcome.values[0]}
    return {"trial": f"{trial.config['kind']}-{trial.number}", "configuration": trial.config, **reward, **facts}
