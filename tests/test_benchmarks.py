"""The page of the benchmarks: what is measured anew takes its place, and nothing else changes."""

import sys
from types import SimpleNamespace

import pytest

from benchmarks import __main__ as page
from benchmarks import world
from lightning_modules.datasets.world import views


def test_a_table_that_is_measured_again_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "FOLDER", tmp_path)
    for name in ("first", "second"):
        (tmp_path / f"{name}.py").touch()
    monkeypatch.setattr(page, "hardware", lambda: "machine A")
    page.save({name: page.section(name, [{"what": name, "ratio": 1.5}]) for name in ("second", "first")})
    before = (tmp_path / "README.md").read_text()
    assert before.startswith(page.HEAD) and before.index("## first") < before.index("## second")
    monkeypatch.setattr(page, "hardware", lambda: "machine B")
    page.save({"second": page.section("second", [{"what": "second", "ratio": 2.0}])})
    after = (tmp_path / "README.md").read_text()
    assert after == before.replace("machine A\n\n| what | ratio |\n| --- | --- |\n| second | 1.5",
                                   "machine B\n\n| what | ratio |\n| --- | --- |\n| second | 2")  # fmt: skip
    (tmp_path / "first.py").unlink()
    page.save({})
    assert "## first" not in (tmp_path / "README.md").read_text()


def test_the_committed_page_is_one_that_was_saved(monkeypatch, tmp_path):
    path = page.FOLDER / "README.md"
    copy = tmp_path / "README.md"
    copy.write_text(path.read_text())
    for name in page.names():
        (tmp_path / f"{name}.py").touch()
    monkeypatch.setattr(page, "FOLDER", tmp_path)
    page.save({})
    assert copy.read_text() == path.read_text()


def test_a_benchmark_that_fails_does_not_stop_the_others(monkeypatch, capsys):
    mains = {"benchmarks.first": lambda: 1 / 0, "benchmarks.second": lambda: [{"what": "second", "ratio": 1.5}]}
    monkeypatch.setattr(page, "names", lambda: ["first", "second"])
    monkeypatch.setattr(page.importlib, "import_module", lambda name: SimpleNamespace(main=mains[name]))
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    with pytest.raises(SystemExit, match="first failed"):
        page.main()
    told = capsys.readouterr()
    assert "| second | 1.5 |" in told.out and "ZeroDivisionError" in told.err


def test_the_views_whose_drawing_is_measured_exist():
    for name, options, _ in world.VIEWS.values():
        views.VIEWS[name](**options)
