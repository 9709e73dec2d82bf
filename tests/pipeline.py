"""A small copy of the project for tests that run the real pipeline: the digits arms at a few seconds' size."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
REALDATA = ROOT.parent / "shared" / "realdata"
SMALL = {"model": {"widths": [8, 16, 32, 45], "copies": 2}, "pretrain": {"epochs": 6}}


class Copy:
    """A git clone of the working tree with a small plan, and a shell in it; `rows` are its arms, by stage."""

    def __init__(self, folder: Path, *, seeds=(0, 1), epochs: int = 6, datasets=("digits",), rows: dict | None = None):
        self.folder = folder
        names = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for name in names:
            source, target = ROOT / name, folder / name
            if source.is_symlink() or source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target, follow_symlinks=False)
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "CI": "true",
            "MLFLOW_TRACKING_URI": "",
            "REPRISE_WORKERS": "1",
        }
        for name in ("REPRISE_MIRROR", "DVC_ROOT", "DVC_STAGE", "MLFLOW_TRACKING_URI"):
            self.environment.pop(name, None)
        plan = yaml.safe_load((folder / "params.yaml").read_text())
        plan["seeds"] = list(seeds)
        plan["datasets"] = {name: {} for name in datasets}
        if rows is not None:
            plan |= rows
        else:
            plan["pretrain"] = {a: r for a, r in plan["pretrain"].items() if r["dataset"] in datasets}
            plan |= {"pretrain_from": {}, "finetune": {}}
            for stage in ("evaluate", "sweep"):
                plan[stage] = {a: r for a, r in plan[stage].items() if r["runs"] in plan["pretrain"]}
            for row in plan["pretrain"].values():
                row["overrides"] = {**SMALL, "pretrain": {"epochs": epochs}}
        (folder / "params.yaml").write_text(yaml.safe_dump(plan))
        (folder / "dvc.lock").unlink(missing_ok=True)
        for command in (
            "init -q",
            "config user.name test",
            "config user.email test@example.org",
            "add -A",
            "commit -qm start",
        ):
            self.run("git", *command.split())

    def run(self, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
        """Run a command in the copy; its output is in the error message when it fails."""
        done = subprocess.run(
            command, cwd=self.folder, env={**self.environment, **environment}, capture_output=True, text=True
        )
        if check and done.returncode:
            raise AssertionError(
                f"{command} ended with {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
            )
        return done

    def python(self, *arguments: str, **options) -> subprocess.CompletedProcess:
        """Run this interpreter in the copy."""
        return self.run(sys.executable, *arguments, **options)

    def dvc(self, *arguments: str, **options) -> subprocess.CompletedProcess:
        """Run DVC in the copy."""
        return self.python("-m", "dvc", *arguments, **options)

    def lock(self) -> str:
        """The text of dvc.lock."""
        return (self.folder / "dvc.lock").read_text()
