"""Sweeps: what a trial measures, the same trials on every machine, and studies that survive their workers."""

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace

import numpy as np
import optuna
import pytest

from lightning_modules.ensembling import pools
from lightning_modules.files import ROOT
from lightning_modules.metrics import classification
from lightning_modules.sweeps import batches, studies
from lightning_modules.sweeps.search import KINDS, TITLES, CachedSearch, Finished, Gain, Outcome, best_within, state
from stages import study as command
from stages import sweep, ui
from stages.composing import compose
from stages.page import figures
from tests.conftest import free_port
from tests.pipeline import Copy

WIDTHS = {4: 100, 8: 200, 16: 400}
COPIES = 3


def make_pool(seed, samples=60, classes=4, **changes):
    """Members whose logits are the truth plus noise, less of it for the wider ones."""
    rng = np.random.default_rng(seed)
    labels = {split: rng.integers(0, classes, samples) for split in ("val", "test")}
    members, logits = [], {}
    for width, macs in WIDTHS.items():
        for copy in range(COPIES):
            member = pools.Member(f"mlp-h{width}#{copy}", "mlp", width, 2, copy, 10 * width, {"8": macs}, "8")
            members.append(member)
            logits[member.name, "8"] = {
                split: (np.eye(classes)[own] * width**0.5 + rng.normal(0, 2.0, (samples, classes))).astype(np.float32)
                for split, own in labels.items()
            }
    return pools.Pool(seed, classes, tuple(members), labels, logits)


def make_search(seeds=3, **changes):
    settings = {"edges": {"3": 6}, "training_images": 1000, "latency": {"mlp-h4": 0.1, "mlp-h8": 0.2}}
    return CachedSearch([make_pool(seed) for seed in range(seeds)], **{**settings, **changes})


@pytest.fixture(scope="module")
def search():
    return make_search()


# What a trial measures


def test_a_single_is_the_mean_over_its_copies_and_seeds(search):
    outcome = search.evaluate({"kind": "single", "members": ["mlp-h8"]})
    pools = [seed.pool for seed in search.seeds]
    by_seed = [
        100 * np.mean([classification.accuracy(p.scores(f"mlp-h8#{k}", "val"), p.labels["val"]) for k in range(COPIES)])
        for p in pools
    ]
    assert outcome.values == pytest.approx((np.mean(by_seed), 200), abs=1e-5)
    assert outcome.facts["validation_top1_percent_by_seed"] == pytest.approx(by_seed, abs=1e-5)
    assert outcome.facts["training_macs"] == 3 * 1000 * 200
    assert outcome.facts["worst_case_milliseconds_per_image"] == 0.2


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_an_ensemble_is_what_combining_its_members_gives(search, average):
    config = {"kind": "ensemble", "members": ["mlp-h4"] * COPIES, "average": average, "temperature": False}
    expected = []
    for pool in (seed.pool for seed in search.seeds):
        stacked = np.stack([pool.scores(f"mlp-h4#{k}", "val") for k in range(COPIES)])
        expected.append(100 * classification.accuracy(pools.combine(stacked, average), pool.labels["val"]))
    assert search.evaluate(config).values == pytest.approx((np.mean(expected), COPIES * 100), abs=1e-5)


def test_a_cascade_costs_no_more_than_all_its_models_and_keeps_its_budget(search):
    config = {
        "kind": "cascade", "members": ["mlp-h4", "mlp-h8"], "average": "logits", "temperature": True,
        "confidence": "max_probability", "constraint": "max_accuracy", "share": 0.6,
    }  # fmt: skip
    accuracy, macs = search.evaluate(config).values
    assert 100 <= macs <= 0.6 * 300
    assert accuracy > search.evaluate({"kind": "single", "members": ["mlp-h4"]}).values[0]
    whole = search.evaluate({**config, "constraint": "min_macs"}).values
    ensemble = search.evaluate({**config, "kind": "ensemble"}).values
    assert whole[0] >= ensemble[0] and whole[1] <= ensemble[1]


