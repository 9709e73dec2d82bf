"""The runner's order, slots and failures, with a stand-in for DVC that writes down what it was asked."""

import itertools
import json
import sys
from functools import partial

import networkx
import pytest

from stages import repro
from stages.plan import load_plan
from stages.repro import Runner, place, wanted

STAND_IN = """
import json, os, pathlib, sys, time
name, folder = sys.argv[-1], pathlib.Path({folder!r})
facts = {{"start": time.monotonic(), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}}
(folder / f"started-{{name}}").touch()
for other in {together!r} if name in {together!r} else "":  # go on only when the other has started, too
    while not (folder / f"started-{{other}}").exists() and time.monotonic() < facts["start"] + 20:
        time.sleep(0.01)
(folder / (name + ".json")).write_text(json.dumps({{**facts, "end": time.monotonic()}}))
sys.exit(name in {failing!r})
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(repro, "scratch", lambda: tmp_path)
    monkeypatch.delenv("REPRISE_WORKERS", raising=False)
    graph = networkx.DiGraph([("b", "a"), ("c", "a"), ("d", "b"), ("d", "c")])  # an edge points to what is needed

    def start(slots, todo="abcd", failing=(), together="", **options):
        code = STAND_IN.format(folder=str(tmp_path), failing=list(failing), together=together)
        (tmp_path / "dvc.py").write_text(code)
        runner = Runner(graph, set(todo), slots=slots, launch=[sys.executable, str(tmp_path / "dvc.py")], **options)
        runner.run()
        return runner, {p.stem: json.loads(p.read_text()) for p in tmp_path.glob("?.json")}

    return start


def test_a_stage_starts_when_all_it_needs_is_done(run):
    runner, facts = run(["", ""], together="bc")
    assert runner.done == set("abcd") and not runner.failed
    for name, needs in (("b", "a"), ("c", "a"), ("d", "b"), ("d", "c")):
        assert facts[name]["start"] >= facts[needs]["end"]
    assert facts["b"]["start"] < facts["c"]["end"] and facts["c"]["start"] < facts["b"]["end"], "side by side"


def test_one_slot_runs_one_stage_at_a_time(run):
    _, facts = run([""])
    times = sorted((f["start"], f["end"]) for f in facts.values())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times))


def test_each_slot_has_its_device(run):
    _, facts = run(["0", "1"], together="bc")
    assert {facts["b"]["gpu"], facts["c"]["gpu"]} == {"0", "1"}


def test_what_needs_a_failed_stage_is_not_run_and_the_rest_is(run):
    runner, facts = run([""], failing=["b"])
    assert runner.failed == {"b": 1} and runner.done == {"a", "c"} and set(facts) == {"a", "b", "c"}


def test_what_follows_a_stage_is_told_which_results_are_not_up_to_date(run):
    told = {}
    run([""], failing=["b"], after=lambda name, stale: told.update({name: stale}))
    assert told == {"a": {"b", "c", "d"}, "c": {"b", "d"}}


def test_only_what_is_to_do_is_run(run):
    _, facts = run([""], todo="cd")
    assert set(facts) == {"c", "d"}


def test_targets_are_stages_or_groups_with_all_they_need():
    graph = networkx.DiGraph([("evaluate@x", "pretrain@x"), ("evaluate@y", "pretrain@y"), ("pretrain@x", "sources")])
    assert wanted(graph, ["evaluate@x"]) == {"evaluate@x", "pretrain@x", "sources"}
    assert wanted(graph, ["evaluate"]) == set(graph)
    assert wanted(graph, []) == set(graph)
    with pytest.raises(ValueError, match="no stage 'evaluat'"):
        wanted(graph, ["evaluat"])


def test_what_leads_to_a_claim_soonest_comes_first_and_then_the_order_of_the_plan():
    plan = load_plan("tiny")
    arms = list(plan.pretrain)
    names = [f"pretrain@{arms[1]}", "report", f"evaluate@{next(iter(plan.evaluate))}", f"pretrain@{arms[0]}", "sources"]
    assert sorted(names, key=partial(place, plan)) == [names[4], names[2], names[3], names[0], names[1]]
