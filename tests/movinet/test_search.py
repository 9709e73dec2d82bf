"""The search for a MoViNet: its window and its reward, the same networks under a seed, as many for both samplers."""

import json
import sys
from random import Random

import optuna
import pytest
import torch

from lightning_modules.datasets.world import views
from lightning_modules.movinet import search as module
from lightning_modules.movinet.architecture import Architecture, Space, cost
from lightning_modules.movinet.search import ArchitectureSearch, Retraining
from lightning_modules.settings import bind
from lightning_modules.sweeps import studies
from lightning_modules.sweeps.search import Finished, Outcome
from stages import study as command
from stages.composing import compose
from stages.page import figures
from stages.plan import PlanError, load_plan
from stages.study import rows_of

MACS = 1_140_032  # of the tiny arm


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "actions"
    sizes = {"train": 48, "val": 20, "test": 20}
    views.prepare(
        folder, view="actions", seed=0, sizes=sizes, image_size=16, options={"frames": 12, "zoom": 1.75}, workers=1
    )
    return folder


@pytest.fixture
def make(data):
    """A search over the tiny arm with few rows; settings replace those of conf/sweep."""

    def made(model=None, splits=None, trained=None, **changes):
        system = compose("tiny", system="movinet")["system"]
        system["model"] |= model or {}
        system["pretrain"] |= trained or {}
        system["data"]["splits"] = splits or {
            "train": {"source": "train", "rows": 32}, "val": {"source": "val", "rows": 16},
            "test": {"source": "test", "rows": None},
        }  # fmt: skip
        settings = compose("tiny", sweep="architecture")["sweep"]["search"]
        return bind({**settings, **changes}, "conf/sweep/architecture.yaml: search")(system, data)

    return made


# Decisions for TPE to learn in moments: only widths, numbers of layers and expansions.
SMALL = dict(
    space=dict(
        stem=8, widths=[8, 16, 24], strides=[2, 2, 1], project=64, dense=96, most_layers=3, kernels=["3x3x3"],
        squeeze=[True], expansions=[1.5, 3.0],
    ),
    window=0.2,
)  # fmt: skip


class Scored(ArchitectureSearch):
    """A trial costs nothing: deep networks are good, and show it after each epoch."""

    def evaluate(self, config, report=None):
        architecture = Architecture.parse(config["architecture"])
        accuracy = sum(len(block.layers) for block in architecture.blocks) / 10
        for epoch in range(1, self.epochs):
            report(self.reward(accuracy, architecture), epoch)
        facts = {"config": config, "validation_top1_percent": 100 * accuracy, "macs_per_clip": self.macs(architecture)}
        return Outcome((self.reward(accuracy, architecture),), {"window": -1.0}, facts)


def scored(search, sampler="tpe"):
    search.__class__, search.sampler = Scored, sampler
    return search


def run(folder, search, trials, name="study"):
    study = studies.SharedStudy(name, search, trials=trials, storage=None, folder=folder)
    search.tune(study.study)
    study.work()
    study.close()
    return study


def macs(search, config):
    given = {name: search.model[name] for name in ("form", "causal", "squeeze", "num_classes")}
    return cost(Architecture.parse(config["architecture"]), frames=12, size=16, **given).macs


# What is searched


def test_the_budget_is_what_the_arms_network_costs_with_all_its_members(make):
    assert make().budget == MACS
    twice = make(model={"members": 2, "stride": 2, "form": "3d"})
    half = cost(twice.own, frames=6, size=16, num_classes=10).macs
    assert twice.budget == 2 * half


def test_the_reward_is_that_of_tunas(make):
    search = make(budget=2 * MACS, window=0.6, beta=-0.1)
    assert search.reward(0.8, search.own) == pytest.approx(0.8 - 0.1 * 0.5)
    assert make(budget=MACS / 2, window=0.5, beta=-0.1).reward(0.8, search.own) == pytest.approx(0.8 - 0.1 * 1.0)
    assert make().reward(0.8, search.own) == 0.8