def test_no_trial_reads_test_data():
    search, other = make_search(seeds=1), make_search(seeds=1)
    for by_split in other.seeds[0].pool.logits.values():
        by_split["test"][:] = 0
    study = optuna.create_study(directions=search.directions, sampler=optuna.samplers.RandomSampler(0))
    for slot in range(9):
        study.enqueue_trial(search.start(slot))
        config = search.suggest(study.ask())
        assert search.evaluate(config) == other.evaluate(config)


def test_more_copies_than_there_are_and_more_than_the_budget_are_infeasible(search):
    config = {"kind": "ensemble", "members": ["mlp-h4"] * 4, "average": "logits", "temperature": False}
    outcome = search.evaluate(config)
    assert outcome.constraints["copies"] == 1 and outcome.constraints["budget"] == 0 and not outcome.feasible
    dear = search.evaluate({**config, "members": ["mlp-h16", "mlp-h16"]})
    assert dear.constraints["budget"] == 400 and not dear.feasible


def test_family_depth_and_width_are_asked_where_the_pool_leaves_a_choice():
    pool = make_pool(0)
    other = [replace(m, name=f"deep-{m.name}", depth=5, macs={"8": 3 * m.macs["8"]}) for m in pool.members]
    third = [replace(m, name=f"net-{m.name}", family="convnet", depth=None) for m in pool.members[:COPIES]]
    logits = {(m.name, "8"): pool.logits[m.name[m.name.index("mlp") :], "8"] for m in other + third}
    joined = pools.join_pools([pool, replace(pool, members=(*other, *third), logits=logits)])
    search = CachedSearch([joined], edges={"3": 6})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    asked, found = set(), set()
    for _ in range(60):
        study.enqueue_trial(search.start(0))
        trial = study.ask()
        found |= set(search.suggest(trial)["members"])
        asked |= set(trial.params)
    assert found == set(joined.architectures)
    assert asked == {
        "kind",
        "single_family",
        "single_family_mlp_depth",
        "single_family_mlp_depth_2_width",
        "single_family_mlp_depth_5_width",
    }


def test_a_budget_under_the_cheapest_member_is_one_clear_line():
    with pytest.raises(ValueError, match=r"budget \(99\) is under the cheapest member, mlp-h4 with 100 MACs.*Raise"):
        make_search(budget=99)


# What is said about the trials


def finished(number, kind, accuracy, macs, feasible=True):
    accuracy, macs = ([float(v) for v in values] for values in (accuracy, macs))
    facts = {"validation_top1_percent_by_seed": accuracy, "macs_per_sample_by_seed": macs}
    outcome = Outcome((np.mean(accuracy), np.mean(macs)), {"budget": -1.0 if feasible else 1.0}, facts)
    return Finished(number, {"kind": kind}, outcome)


def test_the_best_within_a_budget_is_chosen_on_each_seeds_own_validation_data():
    trials = [
        finished(0, "single", [90, 95], [100, 100]),
        finished(1, "single", [94, 91], [100, 100]),
        finished(2, "single", [99, 99], [300, 300]),
        finished(3, "single", [98, 98], [100, 100], feasible=False),
        finished(4, "single", [94, 95], [90, 110]),
    ]
    assert best_within(trials, "single", 100, 0).number == 4, "equal, and cheaper"
    assert best_within(trials, "single", 100, 1).number == 0
    assert best_within(trials, "ensemble", 100, 0) is None


def gains(*rows):
    return [Gain(100 * (k + 1), f"h{k}", mean, low, mean + 1, 5) for k, (mean, low) in enumerate(rows)]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(-1.0, -2.0), (0.5, 0.1), (0.4, -0.1)], "from 200 MACs per sample on, for certain at 200 (95 % interval"),
        ([(0.5, -0.1), (0.4, -0.1)], "from 100 MACs per sample on, but nowhere for certain"),
        ([(0.5, 0.1), (-0.1, -0.3)], "are not ahead of single models at the largest budget"),
        ([(0.5, None)], "nowhere for certain"),
        ([], "do not fit into any budget"),
    ],
)  # fmt: skip
def test_the_statement_says_where_committees_start_to_win(rows, said):
    assert said in state("ensemble", gains(*rows), "digits")


