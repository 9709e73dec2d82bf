"""The documentation site: every link of the Markdown files leads to a page, and every public name is in it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_modules.files import ROOT


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return site


@pytest.mark.slow
def test_the_site_has_every_guide_and_every_public_name(built):
    guides = {path.stem for path in (ROOT / "docs/papers").glob("*.md")}
    assert guides == {path.name for path in (built / "papers").iterdir()}
    ids = {
        name
        for path in (built / "reference").rglob("*.html")
        for name in re.findall(r'id="([\w.]+)"', path.read_text())
    }
    for path in ROOT.glob("lightning_modules/*/*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for name in re.findall(r"^(?:def|class) ([a-zA-Z]\w*)", path.read_text(), re.MULTILINE):
            assert f"{module}.{name}" in ids


@pytest.mark.slow
def test_nothing_of_the_site_is_fetched_from_elsewhere(built):
    for path in built.rglob("*.html"):
        assert not re.search(r'<(script|img|link rel="stylesheet")[^>]+(src|href)="https?:', path.read_text()), path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            "docs/papers/vlora.md",
            "../../lightning_modules/vlora/module.py",
            "../module.py",
            "the link to ../module.py leads nowhere",
        ),
        ("README.md", "(#at-paper-scale)", "(#at-scale)", "the link to #at-scale leads nowhere"),
        ("README.md", "## Why", "## How", "the list of its sections differ by"),
    ],
)
def test_a_link_that_leads_nowhere_ends_the_build(tmp_path, name, old, new, message):
    for path in subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    text = (tmp_path / name).read_text()
    assert old in text
    Path(tmp_path / name).write_text(text.replace(old, new))
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode and message in done.stderr