def test_only_decisions_with_an_effect_are_asked_for():
    space = Space(stem=8, widths=(8, 16), strides=(2, 1), project=64, most_layers=2, squeeze=(True,))
    asked = []
    chosen = space.decide(lambda name, choices: asked.append(name) or choices[-1 if "layers" not in name else 0])
    assert asked == [
        "project",
        "block0/layers", "block0/layer0/kernel", "block0/layer0/expansion",
        "block1/width", "block1/layers", "block1/layer0/kernel", "block1/layer0/expansion",
    ]  # fmt: skip
    assert space.build(chosen).written_out() == {
        "stem": 8, "project": 80, "dense": 2048,
        "blocks": [
            {"width": 8, "stride": 2, "layers": ["32@5x3x3"]},
            {"width": 24, "stride": 1, "layers": ["64@5x3x3"]},
        ],
    }  # fmt: skip
    assert set(asked) < set(space.decisions())


def test_an_architecture_that_is_written_out_is_read_again(make):
    search = make()
    for seed in range(5):
        built = search.space_searched.build(search.draw(Random(seed)))
        assert Architecture.parse(json.loads(json.dumps(built.written_out()))) == built


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(budget=1000), r"budget \(1,000 MACs per clip, up to 10% more or less\) is met by none of .* Choose"),
        (dict(budget=10**9), r"budget \(1,000,000,000 .* which cost .* half of them at most"),
        (dict(space={"depths": [1]}), "space: unknown key 'depths'; did you mean 'widths'"),
        (dict(space={"frames": 8}), "space: unknown key 'frames'"),
        (dict(space={"kernals": ["3x3x3"]}), "space: unknown key 'kernals'; did you mean 'kernels'"),
        (dict(space={"most_layers": "3"}), "space.most_layers is '3', expected a valid integer"),
        (dict(space={"strides": [2, 2, 3]}), "space.strides: 2 is 3, expected 1 or 2"),
        (dict(space={"expansions": [0]}), "space.expansions: 0 is 0, expected greater than 0"),
        (dict(space={"kernels": ["3x3x3-"]}), r"a layer \('8@3x3x3--'\) is written channels@frames"),
        (dict(space={"widths": [8]}), r"a stride for each width, got \(8,\) and \(2, 2, 2, 1, 2\)"),
        (dict(space={"kernels": ["2x3x3"]}), "a kernel with odd sides"),
        (dict(space={"multipliers": []}), r"space.multipliers is \[\], .* at least 1 item"),
        (dict(fresh_seeds=[100, 1]), r"fresh_seeds \(\[100, 1\]\) hold data_seed \(100\)"),
        (dict(fresh_seeds=[1, 2, 1]), r"fresh_seeds \(\[1, 2, 1\]\) hold a seed twice; expected each once"),
        (dict(samplers=["grid"]), "samplers"),
        (dict(budget=0), "budget is 0, expected greater than"),
        (dict(beta=0.1), "beta is 0.1, expected less than or equal to 0"),
        (dict(model={"targets": "many"}), "model.targets is many, but networks are searched by accuracy"),
        (dict(trained={"epochs": 0}), "pretrain.epochs of the arm is 0, expected at least 1"),
        (dict(splits={"train": {"source": "train", "rows": 32}}), r"judged on the split val, .* \['train'\]"),
    ],
)
def test_what_cannot_be_searched_is_one_clear_line(make, changes, message, monkeypatch):
    monkeypatch.setattr(module, "DRAWS", 100)
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_another_arm_than_movinets_is_refused(data):
    system = compose("tiny", system="committees")["system"]
    settings = compose("tiny", sweep="architecture")["sweep"]["search"]
    with pytest.raises(ValueError, match="no `architecture`; expected an arm of MoViNets"):
        bind(settings, "conf")(system, data)


