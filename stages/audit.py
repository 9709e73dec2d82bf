"""Prove that the committed locks are true: `make audit MINUTES=12`.

First every lock entry of HEAD is held against the code, the configuration and the plan of HEAD: that takes seconds and
trains nothing. Then arms drawn from the commit's hash are run anew in a clone, with all that they start from, and what
they give is held against the lock. Papers whose code changed since their last release (`stages.release`) come first.
"""

import argparse
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightning_modules.files import ROOT, scratch
from lightning_modules.portable import made_by
from stages import release
from stages.auditing import comparing, drawing, locks
from stages.auditing.locks import Locked
from stages.command import add_preset, run_stage

FIRST = 0.5  # of the time is planned by recorded durations alone; the rest by how fast this machine turned out to be


@contextmanager
def clone(root: Path) -> Iterator[Path]:
    """A clone of HEAD in `.scratch/audit/`, without data, and with an empty DVC cache of its own."""
    folder = scratch() / "audit" / "clone"
    shutil.rmtree(folder, ignore_errors=True)  # of an audit that was killed
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["git", "clone", "-q", "--shared", "--no-checkout", str(root), str(folder)], check=True)
        subprocess.run(["git", "checkout", "-q", "--detach", head(root)], cwd=folder, check=True)
        (folder / ".dvc/config.local").write_text("[cache]\n    dir = cache\n")  # this machine may have set another
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def head(root: Path) -> str:
    """Hash of the commit that is checked out."""
    command = ["git", "rev-parse", "--verify", "HEAD"]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def rerun(folder: Path, arms: Sequence[str]) -> None:
    """Run arms in the clone, with all that they need; a stage that fails leaves no output behind."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # `python` of the stages' commands
        "REPRISE_TRACKING": "local",
    }
    for name in ("DVC_ROOT", "DVC_STAGE", "MLFLOW_TRACKING_URI", "PYTHONPATH"):
        environment.pop(name, None)
    if mirror := environment.get("REPRISE_MIRROR"):
        environment["REPRISE_MIRROR"] = str(Path(mirror).resolve())
    command = [sys.executable, "-m", "dvc", "repro", "--keep-going", "--no-run-cache", *arms]
    subprocess.run(command, cwd=folder, env=environment)


class Sample:
    """Arms that are run anew in a clone, and what they gave, held against the lock."""

    def __init__(self, folder: Path, preset: str, stages: Mapping[str, Locked]):
        self.folder, self.preset, self.stages = folder, preset, stages
        here, papers = made_by(), {stage.paper for stage in stages.values()}
        released = {paper: release.read(folder, preset, paper) for paper in papers}
        self.changed = sorted(
            paper for paper in papers if released[paper].get("manifests") != release.manifests(stages, paper)
        )
        self.exact = {paper for paper in papers if released[paper].get("made_by", here) == here}
        self.asked: set[str] = set()

    def run(self, minutes: float, started: float) -> None:
        """Run as many arms as fit into the time, one at least, in rounds: each learns how fast this machine is."""
        order = drawing.drawn(self.stages, self.changed, head(self.folder))
        durations = release.durations(self.folder, self.preset)
        left = 60 * minutes - (time.monotonic() - started)
        arms, expected = drawing.chosen(order, self.stages, durations, (), left, FIRST * left)
        if not arms:
            arms, expected = drawing.chosen(order[:1], self.stages, durations, (), math.inf)
        while arms:
            print(f"runs anew: {', '.join(arms)}", flush=True)
            begun = time.monotonic()
            rerun(self.folder, arms)
            self.asked.update(arms, *(self.stages[arm].needs for arm in arms))
            now = time.monotonic()
            pace, left = (now - begun) / max(expected, 1.0), 60 * minutes - (now - started)
            arms, expected = drawing.chosen(order, self.stages, durations, self.asked, left / pace)

    def made(self) -> list[str]:
        """The stages that ran to their end."""
        missing = {address for address in self.asked if self._missing(address)}
        return sorted(address for address in self.asked - missing if not missing & self.stages[address].needs)

    def failed(self) -> list[str]:
        """The stages that ran and failed, without those that only lacked what another one was to make."""
        missing = {address for address in self.asked if self._missing(address)}
        return sorted(
            address
            for address in missing
            if not missing & self.stages[address].needs and address not in self.left_out()
        )

    def left_out(self) -> dict[str, str]:
        """The stages that prepare data which is not to be had on this machine, with the reason."""
        notes = self.folder / ".scratch/unavailable"
        prepared = {stage.address: notes / f"{stage.arm}-{self.preset}.txt" for stage in self.stages.values()}
        return {
            address: note.read_text().strip()
            for address, note in prepared.items()
            if self.stages[address].kind == "prepare" and note.is_file()
        }

    def differences(self) -> list[str]:
        """Whatever is not as it is committed, a line each."""
        found, after = [f"{address}: failed" for address in self.failed()], locks.read(self.folder, self.preset)
        for address in self.made():
            stage = self.stages[address]
            exact = stage.paper in self.exact
            if exact:
                found += comparing.digests(stage, after[address])
            if stage.kind in ("evaluate", "sweep"):
                found += comparing.metrics(self.folder, stage, self.preset, exact)
        return found

    def _missing(self, address: str) -> bool:
        return not all((self.folder / path).exists() for path in self.stages[address].outputs)

    def show(self) -> None:
        """Print what was compared, and how."""
        for reason in self.left_out().values():
            print(f"left out: {reason}")
        made = self.made()
        equal = [address for address in made if self.stages[address].paper in self.exact]
        for how, addresses in (
            ("byte by byte", equal),
            (f"by metrics (the lock was made on another machine): {comparing.TOLERANCE}", set(made) - set(equal)),
        ):
            if addresses:
                print(f"compared {how}:", *sorted(addresses), sep="\n  ")


def audit(root: Path, preset: str, minutes: float) -> list[str]:
    """Hold the locks of HEAD against its code, and a sample against a new run; what is wrong, a line each."""
    started = time.monotonic()
    with clone(root) as folder:
        locks.make_manifests(folder, preset)
        stages = locks.read(folder, preset)
        if stale := [stage for stage in stages.values() if stage.stale]:
            lines = [f"stale: {stage.address}: {why}" for stage in stale for why in stage.stale]
            return [
                *lines,
                f"{len(stale)} of {len(stages)} stages are stale: run `make repro`, and commit what it wrote",
            ]
        seconds = time.monotonic() - started
        print(f"locks: {len(stages)} stages, all of this code, configuration and plan ({seconds:.1f} s)")
        sample = Sample(folder, preset, stages)
        print(f"code changed since the last release: {', '.join(sample.changed) or 'no paper'}", flush=True)
        sample.run(minutes, started)
        sample.show()
        return sample.differences() if sample.made() else [*sample.differences(), "nothing ran, nothing was compared"]


def main() -> None:
    """Print what was compared, and fail when anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=12, help="time to spend; one arm is run in any case")
    add_preset(parser)
    arguments = parser.parse_args()
    if not 0 <= arguments.minutes < math.inf:
        raise ValueError(f"--minutes is {arguments.minutes}, expected a number of minutes, such as 12")
    started = time.monotonic()
    print(f"audit of commit {head(ROOT)[:12]}; what is not committed is not looked at", flush=True)
    found = audit(ROOT, arguments.preset, arguments.minutes)
    print(*found, sep="\n") if found else None
    outcome = "failed: see the lines above" if found else "passed"
    print(f"audit: {outcome} ({time.monotonic() - started:.0f} s)")
    sys.exit(bool(found))


if __name__ == "__main__":
    run_stage(main)
