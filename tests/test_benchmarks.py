"""The page of the benchmarks: what is measured anew takes its place, and nothing else changes."""

import shutil
import subprocess
import sys

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


def test_a_benchmark_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    """Each is a process of its own, in a copy of the folder whose benchmarks are two small ones."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for name in ("__init__.py", "__main__.py"):
        shutil.copy(page.FOLDER / name, folder)
    (folder / "first.py").write_text("import lightning_modules as kept\nkept.left = True\ndef main(): return 1 / 0\n")
    (folder / "second.py").write_text(
        "import lightning_modules as kept\ndef main(): return [{'what': 'second', 'left': hasattr(kept, 'left')}]\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(page.FOLDER.parent))
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--save"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert told.returncode == 1 and told.stderr.endswith("error: first failed; the messages are above\n")
    assert "| second | False |" in told.stdout and "ZeroDivisionError" in told.stderr
    assert (folder / "README.md").read_text().count("\n## ") == 1


def test_benchmarks_run_without_the_checks_of_tests():
    """Annotations that are checked at each call would be measured, too."""
    told = subprocess.run(
        [sys.executable, "-c", "import sys, benchmarks.clip_vip; print('beartype' in sys.modules)"],
        cwd=page.FOLDER.parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout == "False\n"


def test_the_views_whose_drawing_is_measured_exist():
    for name, options, _ in world.VIEWS.values():
        views.VIEWS[name](**options)
