"""Tiny DVC projects for the runner's tests, and the runner in a process of its own.

`python -m tests.runner_project '{"slots": 2, ...}'` runs the project in the current folder.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def project(folder: Path, stages: dict[str, tuple[Iterable[str], str]]) -> Path:
    """Write a project whose stages make a file `out/<stage>` each; a value is (what it needs, its command)."""
    (folder / ".dvc/tmp").mkdir(parents=True)
    (folder / ".dvc/config").write_text("[core]\n    no_scm = True\n    analytics = false\n")
    (folder / ".dvcignore").write_text(".scratch\n")
    (folder / "source").write_text("1\n")
    (folder / "out").mkdir()
    entries = {
        name: {
            "cmd": command,
            "deps": [f"out/{need}" for need in needs] or ["source"],
            "outs": [f"out/{name}"],
        }
        for name, (needs, command) in stages.items()
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": entries}, sort_keys=False))
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Of a process that works on a project; scratch files lie in it, too."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "DVC_ROOT": str(folder), "PYTHONPATH": str(ROOT), "PATH": path}


def dvc(folder: Path, *arguments: str) -> str:
    """Run `dvc` in a project, and give back what it printed."""
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=folder,
        env=environment(folder),
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def start(folder: Path, **options) -> subprocess.Popen:
    """The runner on a project, in a process of its own that leads a group."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.runner_project", json.dumps(options)],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def main() -> None:
    """Run the project in the current folder and print the outcome as the last line."""
    from stages.runner import children
    from stages.runner.bookkeeping import Bookkeeper
    from stages.runner.schedule import Runner, alone

    options = json.loads(sys.argv[1])
    children.FORKED = children.FORKED | frozenset(options.pop("forked", ()))
    children.PRELOAD = options.pop("preload", children.PRELOAD)
    try:
        with alone():
            books = Bookkeeper(Path.cwd())
            names = options.pop("names", None) or set(books.graph)
            runner = Runner(books, names, slots=[""] * options.pop("slots", 2), **options)
            runner.run()
            books.close()
    except ValueError as error:
        sys.exit(f"error: {error}")
    outcome = {"done": sorted(runner.done), "failed": runner.failed, "left": sorted(runner.left)}
    print(json.dumps(outcome | {"signal": runner.interrupted}), flush=True)


if __name__ == "__main__":
    main()