# Proposals


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_every_trial_is_trained_and_lies_in_the_window(make, tmp_path, sampler):
    """As many for both samplers: what lies outside is no trial."""
    search = scored(make(**SMALL, startup=4, reduction=None), sampler)
    study = run(tmp_path, search, 10)
    trials = study.finished()
    assert len(trials) == len(study.study.trials) == 10
    assert all(abs(macs(search, trial.config) / MACS - 1) <= 0.2 for trial in trials)
    assert all(trial.outcome.facts["macs_per_clip"] == macs(search, trial.config) for trial in trials)
    assert len({json.dumps(trial.config["architecture"]) for trial in trials}) > 4


def test_pruned_trials_count_for_both_samplers(make, tmp_path):
    for sampler in ("tpe", "random"):
        study = run(tmp_path, scored(make(**SMALL, startup=4), sampler), 16, name=sampler)
        states = [trial.state for trial in study.study.trials]
        assert len(states) == 16 and set(states) == {optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED}


def test_proposals_follow_from_the_seed_and_begin_alike_for_both_samplers(make, tmp_path):
    def found(name, sampler="tpe", **changes):
        study = run(tmp_path, scored(make(**SMALL, startup=4, reduction=None, **changes), sampler), 8, name=name)
        return [trial.config["architecture"] for trial in study.finished()]

    first = found("a")
    assert found("b") == first and found("c", seed=1) != first
    by_chance = found("d", "random")
    assert by_chance[:4] == first[:4] and by_chance[4:] != first[4:]


def test_tpe_learns_and_chance_does_not(make, tmp_path):
    """Of 24 trials the last twelve are better than those that both began with."""
    means = {}
    for sampler in ("tpe", "random"):
        trials = run(tmp_path, scored(make(**SMALL, startup=8, reduction=None), sampler), 24, name=sampler).finished()
        means[sampler] = sum(trial.outcome.values[0] for trial in trials[12:]) / 12
    assert means["tpe"] > means["random"] + 0.05


def test_a_network_outside_the_window_that_a_user_enqueued_is_not_trained(make, tmp_path):
    search = make()
    study = studies.SharedStudy("study", search, trials=1, storage=None, folder=tmp_path)
    search.tune(study.study)
    study.study.enqueue_trial({f"block{i}/layers": 1 for i in range(3)} | {"project": 0.75, "block2/width": 0.75})
    trial = study.study.ask()
    with pytest.raises(optuna.TrialPruned, match="lie outside the window around 1,140,032"):
        search.suggest(trial)
    study.close()


# Training


def test_a_trial_trains_its_network_and_reports_all_epochs_but_the_last(make):
    search, reported = make(epochs=2), []
    config = {"kind": "tpe", "architecture": search.space_searched.build(search.draw(Random(1))).written_out()}
    outcome = search.evaluate(config, lambda value, epoch: reported.append((epoch, value)))
    assert [epoch for epoch, _ in reported] == [1] and outcome.feasible
    facts = outcome.facts
    assert facts["macs_per_clip"] == macs(search, config) and 0 <= facts["validation_top1_percent"] <= 100
    share = abs(facts["macs_per_clip"] / MACS - 1)
    assert outcome.values[0] == pytest.approx(facts["validation_top1_percent"] / 100 - 0.1 * share, abs=1e-6)
    assert search.evaluate(config, lambda *_: None) == outcome, "a pure function of the configuration"
    with pytest.raises(optuna.TrialPruned):
        search.evaluate(config, pruned)


def pruned(value, epoch):
    raise optuna.TrialPruned


