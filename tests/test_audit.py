"""The audit on a small copy of the project whose pipeline has run: what is planted is found, and nothing else is."""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow
AT = "plans/tiny/committees/dvc.yaml:"
LARGE = (".scratch", "cache", "mlflow.db")


@pytest.fixture
def project(finished, tmp_path):
    """What git has of the finished project after its locks and verdicts are committed; no data."""
    folder = tmp_path / "project"

    def left_out(parent, names):
        data = Path(parent) == finished.folder / "data"
        return [name for name in names if name in LARGE or (data and name != ".gitignore")]

    shutil.copytree(finished.folder, folder, ignore=left_out)
    project = copy.copy(finished)
    project.folder = folder
    commit(project)
    return project


def commit(project):
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "locks")


def audit(project, minutes=0):
    """What the audit of a project printed, and whether it passed."""
    project.environment.pop("REPRISE_TRACKING", None)
    done = project.python("-m", "stages.audit", "--minutes", str(minutes), check=False)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    assert done.stdout.splitlines()[-1].startswith("audit: passed" if done.returncode == 0 else "audit: failed")
    assert not list((project.folder / ".scratch/audit").iterdir()), "the clone is removed"
    assert not project.run("git", "status", "--porcelain").stdout, "the working tree is as it was"
    return done.stdout, done.returncode == 0


def edit(project, path, old, new):
    path = project.folder / path
    text = path.read_text()
    assert re.search(old, text)
    path.write_text(re.sub(old, new, text, count=1))


def test_an_untouched_project_passes_after_its_release(project):
    project.python("-m", "stages.release")
    commit(project)
    printed, passed = audit(project)
    assert passed, printed
    assert "code changed since the last release: no paper" in printed
    compared = printed.partition("compared byte by byte:")[2]
    assert "pretrain@" in compared and re.search("(evaluate|sweep)@", compared)


def test_a_weight_and_a_metric_that_the_code_does_not_give_are_found_by_the_new_run(project):
    """Both are planted as a careful hand would do it: every record agrees with the others."""
    weight, trained = "0123456789abcdef" * 2 + ".dir", set()
    locks = sorted(project.folder.glob("plans/tiny/*/dvc.lock"))
    entries = {path: yaml.safe_load(path.read_text()) for path in locks}
    for lock in entries.values():
        for name, stage in lock["stages"].items():
            if name.startswith("pretrain@"):
                trained |= {out["path"] for out in stage["outs"] if out["path"].startswith("data/runs/")}
    assert trained
    for path, lock in entries.items():
        metrics = project.folder / "results/tiny" / path.parent.name / "metrics.json"
        arms = json.loads(metrics.read_text())
        for measured in arms.values():
            name = min(measured)
            measured[name]["mean"] = 12345.0
        metrics.write_text(json.dumps(arms))
        for stage in lock["stages"].values():
            for file in [*stage.get("deps", ()), *stage["outs"]]:
                if file["path"] in trained:
                    file["md5"] = weight
                if file["path"] == str(metrics.relative_to(project.folder)):
                    file["md5"] = project.run("md5sum", str(metrics)).stdout.split()[0]
        path.write_text(yaml.safe_dump(lock))
    commit(project)
    printed, passed = audit(project)
    assert not passed and "stale" not in printed
    assert re.search(rf"pretrain@\S+: data/runs/\S+ has md5 [0-9a-f]{{32}}.dir here, the lock says {weight}", printed)
    assert re.search(
        r"(evaluate|sweep)@\S+: \S+ is \S+ over \d seeds here, results/tiny/\w+/metrics.json has 12345.0", printed
    )


@pytest.mark.parametrize(
    ("path", "old", "new", "why"),
    [
        ("results/tiny/committees/metrics.json", r'"mean": [\d.]+', '"mean": 7.5',
         r"stale: \S+committees\S+:claims: results/tiny/committees/metrics.json is not the file in the lock"),
        ("conf/system/committees/tiny.yaml", "momentum: .*", "momentum: 0.123",
         r"stale: \S+:pretrain@committees-digits: conf/system/committees/tiny.yaml: pretrain.momentum is 0.123, "),
        ("lightning_modules/ensembling/members.py", r"\Z", "\nCHANGED = 1\n",
         r"stale: \S+:pretrain@committees-digits: its code changed \(data/sources/tiny/pretrain.committees.json\)"),
    ],
)  # fmt: skip
def test_a_metric_a_setting_or_a_code_line_makes_locks_stale_at_once(project, path, old, new, why):
    edit(project, path, old, new)
    commit(project)
    printed, passed = audit(project)
    assert not passed and re.search(why, printed), printed
    assert "are stale: run `make repro`" in printed and "running again" not in printed
