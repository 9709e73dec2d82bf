"""Which papers CI rehearses: drawn from the commit's hash, those that have changed since their last release first."""

import json
import re
import shutil
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from stages import release, sources
from stages.plan import load_plan
from stages.rehearsal import drawing
from tests import conftest
from tests.conftest import ROOT

PLAN = load_plan("paper")


def drawn(changed=(), seed="commit", minutes=10.0, papers=PLAN.papers):
    return drawing.drawn(PLAN, papers, changed, seed, minutes)[0]


def test_the_commit_decides_and_every_paper_has_its_turn():
    assert drawn() == drawn(papers=PLAN.papers[::-1])
    firsts = {drawn(seed=str(number), minutes=0)[0] for number in range(200)}
    assert firsts == {*PLAN.papers}


@pytest.mark.parametrize("stem", PLAN.papers)
def test_what_has_changed_comes_first_and_is_rehearsed_in_any_case(stem):
    for seed in "abcde":
        assert drawn(changed=[stem], seed=seed, minutes=0) == [stem]
        assert drawn(changed=[stem], seed=seed)[0] == stem


def test_of_several_that_have_changed_all_come_before_the_others():
    changed = PLAN.papers[:3]
    order = drawn(changed=changed, minutes=10_000)
    assert {*order[:3]} == {*changed} and {*order} == {*PLAN.papers}


def test_papers_are_taken_while_they_fit():
    papers, seconds = drawing.drawn(PLAN, PLAN.papers, (), "commit", 10)
    assert 1 < len(papers) < len(PLAN.papers)
    assert seconds == sum(drawing.seconds(PLAN, paper) for paper in papers) <= 600
    left = {*PLAN.papers} - {*papers}
    assert all(seconds + drawing.seconds(PLAN, paper) > 600 for paper in left)
    assert all(drawing.seconds(PLAN, paper) > drawing.STARTED for paper in PLAN.papers)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The files that a rehearsal reads, to be changed."""
    for name in ("conf", "lightning_modules", "plans/paper", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    monkeypatch.setattr(drawing, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_paper_has_changed_when_its_code_configuration_or_plan_has(project):
    def changed():
        found = drawing.digests(PLAN)
        return {paper for paper in before if found[paper] != before[paper]}

    def append(path, line):
        (project / path).write_text((project / path).read_text() + line)

    before = drawing.digests(PLAN)
    for name in ("module.py", "network.py"):
        append(f"lightning_modules/lf_vila/{name}", "\n# a comment\n")
    append("conf/system/lf_vila/paper.yaml", "# a comment\n")
    assert not changed()
    append("lightning_modules/magvit/module.py", "CHANGED = 1\n")
    append("conf/system/maskalign/paper.yaml", "more: 1\n")
    append("plans/paper/clip_vip/params.yaml", "more: 1\n")
    found = changed()
    assert found >= {"magvit", "maskalign", "clip_vip"} and not found & {"lf_vila", "committees", "movinet"}
    append("lightning_modules/training.py", "CHANGED = 1\n")
    assert changed() == {*PLAN.papers}


def test_a_paper_has_changed_if_its_last_release_had_another_digest_or_none(tmp_path):
    for paper, record in (("same", {"rehearsal": "1"}), ("other", {"rehearsal": "2"}), ("old", {"kind": "x"})):
        (tmp_path / "plans/tiny" / paper).mkdir(parents=True)
        (tmp_path / "plans/tiny" / paper / "release.json").write_text(json.dumps(record))
    digests = dict.fromkeys(("same", "other", "old", "new"), "1")
    assert release.rehearsals_changed(tmp_path, digests) == ["other", "old", "new"]


class Case:
    """A test of pytest, as far as it is looked at."""

    def __init__(self, path: str, *marks: str, **params: str):
        self.path, self.callspec, self.marks = ROOT / "tests" / path, SimpleNamespace(params=params), marks

    def get_closest_marker(self, name):
        return name if name in self.marks else None


def collected(cases, sample, papers=()):
    """The cases that are left of a run with `--minutes`, or with `--paper`."""
    config = SimpleNamespace(
        stash={conftest.SAMPLED: sample}, getoption=lambda name: papers, hook=Mock(spec=["pytest_deselected"])
    )
    conftest.pytest_collection_modifyitems(config, cases)
    return cases


def test_minutes_leave_out_the_cases_of_papers_that_were_not_drawn():
    sampled = [Case("stages/test_rehearse.py", "slow", "sampled", stem=stem) for stem in PLAN.papers]
    other = [Case("magvit/test_module.py", "slow"), Case("stages/test_rehearse.py"), Case("test_x.py", stem="magvit2")]
    assert collected([*sampled, *other], None) == [*sampled, *other]
    kept = [case for case in sampled if case.callspec.params["stem"] in ("magvit", "committees")]
    assert collected([*sampled, *other], {"papers": ["magvit", "committees"]}) == [*kept, *other]
    assert collected([*sampled, *other], {"papers": ["committees"]}, ["magvit2"]) == other[2:]


def test_the_choice_is_told_and_belongs_to_the_commit(monkeypatch):
    monkeypatch.setattr("stages.auditing.checkout.head", lambda root: "0123456789abcdef")
    monkeypatch.setattr(drawing, "digests", lambda plan: {})
    monkeypatch.setattr(release, "rehearsals_changed", lambda root, digests: ["magvit", "committees"])
    found = conftest.sampled(0, [])
    assert found["papers"] in (["magvit"], ["committees"]) and found == conftest.sampled(0, [])
    told = (
        r"rehearsals of commit 0123456789ab in 0 minutes: {} \(\d+ s expected\); changed since the last release: {}; "
    )
    assert re.match(told.format(*found["papers"], "committees, magvit") + r"left out: \w+, .*, \w+$", found["told"])
    found = conftest.sampled(100, ["clip_vip", "magvit"])
    assert found["papers"] == ["magvit", "clip_vip"]
    assert re.match(told.replace("in 0", "in 100").format("magvit, clip_vip", "magvit"), found["told"])
    assert found["told"].endswith("left out: none")