def test_results_have_a_front_for_each_kind_and_as_many_trials(search, tmp_path):
    _, trials = batches.run(search, trials=36, batch=6, seed=0, workers=1, memory=tmp_path)
    evaluation = search.report(trials, "digits", {"trials": 36})
    study, fronts = (json.loads(evaluation.files[name]) for name in ("study.json", "pareto.json"))
    kinds = [row["configuration"]["kind"] for row in study["trials"]]
    assert {kind: kinds.count(kind) for kind in kinds} == dict.fromkeys(KINDS, 12)
    for kind, front in fronts.items():
        costs, values = ([p[key] for p in front] for key in ("macs_per_sample", "validation_top1_percent"))
        assert costs == sorted(costs) and values == sorted(values) and len(front) == len(set(values)), kind
        assert all(point["feasible"] and point["training_macs"] > 0 for point in front)
    assert set(evaluation.metrics) == {0, 1, 2}
    assert "digits/sweep_single/top1_percent@mlp-h16" in evaluation.metrics[0]
    assert study["statement"].startswith("On digits, ensembles")
    for figure in evaluation.figures:
        assert [series.name for series in figure.series] == list(TITLES.values())
        for series in figure.series:
            assert series.x == sorted(series.x) and len(series.x) == len(series.y)
            assert series.kind == "dashed" or len(series.x) == len(series.low) == len(series.high)


@pytest.mark.parametrize("kinds", [[], ["single"], ["ensemble"], ["cascade"], ["single", "ensemble"], ["cascade"] * 2])
def test_results_of_few_trials_are_told_and_drawn(search, kinds):
    """So few that a kind, or every kind, has no trial or none within a budget."""
    members = {"single": ["mlp-h16"], "ensemble": ["mlp-h16"] * 2, "cascade": ["mlp-h8", "mlp-h16"]}
    more = {"ensemble": {"average": "logits", "temperature": False},
            "cascade": {"confidence": "max_probability", "constraint": "min_macs"}}  # fmt: skip
    configs = [{"kind": kind, "members": members[kind], **more.get(kind, {})} for kind in kinds]
    trials = [Finished(number, config, search.evaluate(config)) for number, config in enumerate(configs)]
    evaluation = search.report(trials, "digits", {})
    assert len(json.loads(evaluation.files["study.json"])["trials"]) == len(kinds)
    assert all(figures.png(figure) for figure in evaluation.figures)


# The same trials on every machine


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_changes_nothing(search, tmp_path, workers):
    def told(count, folder):
        _, trials = batches.run(search, trials=24, batch=6, seed=1, workers=count, memory=tmp_path / folder)
        return search.report(trials, "digits", {}).files

    assert told(1, "one") == told(workers, "more")


class Stops(CachedSearch):
    """A search that dies after some evaluations, and counts them."""

    left = 1_000_000

    def evaluate(self, config, report=None):
        type(self).left -= 1
        if type(self).left < 0:
            raise KeyboardInterrupt
        return super().evaluate(config, report)


def test_an_interrupted_study_ends_with_the_same_trials_and_evaluates_nothing_twice(tmp_path, monkeypatch):
    search = make_search()
    _, unbroken = batches.run(search, trials=24, batch=6, seed=1, workers=1, memory=tmp_path / "a")
    search.__class__ = Stops
    monkeypatch.setattr(Stops, "left", 10)
    with pytest.raises(KeyboardInterrupt):
        batches.run(search, trials=24, batch=6, seed=1, workers=1, memory=tmp_path / "b")
    assert len(list((tmp_path / "b").glob("*.json"))) == 10
    monkeypatch.setattr(Stops, "left", len(list((tmp_path / "a").glob("*.json"))) - 10)
    assert batches.run(search, trials=24, batch=6, seed=1, workers=1, memory=tmp_path / "b")[1] == unbroken