def test_the_training_of_a_trial_is_that_of_the_arm(make):
    """With the schedule over its epochs: rates at each step as the recipe has them, and weights that move."""
    search = make()
    model, data, _ = search.train(search.own, seed=3, epochs=1)
    torch.manual_seed(3)
    untrained = bind(search.model, "model")()
    moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), untrained.parameters(), strict=True)]
    assert any(moved) and data.seed == 3 and model.networks[0].architecture == search.own
    for schedule in ("one_cycle", "cosine_from_start"):
        model.recipe = {**search.recipe, "schedule": schedule}
        _, scheduler = model.optimizer_and_schedule(100)
        rates = []
        for _ in range(100):
            rates.append(scheduler.get_last_lr()[0])
            scheduler.optimizer.step()
            scheduler.step()
        assert 8 <= rates.index(max(rates)) <= 12 and rates[-1] < 0.1 * max(rates), "a tenth is warm-up"


def test_networks_are_trained_again_once_with_each_fresh_seed(make, tmp_path):
    search = make(fresh_seeds=[5, 6])
    search.recipe["epochs"] = 1
    again = Retraining(search, {"tpe": search.own.written_out(), "arm": search.own.written_out()})
    asked = []
    for slot in range(len(again.trials)):
        study = optuna.create_study()
        study.enqueue_trial(again.start(slot))
        asked.append(again.suggest(study.ask()))
    assert {(x["network"], x["seed"]) for x in asked} == {("tpe", 5), ("tpe", 6), ("arm", 5), ("arm", 6)}
    outcome = again.evaluate(asked[0])
    assert outcome.values == (outcome.facts["validation_top1_percent"],)
    assert 0 <= outcome.facts["test_top1_percent"] <= 100


# What is said


def test_the_studies_of_a_comparison_follow_each_other_and_are_told(make, tmp_path):
    search, run_studies = scored(make(**SMALL, startup=4, top=1, fresh_seeds=[5, 6])), {}

    def finish(name, one, trials):
        if isinstance(one, Retraining):
            values = iter([70.0, 60.0, 50.0, 72.0, 61.0, 52.0])
            one.evaluate = lambda config, report=None: Outcome(
                (value := next(values),), {}, {"config": config, "validation_top1_percent": value, "parameters": 9}
            )
        run_studies[name] = run(tmp_path, one, trials, name=name)
        return run_studies[name].finished()

    trials = search.conduct(finish, "movinet-architecture", 8)
    names = list(run_studies)
    assert names[:2] == ["movinet-architecture-tpe", "movinet-architecture-random"] and len(names) == 3
    assert names[2].startswith("movinet-architecture-again-")
    assert [len(study.study.trials) for study in run_studies.values()] == [8, 8, 6]
    evaluation = search.report(trials, "actions", {"trials": 8})
    assert evaluation.metrics[6]["actions/architecture_tpe/validation_top1_percent"] == 72
    assert evaluation.metrics[5]["actions/architecture_arm/validation_top1_percent"] == 50
    assert "actions/architecture_arm/slot" not in evaluation.metrics[5]
    study = json.loads(evaluation.files["study.json"])
    assert "searched 71.00 %, random 60.50 %, hand-made 51.00 %" in study["statement"]
    assert "Searched less random: +10.50 points (95 % interval +4.15 to +16.85)" in study["statement"]
    assert study["networks"]["arm"] == search.own.written_out()
    best = json.loads(evaluation.files["pareto.json"])
    own = [trial for trial in trials if trial.config["kind"] == "random"]
    assert best["random"][0]["reward"] == max(trial.outcome.values[0] for trial in own)
    assert [figure.id for figure in evaluation.figures] == ["actions-architectures", "actions-architectures-again"]
    assert all(figures.png(figure) for figure in evaluation.figures)
    assert all(study["networks"][name] == best[name][0]["configuration"]["architecture"] for name in best)


def test_of_equal_rewards_the_cheaper_network_is_the_best_and_what_is_infeasible_is_none(make):
    search = make()

    def trial(number, reward, cost, window=-0.01):
        facts = {"macs_per_clip": cost, "validation_top1_percent": 100 * reward}
        return Finished(number, {"kind": "tpe", "architecture": {}}, Outcome((reward,), {"window": window}, facts))

    trials = [trial(0, 0.5, 90), trial(1, 0.7, 95), trial(2, 0.7, 92), trial(3, 0.7, 92), trial(4, 0.9, 200, 0.5)]
    assert [best.number for best in search.best(trials)["tpe"]] == [2], "one network, however often it is tried"
    nothing = search.report([], "actions", {})
    assert "no trial is complete" in json.loads(nothing.files["study.json"])["statement"] and nothing.figures == []


