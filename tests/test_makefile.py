"""What a user gives to `make` arrives as it is, whatever the shell would make of it."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from lightning_modules.files import ROOT

ODD = "postgresql://me:a&b;c'd\"e|f`g`$h*@host/x y"
ANSWER = """#!/bin/sh
for word in "$@"; do printf '%s\\n' "$word"; done
"""


@pytest.fixture
def folder(tmp_path):
    """The Makefile with a Python that prints its arguments."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("python", "ruff", "deptry"):
        (tmp_path / ".venv/bin" / name).write_text(ANSWER)
        (tmp_path / ".venv/bin" / name).chmod(0o755)
    for name in ("Makefile", "requirements.lock"):
        shutil.copy2(ROOT / name, tmp_path)
    (tmp_path / ".venv/.installed").touch()
    return tmp_path


def words(folder, *arguments: str) -> list[str]:
    run = subprocess.run(
        ["make", "--no-print-directory", *arguments], cwd=folder, capture_output=True, text=True,
        env=os.environ | {"MAKEFLAGS": ""},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


@pytest.mark.parametrize(("target", "option"), [("sweep", "--storage"), ("dashboard", "--storage")])
def test_a_url_with_a_password_is_one_word(folder, target, option):
    given = words(folder, target, f"STORAGE={ODD}")
    assert given[given.index(option) + 1] == ODD


@pytest.mark.parametrize(("target", "variable", "option"), [
    ("repro", "LAUNCH", "--launch"), ("repro", "GPUS", "--gpus"), ("repro", "JOBS", "--jobs"),
    ("repro", "SEEDS", "--seeds"), ("repro", "PRESET", "--preset"), ("repro", "PAPER", "--paper"),
    ("page", "PRESET", "--preset"), ("audit", "MINUTES", "--minutes"), ("release", "PAPER", "--paper"),
    ("bench", "PAPER", "--paper"), ("test", "PAPER", "--paper"), ("test-slow", "PAPER", "--paper"),
    ("test-slow", "MINUTES", "--minutes"),
    ("sweep", "STUDY", "--study"), ("sweep", "WORKERS", "--workers"), ("sweep", "TRIALS", "--trials"),
    ("sweep", "SETTING", "--setting"), ("sweep", "TASK", "--task"), ("sweep", "MACHINES", "--machines"),
    ("dashboard", "STUDY", "--study"),
    ("ui", "PORT", "--port"), ("check", "PRESET", "--preset"),
    ("rehearse", "PRESET", "--preset"), ("rehearse", "PAPER", "--paper"), ("rehearse", "MEMORY", "--memory"),
])  # fmt: skip
def test_every_variable_is_one_word(folder, target, variable, option):
    odd = "a;b&c'd|`e`"
    given = words(folder, target, f"{variable}={odd}")
    assert given[given.index(option) + 1] == odd


def test_the_arm_of_a_sweep_and_several_papers_are_words(folder):
    assert "x;y" in words(folder, "sweep", "ARM=x;y")
    given = words(folder, "repro", "PAPER=maskalign clip_vip")
    assert given[given.index("--paper") + 1 :][:2] == ["maskalign", "clip_vip"]


def test_no_recipe_has_a_variable_of_the_user_bare():
    """Whatever is in it, also in a recipe that is new."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    given = re.findall(r"^([A-Z_]+) \?=", makefile, re.MULTILINE)
    assert {"STORAGE", "STUDY", "PAPER", "PYTHON"} <= set(given)
    recipes = "".join(line for line in makefile.splitlines(keepends=True) if line.startswith("\t"))
    whole = re.sub(r"\$\(call (quoted,|option,--[a-z]+,)\$\((value )?[A-Z_]+\)\)|\$\(if \$\([A-Z_]+\),", "", recipes)
    assert len(whole) < len(recipes)
    assert [name for name in given if re.search(rf"\$[({{](value )?{name}\b", whole)] == []


def test_setup_ends_with_what_the_doctor_says_of_the_folder_and_fails_not_for_it(folder):
    (folder / ".venv/.installed").unlink()
    python = folder / ".venv/bin/python"
    python.write_text(f'{ANSWER}case "$*" in *stages.doctor) exit 1;; esac\n')
    assert words(folder, "setup", f"PYTHON={python}")[-2:] == ["-m", "stages.doctor"]
    assert "stages.doctor" not in words(folder, "setup", f"PYTHON={python}"), "it is done once"


@pytest.mark.parametrize("place", ["here", "a b"])
def test_an_environment_that_was_moved_or_has_lost_its_python_is_made_again(tmp_path, place):
    folder = tmp_path / place
    folder.mkdir()
    for name in ("Makefile", "requirements.lock"):
        shutil.copy2(ROOT / name, folder)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    (folder / ".venv/.installed").touch()

    def plan(where) -> str:
        run = subprocess.run(["make", "-n", "setup"], cwd=where, capture_output=True, text=True, check=True)
        return run.stdout

    assert "venv" not in plan(folder)
    linked = tmp_path / "linked"
    linked.symlink_to(folder)
    assert "venv" not in plan(linked)
    moved = folder.rename(tmp_path / "moved")
    assert f"it was made as {folder}/.venv" in plan(moved) and "-m venv --clear .venv" in plan(moved)
    for python in (moved / ".venv/bin").glob("python*"):
        python.unlink()
    assert "its Python is gone" in plan(moved) and "-m venv --clear .venv" in plan(moved)