@pytest.mark.parametrize("name", ["trials", "batch", "workers"])
def test_a_number_below_one_is_refused(search, tmp_path, name):
    numbers = {"trials": 3, "batch": 3, "workers": 1, name: 0}
    with pytest.raises(ValueError, match=rf"{name} \(0\) must be at least 1"):
        batches.run(search, **numbers, seed=0, memory=tmp_path)


# Studies that survive their workers


class Toy:
    """A search of no cost, or of `seconds`; with `lag`, trials report values of which the lower ones get pruned."""

    directions = ("maximize",)
    metric_names = ("x",)

    def __init__(self, seconds=0.0, span=1.0, lag=False):
        self.seconds, self.space, self.lag = seconds, {"span": span}, lag

    def start(self, slot):
        return {"slot": slot}

    def suggest(self, trial):
        return {"slot": trial.suggest_int("slot", 0, 10_000), "x": trial.suggest_float("x", 0, self.space["span"])}

    def evaluate(self, config, report=None):
        time.sleep(self.seconds)
        for step in range(3 if self.lag else 0):
            report(-float(config["slot"]), step)
        return Outcome((config["x"],), {"none": 0.0}, {"config": config})

    def report(self, trials, dataset, settings):
        raise NotImplementedError


def join(folder, search=None, trials=6, storage=None, name="toy"):
    return studies.SharedStudy(name, search or Toy(), trials=trials, storage=storage, folder=folder)


def die(study):
    """Let a worker die in the middle of a trial: its locks are gone, the trial is not told."""
    trial = study.claim()
    study.search.suggest(trial)
    study.close()
    return trial


def test_asked_is_completed_and_a_restart_continues(tmp_path):
    join(tmp_path, trials=4).work()
    study = join(tmp_path, trials=6)
    study.work()
    assert [trial.config["slot"] for trial in study.finished()] == list(range(6))
    assert len(study.study.trials) == 6
    assert study.summary() == "6 trials asked, 6 complete, 0 pruned, 0 lost and made up for"


def test_the_trial_of_a_dead_worker_is_run_again_with_the_same_parameters(tmp_path):
    study = join(tmp_path)
    study.restore()
    dead = die(study)
    study = join(tmp_path)
    study.work()
    assert len(study.finished()) == 6
    again = next(t for t in study.study.trials if t.number != dead.number and t.user_attrs["slot"] == 0)
    assert again.params == dead.params
    assert study.study.trials[dead.number].state == optuna.trial.TrialState.FAIL


def test_the_trial_of_a_living_worker_is_left_alone(tmp_path):
    busy, idle = join(tmp_path), join(tmp_path)
    busy.restore()
    trial = busy.claim()
    idle.restore()
    assert idle.claim().number != trial.number
    assert not [t for t in idle.study.trials if t.state == optuna.trial.TrialState.FAIL]
    for study in (busy, idle):
        study.close()


def test_a_trial_that_kills_every_worker_is_named(tmp_path):
    for _ in range(studies.TRIES):
        study = join(tmp_path, trials=1)
        study.restore()
        die(study)
    with pytest.raises(RuntimeError, match=r"for the 5th time; it was \{'slot': 0, 'x'"):
        join(tmp_path, trials=1).work()


@pytest.mark.parametrize("name", [".", "..", "a/b", "../toy", "", "-x", "a b"])
def test_a_name_that_reaches_outside_its_folder_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"study is '.*', expected a name of letters, digits, .* \(STUDY=...\)"):
        join(tmp_path / "sweeps", name=name)
    assert not list(tmp_path.iterdir())