def test_the_best_few_of_each_sampler_are_trained_again_and_their_means_compared(make):
    search = make(top=2, fresh_seeds=[5, 6])
    own = search.own.written_out()

    def trial(number, kind, reward, stem):
        facts = {"macs_per_clip": 90, "validation_top1_percent": 100 * reward}
        return Finished(number, {"kind": kind, "architecture": {**own, "stem": stem}}, Outcome((reward,), {}, facts))

    trials = [
        trial(0, "tpe", 0.5, 8), trial(1, "tpe", 0.9, 16), trial(2, "tpe", 0.8, 16), trial(3, "tpe", 0.7, 24),
        trial(0, "random", 0.6, 8),
    ]  # fmt: skip
    chosen = search.chosen(trials)
    assert {name: network["stem"] for name, network in chosen.items()} == {
        "tpe": 16,
        "tpe_2": 24,
        "random": 8,
        "arm": 8,
    }
    accuracies = {"tpe": (70.0, 74.0), "tpe_2": (60.0, 64.0), "random": (60.0, 61.0), "arm": (50.0, 52.0)}
    for (seed, name), number in zip(Retraining(search, chosen).trials, range(8), strict=True):
        facts = {"validation_top1_percent": accuracies[name][seed - 5]}
        config = {"kind": "again", "network": name, "seed": seed}
        trials.append(
            Finished(number, config, Outcome((facts["validation_top1_percent"],), {}, {"config": config, **facts}))
        )
    evaluation = search.report(trials, "actions", {})
    study = json.loads(evaluation.files["study.json"])
    assert "the mean of the best 2 of each sampler: searched 67.00 %, random 60.50 %" in study["statement"]
    assert "Searched less random: +6.50 points" in study["statement"]
    (bars,) = evaluation.figures[1].series
    assert bars.labels == ["searched 1", "searched 2", "random", "hand-made"] and list(bars.y) == [72, 62, 60.5, 51]


@pytest.mark.slow
def test_the_command_with_one_trial_of_each_sampler_ends_well(make, tmp_path, monkeypatch, capsys):
    search = scored(make(**SMALL, startup=4, fresh_seeds=[5]))
    search.recipe["epochs"] = 1  # of the networks that are trained again
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(command, "search_of", lambda *_: search)
    monkeypatch.setattr(sys, "argv", "study movinet --setting architecture --trials 1 --workers 1".split())
    command.main()
    said = capsys.readouterr().out
    assert said.count("1 trials asked, 1 complete, 0 pruned, 0 lost") == 2 and "3 trials asked, 3 complete" in said
    study = json.loads((tmp_path / ".scratch/sweeps/movinet-architecture/study.json").read_text())
    assert set(study["networks"]) == {"tpe", "random", "arm"} and len(study["trials"]) == 5


# Arms that a search may take


def test_an_arm_needs_no_row_of_its_own_for_trials_that_train():
    plan = load_plan("tiny")
    (row,) = rows_of(plan, "committees-mnist", "training")
    assert (row.runs, row.dataset, row.paper) == ("committees-mnist", "mnist", "committees")
    assert rows_of(plan, "committees-digits", "training") == [plan.row("sweep", "committees-digits")]
    assert rows_of(plan, "committees-mnist", "cached")[0].runs == "committees-mnist"
    with pytest.raises(PlanError, match="no arm 'committees-none' in `sweep` or `evaluate`"):
        rows_of(plan, "committees-none", "cached")
    with pytest.raises(PlanError, match="no arm 'committees-none' in `pretrain`"):
        rows_of(plan, "committees-none", "training")
