"""A clone of the last commit, and stages run in it: the working tree is never touched."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from lightning_modules.files import scratch

INHERITED = ("DVC_ROOT", "DVC_STAGE", "MLFLOW_TRACKING_URI", "PYTHONPATH")  # these would point out of the clone


@contextmanager
def clone(root: Path) -> Iterator[Path]:
    """A clone of HEAD in `.scratch/audit/`, without data, and with an empty DVC cache of its own."""
    folder = scratch() / "audit" / str(os.getpid())
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.iterdir():  # left by an audit that was killed
        if left == folder or not psutil.pid_exists(int(left.name)):
            shutil.rmtree(left)
    try:
        subprocess.run(["git", "clone", "-q", "--shared", "--no-checkout", str(root), str(folder)], check=True)
        subprocess.run(["git", "checkout", "-q", "--detach", head(root)], cwd=folder, check=True)
        (folder / ".dvc/config.local").write_text("[cache]\n    dir = cache\n")  # whatever this machine has set
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def head(root: Path) -> str:
    """Hash of the commit that is checked out."""
    command = ["git", "rev-parse", "--verify", "HEAD"]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def rerun(folder: Path, preset: str, arms: Sequence[str]) -> None:
    """Run arms in the clone, with all that they need; a stage that fails leaves no output behind."""
    environment = {name: value for name, value in os.environ.items() if name not in INHERITED}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `python` of the commands
    environment["REPRISE_TRACKING"] = "local"
    if mirror := environment.get("REPRISE_MIRROR"):
        environment["REPRISE_MIRROR"] = str(Path(mirror).resolve())
    command = [sys.executable, "-m", "stages.repro", "--preset", preset, *arms]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("["):  # a stage that ended; the claims that follow are not about a sample
                print(line, end="", flush=True)