def test_a_trial_that_a_user_enqueues_is_run_besides_the_others(tmp_path):
    study = join(tmp_path, trials=2)
    study.restore()
    study.study.enqueue_trial({"slot": 7, "x": 0.25})
    for _ in range(3):
        last = study.claim()
    study.search.suggest(last)
    study.close()  # the worker dies with all three
    study = join(tmp_path, trials=2)
    study.work()
    assert [trial.config for trial in study.finished() if trial.config["x"] == 0.25] == [{"slot": 7, "x": 0.25}]
    assert len(study.finished()) == 3 and study.done
    assert study.summary() == "2 trials asked, 3 complete, 0 pruned, 3 lost and made up for, 1 of them enqueued by you"


def test_a_full_disk_costs_a_study_nothing_but_its_last_line(tmp_path):
    """A write that ends in the middle of a line, met by a worker that lives and by one that starts."""
    study, journal = join(tmp_path, trials=3), tmp_path / "toy.journal"
    study.restore()
    whole = journal.read_bytes()
    with journal.open("ab") as file:
        file.write(b'{"op_code":8,"worker_id":"' + b"x" * 2 * studies.BLOCK)
    study.restore()
    study.run(study.claim())
    assert journal.read_bytes().startswith(whole) and b"xx" not in journal.read_bytes()
    with journal.open("ab") as file:
        file.write(b'{"op_code":8')
    join(tmp_path, trials=3).work()
    assert len(study.finished()) == 3


def test_a_study_that_somebody_else_made_is_left_alone(tmp_path):
    storage, _ = studies.open_storage(None, "toy", tmp_path)
    optuna.create_study(study_name="toy", storage=storage).add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(ValueError, match=r"searches another space \(span: None there, 1.0 here\)"):
        join(tmp_path)


def test_a_study_of_another_space_is_one_clear_line(tmp_path):
    join(tmp_path).work()
    with pytest.raises(
        ValueError, match=r"'toy' in .*toy.journal searches another space \(span: 1.0 there, 2.0 here\)"
    ):
        join(tmp_path, Toy(span=2.0))


def test_trials_that_lag_behind_are_pruned_and_count_as_done(tmp_path):
    study = join(tmp_path, Toy(lag=True), trials=12)
    study.work()
    states = [trial.state for trial in study.study.trials]
    assert states.count(optuna.trial.TrialState.PRUNED) > 0 and len(states) == 12
    assert len(study.finished()) == states.count(optuna.trial.TrialState.COMPLETE)


def test_each_worker_takes_its_own_device(tmp_path):
    def work():
        (tmp_path / f"{os.getpid()}").write_text(os.environ["CUDA_VISIBLE_DEVICES"])

    studies.run_workers(work, 3, ["4", "5"])
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["4", "4", "5"]


