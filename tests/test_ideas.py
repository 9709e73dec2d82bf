"""An idea of one's own, held against a paper: the section of the README, by the letter, in a fresh clone."""

import json
import re
import sys
from html import unescape
from pathlib import Path

import pytest
import yaml

from tests.pipeline import ROOT, SMALL, Copy

SECTION = (ROOT / "README.md").read_text().split("## Hold your own idea against a paper\n")[1].split("\n## ")[0]
*MADE, REMOVED = re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)
FILES = "\n".join(MADE).replace("make repro PAPER=smoothing\n", "")  # what the section writes, without running it
PLAN, IDEA, SYSTEM = "plans/tiny/smoothing/params.yaml", "ideas/smoothing/idea.yaml", "conf/system/smoothing/tiny.yaml"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The small project after its first run, committed; `make` finds the environment of this run."""
    copy = Copy(tmp_path_factory.mktemp("project"), seeds=range(3))
    if not (copy.folder / ".venv").exists():
        (copy.folder / ".venv").symlink_to(Path(sys.prefix))
    (copy.folder / ".git/info/exclude").write_text(".venv\n")
    small = {f"{block}.{name}": value for block, values in SMALL.items() for name, value in values.items()}
    copy.edit("conf/system/committees/tiny.yaml", **small)  # the section takes a copy of this file
    copy.run("make", "repro")
    copy.commit()
    return copy


def typed(copy, commands, **options):
    return copy.run("bash", "-ec", commands, **options)


def tracked(copy):
    """Tracked files that were changed, and what git does not know yet."""
    lines = copy.run("git", "status", "--porcelain").stdout.splitlines()
    return {line[3:] for line in lines if not line.startswith("??")}, {line[3:] for line in lines if line[:2] == "??"}


@pytest.mark.guides
@pytest.mark.timeout(1800)
def test_the_section_is_right_by_the_letter(project):
    assert tracked(project) == (set(), set())
    before = {path: path.read_bytes() for path in (project.folder / "results").rglob("*.json")}
    said = [typed(project, block) for block in MADE][-1].stdout
    assert "own idea, held against committees" in said

    (row,) = json.loads((project.folder / "results/tiny/smoothing/claims.json").read_text())
    assert (row["paper"], row["id"], row["n"]) == ("smoothing", "single", 3)
    assert row["verdict"] in ("shown", "refuted", "undecided") and row["interval"][0] < row["interval"][1]
    arms = json.loads((project.folder / "results/tiny/smoothing/metrics.json").read_text())
    paper = json.loads((project.folder / "results/tiny/committees/metrics.json").read_text())
    assert arms["smoothing-paper"] == paper["committees-digits"] != arms["smoothing"]

    changed, new = tracked(project)
    assert changed == {"dvc.lock"}  # manifests and page, which every change of code changes
    assert new == {"conf/system/smoothing/", "ideas/smoothing/", "plans/tiny/smoothing/", "results/tiny/smoothing/"}
    assert before == {path: path.read_bytes() for path in before}
    report = project.folder / "data/report/tiny"
    page, own = (unescape((report / name).read_text()) for name in ("index.html", "papers/smoothing.html"))
    places = [page.index(f'href="papers/{stem}.html"') for stem in ("committees", "small_ensembles", "smoothing")]
    assert places == sorted(places)
    assert "An idea of your own, held against" in own and 'data-claim="smoothing/single"' in own
    overview = page.partition('id="overview"')[2].partition("</table>")[0]
    assert "small_ensembles" in overview and "smoothing" not in overview
    assert re.search("^0 of [0-9]+ stages", project.run("make", "repro", "PAPER=smoothing").stdout, re.MULTILINE)

    module = project.folder / "ideas/smoothing/module.py"
    module.write_text(module.read_text().replace("label_smoothing=0.1", "label_smoothing=0.9"))
    project.run("make", "repro", "PAPER=smoothing")  # the code of an idea is in its manifest and its fingerprint
    assert (
        json.loads((project.folder / "results/tiny/smoothing/metrics.json").read_text())["smoothing"]
        != (arms["smoothing"])
    )

    typed(project, REMOVED)
    assert tracked(project) == (set(), set())


MISTAKES = {
    "no such arm": (
        IDEA, lambda idea: idea["claims"][0]["value"].update(arm="smoothed"),
        "smoothing/idea.yaml: claim single: arm is 'smoothed', expected an arm of the plan's evaluate section: ",
    ),
    "a claim without a rule": (
        IDEA, lambda idea: idea["claims"][0].pop("margin"), "claim single.margin: missing, expected a value",
    ),
    "no such paper": (
        IDEA, lambda idea: idea.update(against="committee"), "against is 'committee'; did you mean 'committees'?",
    ),
    "no such run": (
        PLAN, lambda plan: plan["evaluate"]["smoothing"].update(runs="smothing"),
        "evaluate.smoothing.runs is 'smothing'; did you mean 'smoothing'?",
    ),
    "no such module": (
        SYSTEM, lambda system: system["model"].update(_target_="ideas.smoothing.modul.Smoothed"),
        "model._target_ is 'ideas.smoothing.modul.Smoothed', but there is no file ideas/smoothing/modul.py",
    ),
    "no such class": (
        SYSTEM, lambda system: system["model"].update(_target_="ideas.smoothing.module.Smooth"),
        "model._target_ is 'ideas.smoothing.module.Smooth', but there is no such class or function",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    copy = Copy(tmp_path_factory.mktemp("fresh"), seeds=range(3))
    typed(copy, FILES)
    copy.commit()
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_in_one_line_before_anything_is_trained(fresh, mistake):
    file, change, message = MISTAKES[mistake]
    path = fresh.folder / file
    tree = yaml.safe_load(path.read_text())
    change(tree)
    path.write_text(yaml.safe_dump(tree))
    try:
        run = fresh.python("-m", "stages.repro", "--paper", "smoothing", check=False)
    finally:
        fresh.run("git", "checkout", "-q", file)
    assert run.returncode and message in run.stdout + run.stderr
    assert "Traceback" not in run.stdout + run.stderr
    assert not (fresh.folder / "data/runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("def broken(:", "which cannot be imported: SyntaxError: invalid syntax"),
        ("unknown", "which cannot be imported: NameError: name 'unknown' is not defined"),
        ("import no_such_package", "which cannot be imported: No module named 'no_such_package'"),
    ],
)
def test_code_that_cannot_be_imported_is_named(fresh, line, message):
    path = fresh.folder / "ideas/smoothing/module.py"
    path.write_text(f"{line}\n{path.read_text()}")
    try:
        run = fresh.python("-m", "stages.repro", "--paper", "smoothing", check=False)
    finally:
        fresh.run("git", "checkout", "-q", "ideas")
    said = run.stdout + run.stderr
    assert run.returncode and message in said and "Traceback" not in said
    assert not (fresh.folder / "data/runs").exists()
