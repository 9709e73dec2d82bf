"""What the README tells a user to type exists, and its table is that of the facts."""

import re
from pathlib import Path

from stages import readme

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
GUIDES = sorted((ROOT / "docs/papers").glob("*.md"))


def test_the_table_of_papers_is_fresh():
    assert readme.table() in TEXT, "run `python -m stages.readme`"


def test_every_make_target_exists_and_is_explained():
    makefile = (ROOT / "Makefile").read_text()
    explained = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    named = {word for line in re.findall(r"make ((?:[a-z-]+ ?)+)", TEXT) for word in line.split()}
    named &= set(re.findall(r"`(?:[A-Z_]+=\S+ )?make ([a-z][a-z-]*)", TEXT)) | explained
    assert {"repro", "test", "setup", "check", "bench", "ui", "sweep", "dashboard", "doctor", "clean"} <= explained
    assert named <= explained


def test_make_and_the_code_know_every_variable():
    """`make` and the shell pass over a variable that nobody reads, without a word."""
    makefile = (ROOT / "Makefile").read_text()
    told = "\n".join(path.read_text() for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *GUIDES))
    lines = re.findall(r"((?:\b[A-Z_]+=\S+ )*)make [a-z][a-z -]*((?:[A-Z_]+=\S+ *)*)", told)
    named = {name for before, after in lines for name in re.findall(r"\b([A-Z_]+)=", before + after)}
    assert {"PAPER", "PRESET", "SEEDS", "GPUS", "MINUTES", "REPRISE_TRAINER"} <= named
    assert {name for name in named if not name.startswith("REPRISE_")} <= {
        *re.findall(r"^([A-Z_]+) \?=", makefile, re.MULTILINE)
    }
    code = "\n".join(
        path.read_text()
        for folder in ("lightning_modules", "stages", "tests")
        for path in (ROOT / folder).rglob("*.py")
    )
    for name in re.findall(r"REPRISE_[A-Z_]+", told):
        assert f'"{name}"' in code, name


def test_every_module_and_file_exists():
    for module in re.findall(r"python -m ([\w.]+)", TEXT):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (ROOT / link).exists(), link