@pytest.mark.parametrize("end", ["os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_workers_that_all_end_badly_are_told(end):
    with pytest.raises(RuntimeError, match="same command continues the study"):
        studies.run_workers(lambda: exec(end), 2, [])


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        (
            "redis://db/sweeps",
            r"storage \(redis://db/sweeps\) must be null, for a journal file, or the URL of a database",
        ),
        ("sqlite://", r"storage \(sqlite://\) must be null, for a journal file, or the URL .* or a file of SQLite"),
        ("sweeps.db", r"storage \(sweeps.db\) must be null, for a journal file, or the URL"),
        (
            "mysql://db/sweeps",
            r"storage \(mysql://db/sweeps\) cannot be used: No module named .*driver that the URL names",
        ),
        (
            "postgresql://me:secret@127.0.0.1:9/x",
            r"storage \(postgresql://\*\*\*@127.0.0.1:9/x\) cannot be used: .*Is the server up",
        ),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_clear_line(tmp_path, storage, message):
    with pytest.raises(ValueError, match=message):
        join(tmp_path, storage=storage)


# One training budget, split


@pytest.fixture(scope="module")
def splitting(tmp_path_factory):
    """The module (it imports torch), the system of the digits arm, and its data."""
    from lightning_modules.datasets import digits
    from lightning_modules.sweeps import splitting

    folder = tmp_path_factory.mktemp("data") / "digits"
    digits.prepare(folder, **{k: v for k, v in compose("tiny", dataset="digits")["dataset"].items() if k != "_target_"})
    overrides = {"model": {"widths": [4, 16]}, "pretrain": {"epochs": 3}}
    system = compose("tiny", system="committees", overrides=overrides)["system"]

    def make(budget=None):
        return splitting.TrainingSearch(system, folder, budget=budget, largest=8, epochs=None, data_seed=0)

    return make


def test_one_training_budget_is_split_into_as_many_members_as_it_pays_for(splitting):
    search = splitting()
    assert search.macs == {4: 3 * 3 * 900 * 312, 16: 3 * 3 * 900 * 1440}, "factor, epochs, images, MACs"
    assert search.budget == search.macs[16] and search.most(16) == 1 and search.most(4) == 1440 // 312
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(20):
        config = search.suggest(study.ask())
        assert config["copies"] * search.macs[config["width"]] <= search.budget


def test_a_training_budget_under_the_cheapest_member_is_one_clear_line(splitting):
    with pytest.raises(
        ValueError, match=r"budget \(1000\) is under the cheapest member, width 4 with .* training MACs"
    ):
        splitting(budget=1000)


def test_members_are_trained_inside_the_trial_which_reports_every_epoch_and_can_be_pruned(splitting):
    search, reported = splitting(), []
    outcome = search.evaluate({"width": 4, "copies": 2}, lambda value, epoch: reported.append((epoch, value)))
    assert [epoch for epoch, _ in reported] == [0, 1, 2] and reported[-1][1] == outcome.values[0]
    assert outcome.feasible and outcome.facts["training_macs"] == 2 * search.macs[4]
    assert search.evaluate({"width": 4, "copies": 2}) == outcome, "a pure function of the configuration"

    def prune(value, epoch):
        raise optuna.TrialPruned

    with pytest.raises(optuna.TrialPruned):
        search.evaluate({"width": 4, "copies": 2}, prune)


def test_the_split_is_told_with_the_best_big_and_the_best_small_members(splitting):
    search = splitting()
    trials = [
        Finished(k, config, Outcome((value,), {}, {"training_macs": 9, "training_share": 0.5}))
        for k, (config, value) in enumerate(
            [({"width": 16, "copies": 1}, 90.0), ({"width": 4, "copies": 4}, 92.5), ({"width": 4, "copies": 2}, 91.0)]
        )
    ]
    evaluation = search.report(trials, "digits", {})
    statement = json.loads(evaluation.files["study.json"])["statement"]
    assert "1 of width 16: 90.00 %" in statement and "4 of width 4: 92.50 % validation accuracy for 50%" in statement
    assert [series.name for series in evaluation.figures[0].series] == ["width 4", "width 16"]
    nothing = search.report([], "digits", {})
    assert "no trial with" in json.loads(nothing.files["study.json"])["statement"] and nothing.figures == []


# Command lines


def test_the_command_with_one_trial_that_trains_ends_well(splitting, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(command, "search_of", lambda *_: splitting())
    line = "study committees-digits --setting training --trials 1 --workers 1"
    monkeypatch.setattr(sys, "argv", line.split())
    command.main()
    assert capsys.readouterr().out.startswith("1 trials asked, 1 complete, 0 pruned, 0 lost")
    study = json.loads((tmp_path / ".scratch/sweeps/committees-digits-training/study.json").read_text())
    assert len(study["trials"]) == 1 and "validation accuracy for " in study["statement"]


def test_the_dashboards_port_and_study_are_checked(tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port} is in use: .* `make dashboard PORT={port + 1}`"):
            ui.free_port(port, "dashboard")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    join(tmp_path / ".scratch/sweeps")
    with pytest.raises(ValueError, match=r"no study 'toys' .* expected one of: toy\."):
        ui.dashboard(8080, "toys", None)


def test_the_dashboard_ends_at_a_signal_in_whatever_it_does(tmp_path, monkeypatch):
    """An error raised in the server's code would be answered like any other, and the server would go on."""
    script = f"""if 1:
        import os, signal, sys
        sys.argv[1:] = ["--study", "toy", "--port", "{free_port()}"]
        from stages import ui
        from stages.command import run_stage
        def run_server(*_, **__):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except BaseException:
                pass
        import optuna_dashboard
        optuna_dashboard.run_server = run_server
        run_stage(ui.main)"""
    join(tmp_path / ".scratch/sweeps")
    environment = {**os.environ, "DVC_ROOT": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment).returncode == -signal.SIGTERM


def test_a_folder_that_cannot_be_locked_is_named_with_the_way_out(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(studies.fcntl, "flock", no_locks)
    with pytest.raises(OSError, match=rf"{tmp_path}/.* cannot be locked \(No locks available\): .* STORAGE="):
        join(tmp_path / ".scratch/sweeps")


def test_latencies_are_those_of_the_latest_training_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for time_stamp, (run, value) in enumerate([("seed-0--new", 2.0), ("seed-0--old", 1.0), ("other", 9.0)]):
        folder = tmp_path / ".scratch/runs/committees" / f"tiny--{'pool' if run != 'other' else run}--pretrain--{run}"
        folder.mkdir(parents=True)
        facts = {"mlp-h4/milliseconds_per_image@batch_1": value, "mlp-h4/milliseconds_per_image@batch_64": 0.1}
        (folder / "machine.json").write_text(json.dumps(facts))
        os.utime(folder / "machine.json", (100 - time_stamp, 100 - time_stamp))
    assert sweep.latencies("committees", "tiny--pool--pretrain") == {"mlp-h4": 2.0}


@pytest.mark.parametrize(
    ("machines", "expected"),
    [
        ("local", ["on each machine, in", "--workers 1 --storage"]),
        ("database", ["on each machine", "--workers 8 --storage postgresql://db/sweeps"]),
        (
            "slurm",
            ["4 jobs of {'timeout_min': 240", "'gpus_per_node': 4", "--workers 4 --storage postgresql://db/sweeps"],
        ),
    ],
)
def test_a_dry_run_shows_what_each_machine_runs(machines, expected):
    command = [sys.executable, "-m", "stages.study", "committees-digits", "--machines", machines, "--dry-run"]
    command += ["--storage", "postgresql://db/sweeps"]
    environment = {**os.environ, "REPRISE_STORAGE": "postgresql://me:secret@db/sweeps"}
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert "secret" not in told, "what is in the environment stays there, and jobs inherit it"
    assert told.count("\n") == 1 and "-m stages.study committees-digits" in told
    for part in expected:
        assert part in told


# Real workers, killed

WORKER = """
from pathlib import Path
from tests.sweeps.test_sweep import Toy, join
join(Path({folder!r}), Toy(seconds=0.15), trials={trials}, storage={storage!r}).work()
"""


def start_worker(folder, trials, storage):
    code = WORKER.format(folder=str(folder), trials=trials, storage=storage)
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)


@pytest.fixture(params=["journal", "sqlite", "postgresql", "mariadb"])
def storage(request, tmp_path):
    """A place for studies of each kind, as the setting `storage` takes it."""
    if request.param == "journal":
        return None
    return f"sqlite:///{tmp_path}/studies.db" if request.param == "sqlite" else request.getfixturevalue(request.param)


@pytest.mark.slow
def test_a_worker_killed_with_kill_9_costs_nothing_but_its_time(tmp_path, storage):
    workers = [start_worker(tmp_path, 30, storage) for _ in range(2)]
    study = join(tmp_path, Toy(seconds=0.15), trials=30, storage=storage)
    deadline = time.monotonic() + 60
    while len(study.finished()) < 8:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers[0].send_signal(signal.SIGKILL)
    assert workers[1].wait(60) == 0
    workers[0].wait()
    assert [trial.config["slot"] for trial in study.finished()] == list(range(30))
    lost = [t for t in study.study.trials if t.state == optuna.trial.TrialState.FAIL]
    assert len(lost) <= 1 and len(study.study.trials) == 30 + len(lost)
    study.close()


@pytest.mark.slow
def test_a_study_whose_workers_were_all_killed_continues(tmp_path, storage):
    name = "again"
    code = WORKER.format(folder=str(tmp_path), trials=20, storage=storage).replace(
        "storage=", f"name={name!r}, storage="
    )
    study = join(tmp_path, Toy(seconds=0.15), trials=20, storage=storage, name=name)
    for before in (4, 9):
        workers = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(2)]
        while len(study.finished()) < before:
            time.sleep(0.05)
        for worker in workers:
            worker.kill()
            worker.wait()
    study.work()
    assert [trial.config["slot"] for trial in study.finished()] == list(range(20))
    study.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    copy = Copy(tmp_path_factory.mktemp("project"), seeds=(0, 1, 2))
    conf = copy.folder / "conf/sweep/cached.yaml"
    conf.write_text(re.sub("trials: .*", "trials: 120", conf.read_text()))
    copy.dvc("repro", "plans/tiny/committees/dvc.yaml:pretrain@committees-digits")
    return copy


def swept(copy):
    folder = copy.folder / "data/results/tiny/committees/sweep-committees-digits"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_the_stage_gives_the_same_bytes_with_any_number_of_workers_and_after_a_kill(trained):
    found = []
    for workers in "123":
        trained.python("-m", "stages.sweep", "committees-digits", REPRISE_WORKERS=workers)
        found.append(swept(trained))
    shutil.rmtree(trained.folder / "data/results")
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.sweep", "committees-digits"],
        cwd=trained.folder,
        env={**trained.environment, "REPRISE_WORKERS": "2"},
        start_new_session=True,
    )
    while len(list(trained.folder.glob(".scratch/sweeps/committees-digits-*/*.json"))) < 40:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (trained.folder / "data/results/tiny/committees/sweep-committees-digits").exists()
    trained.python("-m", "stages.sweep", "committees-digits")
    found.append(swept(trained))
    assert all(files == found[0] for files in found)
    assert set(found[0]) == {"metrics.json", "figures.json", "study.json", "pareto.json"}


@pytest.mark.slow
def test_the_dashboard_shows_the_study_of_the_stage(trained):
    trained.python("-m", "stages.sweep", "committees-digits")
    port = free_port()
    command = [sys.executable, "-m", "stages.ui", "--study", "sweep-committees-digits", "--port", str(port)]
    process = subprocess.Popen(command, cwd=trained.folder, env=trained.environment, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=10) as answer:
                    shown = json.load(answer)
                break
            except OSError:
                time.sleep(0.2)
        assert [study["study_name"] for study in shown["study_summaries"]] == ["sweep-committees-digits"]
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
def test_make_sweeps_command_runs_both_settings_and_tracks_the_study_once(trained):
    for _ in range(2):
        told = trained.python("-m", "stages.study", "committees-digits", "--trials", "24", "--workers", "2").stdout
        assert told.startswith("24 trials asked, 24 complete, 0 pruned, 0 lost")
    records = list(trained.folder.glob(".scratch/runs/committees/tiny--committees-digits-cached--sweep--*"))
    assert len(records) == 1 and len(list(records[0].glob("artifacts/*.png"))) == 2
    assert list(trained.folder.glob(".scratch/runs/committees/tiny--committees-digits-cached--trial-*"))
    line = ["-m", "stages.study", "committees-digits", "--setting", "training", "--trials", "6", "--workers", "2"]
    assert "6 trials asked" in trained.python(*line).stdout
    study = json.loads((trained.folder / ".scratch/sweeps/committees-digits-training/study.json").read_text())
    assert "training MACs were spent best on" in study["statement"]
    assert all(row["training_macs"] <= study["space"]["budget"] for row in study["trials"])
    other = trained.python("-m", "stages.study", *line[2:], "--study", "committees-digits-cached", check=False)
    assert other.returncode == 1 and other.stderr.startswith("error: study 'committees-digits-cached'")
    assert other.stderr.count("\n") == 1
