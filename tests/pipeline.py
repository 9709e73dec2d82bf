"""A small copy of the project for tests that run the real pipeline: the digits arms at a few seconds' size."""

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
REALDATA = ROOT.parent / "shared" / "realdata"
SMALL = {"model": {"widths": [8, 16, 32, 45], "copies": 2}, "pretrain": {"epochs": 6}}


class Copy:
    """A git clone of the working tree with a small plan of the tiny preset, and a shell in it.

    Its papers are committees and small ensembles on `datasets`, or one paper with the arms of `rows`, by stage.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seeds=(0, 1),
        epochs: int = 6,
        datasets=("digits",),
        rows: dict | None = None,
        paper: str = "maskalign",
    ):
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
        shutil.rmtree(folder / "plans/paper")
        shutil.rmtree(folder / "results", ignore_errors=True)
        (folder / "params.yaml").write_text(yaml.safe_dump({"seeds": list(seeds), "at_least": None}))
        for path in sorted((folder / "plans/tiny").glob("*/params.yaml")):
            plan = yaml.safe_load(path.read_text())
            if rows is not None:
                plan |= rows | {"datasets": list(datasets)}
            else:
                self._shrink(plan, datasets, epochs)
            if path.parent.name in ((paper,) if rows is not None else ("committees", "small_ensembles")):
                path.write_text(yaml.safe_dump(plan))
                for name in ("dvc.lock", "release.json", "durations.json"):
                    path.with_name(name).unlink(missing_ok=True)
            else:
                shutil.rmtree(path.parent)
        (folder / "dvc.lock").unlink(missing_ok=True)
        for command in (
            "init -q",
            "config user.name test",
            "config user.email test@example.org",
            "add -A",
            "commit -qm start",
        ):
            self.run("git", *command.split())

    @staticmethod
    def _shrink(plan: dict, datasets: Collection[str], epochs: int) -> None:
        """Keep what runs on these data sets, at a size that trains within seconds."""
        plan["datasets"] = [name for name in plan["datasets"] if name in datasets]
        plan["pretrain"] = {arm: row for arm, row in plan["pretrain"].items() if row["dataset"] in datasets}
        for stage in ("evaluate", "sweep"):
            rows = plan[stage].items()
            plan[stage] = {arm: row for arm, row in rows if row["runs"].endswith(tuple(datasets))}
        for row in plan["pretrain"].values():
            row["overrides"] = {**SMALL, "pretrain": {"epochs": epochs}}

    def clone(self, folder: Path) -> "Copy":
        """A copy of this one with all that it made, in another folder."""
        shutil.copytree(self.folder, folder, symlinks=True, dirs_exist_ok=True)
        other = copy.copy(self)
        other.folder = folder
        return other

    def edit(self, file: str, **changed: object) -> None:
        """Set values of a YAML file, by dotted keys."""
        path = self.folder / file
        tree = yaml.safe_load(path.read_text())
        for name, value in changed.items():
            *parents, last = name.split(".")
            inner = tree
            for key in parents:
                inner = inner.setdefault(key, {})
            inner[last] = value
        path.write_text(yaml.safe_dump(tree))

    def replace(self, file: str, old: str, new: str) -> None:
        """Replace a text that a file has once."""
        path = self.folder / file
        text = path.read_text()
        assert text.count(old) == 1, f"{file} has {old!r} {text.count(old)} times"
        path.write_text(text.replace(old, new))

    def slow_down(self, seconds: float) -> None:
        """Let each step take so long while REPRISE_PROGRESS is set, on the fastest machine too, and note each step.

        The processes of a training agree every third step whether to stop.
        """
        history = "lightning_modules/history.py"
        self.replace(history, "PROGRESS_SECONDS = 0.5\n", "PROGRESS_SECONDS = 0.0\n")
        self.replace(
            history,
            "        now = time.monotonic()\n",
            f"        time.sleep({seconds})\n        now = time.monotonic()\n",
        )
        self.replace("lightning_modules/checkpoints.py", "TOGETHER = 1.0 ", f"TOGETHER = {3 * seconds} ")

    def commit(self) -> None:
        """Commit everything."""
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", "changed")

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

    def locks(self) -> dict[str, str]:
        """The text of every dvc.lock, by its path."""
        return {
            str(path.relative_to(self.folder)): path.read_text() for path in sorted(self.folder.glob("**/dvc.lock"))
        }
