"""Locks held against what they record, the draw of arms, and results held against the lock: all without a training."""

import json
import re
import subprocess
from contextlib import chdir

import pytest
import yaml

from lightning_modules.portable import made_by
from stages import release
from stages.auditing import comparing, drawing, locks
from stages.auditing.locks import Locked
from stages.auditing.sample import Sample

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # of pygtrie, which DVC uses

PLAN = """
vars: [params.yaml]
stages:
  pretrain:
    foreach: ${pretrain}
    do:
      wdir: ../../..
      cmd: mkdir -p data/runs/${key} && echo ${key} > data/runs/${key}/weights
      deps:
        - data/sources/tiny/pretrain.json
      params:
        - conf.yaml: [recipe]
      outs:
        - data/runs/${key}
  evaluate:
    foreach: ${pretrain}
    do:
      wdir: ../../..
      cmd: mkdir -p data/results/tiny/paper && cp -r data/runs/${key} data/results/tiny/paper/${key}
      deps:
        - data/runs/${key}
      outs:
        - data/results/tiny/paper/${key}
  claims:
    wdir: ../../..
    cmd: ls data/results/tiny/paper > results.json
    deps:
      - data/results/tiny/paper
    outs:
      - results.json: {cache: false}
"""
AT = "plans/tiny/paper/dvc.yaml:"
LOCK = "plans/tiny/paper/dvc.lock"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A toy paper of two arms whose stages ran: its files, by path."""
    from dvc.repo import Repo

    folder = tmp_path_factory.mktemp("toy")
    plan = folder / "plans/tiny/paper"
    for path, text in (
        (plan / "dvc.yaml", PLAN),
        (plan / "params.yaml", yaml.safe_dump({"pretrain": {"a": {}, "b": {}}})),
        (folder / "conf.yaml", yaml.safe_dump({"recipe": {"lr": 0.5, "widths": [8, 16]}})),
        (folder / "data/sources/tiny/pretrain.json", '{"module.py": "1"}'),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with chdir(folder):
        Repo.init(no_scm=True).reproduce(targets=["plans/tiny/paper/dvc.yaml"])
    kept = (
        path for path in folder.rglob("*") if path.is_file() and "runs" not in path.parts and path.name != "weights"
    )
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in kept
        if path.relative_to(folder).parts[:2] not in ((".dvc", "cache"), (".dvc", "tmp"))
    }


@pytest.fixture
def toy(ran, tmp_path):
    """The toy paper as a clone has it: its lock, and no data."""
    for name, text in ran.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def stale(folder):
    return {each.address.removeprefix(AT): each.stale for each in locks.read(folder, "tiny").values() if each.stale}


def edit_lock(folder, change):
    lock = yaml.safe_load((folder / LOCK).read_text())
    change(lock["stages"])
    (folder / LOCK).write_text(yaml.safe_dump(lock))


def test_a_lock_that_belongs_to_its_code_plan_and_settings_is_not_stale(toy):
    stages = locks.read(toy, "tiny")
    assert {address.removeprefix(AT) for address in stages} == {
        "pretrain@a", "pretrain@b", "evaluate@a", "evaluate@b", "claims",
    }  # fmt: skip
    assert not stale(toy)
    evaluate = stages[f"{AT}evaluate@a"]
    assert (evaluate.paper, evaluate.kind, evaluate.arm) == ("paper", "evaluate", "a")
    assert evaluate.needs == {f"{AT}pretrain@a"}
    assert list(stages[f"{AT}pretrain@a"].manifests) == ["data/sources/tiny/pretrain.json"]


@pytest.mark.parametrize(
    ("path", "old", "new", "stages", "why"),
    [
        ("conf.yaml", "0.5", "0.25", {"pretrain@a", "pretrain@b"}, "conf.yaml: recipe.lr is 0.25, the lock has 0.5"),
        ("conf.yaml", "- 16", "- 32", {"pretrain@a", "pretrain@b"}, r"widths is \[8, 32\], the lock has \[8, 16\]"),
        ("data/sources/tiny/pretrain.json", "1", "2", {"pretrain@a", "pretrain@b"}, "its code changed .*pretrain.json"),
        ("plans/tiny/paper/dvc.yaml", "echo ", "echo -n ", {"pretrain@a", "pretrain@b"}, "its command changed"),
        ("plans/tiny/paper/params.yaml", "a: {}", "c: {}", {"pretrain@c", "evaluate@c", "claims"}, "no entry|together"),
        ("results.json", "a", "c", {"claims"}, "results.json is not the file in the lock"),
    ],
)  # fmt: skip
def test_what_no_longer_belongs_to_its_lock_is_stale_and_says_why(toy, path, old, new, stages, why):
    text = (toy / path).read_text()
    assert old in text
    (toy / path).write_text(text.replace(old, new))
    found = stale(toy)
    assert found.keys() == stages
    for reasons in found.values():
        (reason,) = reasons
        assert re.search(why, reason), reason


def test_a_stage_that_read_other_weights_than_those_of_the_lock_is_stale(toy):
    def change(stages):
        stages["pretrain@a"]["outs"][0]["md5"] = "0" * 32 + ".dir"

    edit_lock(toy, change)
    assert "it was run with another data/runs/a: md5" in stale(toy).pop("evaluate@a")[0]


def test_a_folder_that_a_stage_read_is_as_large_as_what_was_made_in_it(toy):
    def change(stages):
        stages["evaluate@a"]["outs"][0]["size"] += 1

    edit_lock(toy, change)
    assert "it was run with another data/results/tiny/paper" in stale(toy).pop("claims")[0]


def stage(address, paper="p", needs=(), manifests=None):
    return Locked(f"plans/tiny/{paper}/dvc.yaml:{address}", paper, frozenset(needs), {}, manifests or {})


@pytest.fixture
def stages():
    """Three papers of three arms; the arms of one paper start from one training."""
    found = {}
    for paper in "pqr":
        start = stage("pretrain@start", paper)
        arms = [stage(f"evaluate@{paper}{arm}", paper, [start.address]) for arm in "abc"]
        claims = stage("claims", paper, [start.address, *(arm.address for arm in arms)])
        found |= {each.address: each for each in (start, *arms, claims)}
    return found


def test_a_changed_paper_is_drawn_first_and_the_commit_decides_the_rest(stages):
    order = drawing.drawn(stages, ["q", "r"], "commit")
    papers = [stages[address].paper for address in order]
    assert set(papers[:2]) == {"q", "r"} and set(papers[2:6]) == {"q", "r"} and set(papers[6:9]) == {"p"}
    assert [stages[address].kind for address in order[9:]] == ["claims"] * 3
    assert sorted(order) == sorted(address for address in stages if "pretrain" not in address)
    assert order == drawing.drawn(stages, ["q", "r"], "commit")
    assert len({tuple(drawing.drawn(stages, [], str(seed))) for seed in range(5)}) > 1


def test_arms_are_chosen_while_they_fit_and_what_they_share_counts_once(stages):
    order = drawing.drawn(stages, ["p"], "commit")
    needs = {address: each.needs for address, each in stages.items()}
    durations = {address: 100.0 if each.kind == "pretrain" else 10.0 for address, each in stages.items()}
    arms, seconds = drawing.chosen(order, needs, durations, (), 135)
    assert arms == order[:3] and seconds == 130, "one start of 100 s, three arms of 10 s"
    assert drawing.chosen(order, needs, durations, (), 109) == ([], 0)
    assert drawing.chosen(order, needs, durations, (), 135, enough=105) == (order[:1], 110)
    done = {order[0], *stages[order[0]].needs}
    assert drawing.chosen(order, needs, durations, done, 20) == (order[1:3], 20)
    assert drawing.chosen(order[:1], needs, {}, (), 2 * drawing.UNKNOWN) == (order[:1], 2 * drawing.UNKNOWN)


def metric(mean, low=None, high=None, n=3):
    return {"mean": mean, "low": low, "high": high, "n": n}


def test_metrics_are_equal_on_the_same_machine_and_near_on_another():
    there = metric(10.0, 9.0, 11.0)
    assert comparing.alike(metric(10.0, 9.0, 11.0), there, exact=True)
    assert not comparing.alike(metric(10.000001, 9.0, 11.0), there, exact=True)
    assert comparing.alike(metric(11.9, 11.0, 12.8), there, exact=False)
    assert not comparing.alike(metric(12.1, 11.0, 13.2), there, exact=False)
    assert not comparing.alike(metric(10.0, 9.0, 11.0, n=4), there, exact=False)
    assert not comparing.alike(None, there, exact=False) and not comparing.alike(there, None, exact=False)
    assert comparing.alike(metric(10.9, n=1), metric(10.0, n=1), exact=False)
    assert not comparing.alike(metric(11.1, n=1), metric(10.0, n=1), exact=False)
    assert not comparing.alike(metric(None), there, exact=False) and comparing.alike(metric(None), metric(None), False)


@pytest.fixture
def repository(tmp_path):
    def git(*command):
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *command], cwd=tmp_path, check=True
        )

    (tmp_path / "results/tiny/p").mkdir(parents=True)
    (tmp_path / "results/tiny/p/metrics.json").write_text(json.dumps({"a": {"top1": metric(2.0, 1.0, 3.0, n=2)}}))
    (tmp_path / "data/results/tiny/p/a").mkdir(parents=True)
    git("init", "-q")
    git("add", "results")
    git("commit", "-qm", "start")
    return tmp_path


def test_a_metric_of_an_arm_is_held_against_the_committed_file(repository):
    arm, file = stage("evaluate@a"), repository / "data/results/tiny/p/a/metrics.json"
    file.write_text(json.dumps({0: {"top1": 1.9, "loss": 1.0}, 1: {"top1": 2.1, "loss": 1.0}}))
    (repository / "results/tiny/p/metrics.json").write_text("{}")  # what a run writes does not matter
    loss, top1 = comparing.metrics(repository, arm, "tiny", exact=True)
    assert loss.endswith("evaluate@a: loss is 1.0 over 2 seeds here, results/tiny/p/metrics.json has missing")
    assert "top1 is 2.0 over 2 seeds here, results/tiny/p/metrics.json has 2.0 over 2 seeds" in top1
    assert comparing.metrics(repository, arm, "tiny", exact=False) == [loss]


def test_bytes_are_expected_where_the_lock_was_made_on_a_machine_like_this_one(tmp_path):
    stages = {
        f"plans/tiny/{paper}/dvc.yaml:evaluate@{paper}": stage(f"evaluate@{paper}", paper, manifests={"m.json": "1"})
        for paper in ("here", "elsewhere", "never")
    }
    for paper, made, digest in (("here", made_by(), "1"), ("elsewhere", {"processor": "AVX9"}, "2")):
        folder = tmp_path / "plans/tiny" / paper
        folder.mkdir(parents=True)
        (folder / "release.json").write_text(json.dumps({"made_by": made, "manifests": {"m.json": digest}}))
    sample = Sample(tmp_path, "tiny", stages)
    assert sample.exact == {"here", "never"}
    assert sample.changed == ["elsewhere", "never"]


def test_what_was_compared_is_told_as_it_was_done(tmp_path, monkeypatch, capsys):
    """On another kind of processor unequal bytes are told, and their metrics are held to the tolerance."""
    stages = {each.address: each for each in (stage(f"evaluate@{name}", name) for name in ("one", "two", "three"))}
    one, two, _ = stages
    sample = Sample(tmp_path, "tiny", stages)
    sample.changed, sample.alike = ["one", "three"], set()
    monkeypatch.setattr(sample, "made", lambda: [one, two])
    monkeypatch.setattr(sample, "failed", lambda: [])
    monkeypatch.setattr(locks, "read", lambda root, preset: stages)
    monkeypatch.setattr(comparing, "digests", lambda before, after: ["unequal"] if before.address == two else [])
    asked = {}
    monkeypatch.setattr(
        comparing, "metrics", lambda folder, stage, preset, exact: asked.update({stage.address: exact}) or []
    )
    assert not sample.differences() and asked == {one: True, two: False}
    sample.show()
    told = capsys.readouterr().out
    assert "NOT THE SAME BYTES" in told and f"compared byte by byte:\n  {one}\ncompared by metrics" in told
    assert told.endswith(f":\n  {two}\ncode changed, and nothing of it was measured: three\n")


def test_a_release_records_what_made_a_lock_and_how_long_it_took(toy):
    took = {f"{AT}pretrain@a": 12.3, f"{AT}evaluate@a": 1.0}
    assert release.release(toy, "tiny", {**took, f"{AT}gone": 3.0, "sources": 2.0}) == ["paper"]
    assert json.loads((toy / "plans/tiny/paper/durations.json").read_text()) == took
    record = release.read(toy, "tiny", "paper")
    assert record["made_by"] == made_by()
    assert record["manifests"].keys() == {"data/sources/tiny/pretrain.json"}
    with pytest.raises(ValueError, match=r"no paper 'papr' in plans/tiny.*paper"):
        release.release(toy, "tiny", {}, ["papr"])
    assert not Sample(toy, "tiny", locks.read(toy, "tiny")).changed


def test_a_stale_lock_is_not_released(toy):
    (toy / "conf.yaml").write_text(yaml.safe_dump({"recipe": {"lr": 0.1}}))
    with pytest.raises(ValueError, match=r"2 stages are not up to date, such as .*pretrain@a: run `make repro`"):
        release.release(toy, "tiny", {})
    assert not (toy / "plans/tiny/paper/release.json").exists()


@pytest.mark.parametrize("notice", [False, True])
def test_a_stage_that_fails_is_named_once_and_data_that_is_not_to_be_had_is_no_failure(tmp_path, notice):
    def with_output(address, needs=()):
        needs = frozenset(f"plans/tiny/p/dvc.yaml:{need}" for need in needs)
        return Locked(f"plans/tiny/p/dvc.yaml:{address}", "p", needs, {f"data/{address}": "1"}, {})

    chain = [with_output("prepare@d"), with_output("pretrain@a", ["prepare@d"])]
    chain += [with_output("evaluate@a", ["prepare@d", "pretrain@a"]), with_output("prepare@e")]
    sample = Sample(tmp_path, "tiny", {each.address: each for each in chain})
    sample.asked = set(sample.stages)
    for made in ("evaluate@a", "prepare@e"):  # what lies there of an arm that could not run was not made now
        (tmp_path / "data" / made).mkdir(parents=True)
    if notice:
        (tmp_path / ".scratch/unavailable").mkdir(parents=True)
        (tmp_path / ".scratch/unavailable/d-tiny.txt").write_text("no network\n")
    assert sample.made() == ["plans/tiny/p/dvc.yaml:prepare@e"]
    assert sample.failed() == ([] if notice else ["plans/tiny/p/dvc.yaml:prepare@d"])
    assert list(sample.left_out().values()) == (["no network"] if notice else [])
