"""Arms that are run again, and the comparison of their results with the committed ones."""

import math
import time
from collections.abc import Mapping
from pathlib import Path

from lightning_modules.portable import kind, made_by
from stages import release
from stages.auditing import comparing, drawing, locks
from stages.auditing.checkout import head, rerun
from stages.auditing.locks import Locked
from stages.runner import durations

FIRST = 0.5  # this share of the time is planned from recorded durations, the rest from the measured speed
MEASURED = ("evaluate", "sweep")  # stages that write metrics


class Sample:
    """Arms that are run again in a clone; their results are compared with the lock."""

    def __init__(self, folder: Path, preset: str, stages: Mapping[str, Locked]):
        self.folder, self.preset, self.stages = folder, preset, stages
        here, papers = made_by(), {stage.paper for stage in stages.values()}
        released = {paper: release.read(folder, preset, paper) for paper in papers}
        self.needs = {address: stage.needs for address, stage in stages.items()}
        self.changed = sorted(
            paper for paper in papers if released[paper].get("manifests") != release.manifests(stages, paper)
        )
        self.exact = {paper for paper in papers if released[paper].get("made_by", here) == here}
        self.alike = {paper for paper in papers if released[paper].get("kind", kind()) == kind()}
        self.unequal: list[str] = []
        self.near: set[str] = set()
        self.asked: set[str] = set()

    def run(self, minutes: float, started: float) -> None:
        """Run as many arms as fit into the time, at least one, in rounds that measure how fast this machine is."""
        order = drawing.drawn(self.stages, self.changed, head(self.folder))
        known = durations.load(self.folder, self.folder / ".scratch")
        left = 60 * minutes - (time.monotonic() - started)
        arms, expected = drawing.chosen(order, self.needs, known, (), left, FIRST * left)
        if not arms:
            arms, expected = drawing.chosen(order[:1], self.needs, known, (), math.inf)
        while arms:
            print(f"running again: {', '.join(arms)}", flush=True)
            begun = time.monotonic()
            rerun(self.folder, self.preset, arms)
            self.asked.update(arms, *(self.stages[arm].needs for arm in arms))
            now = time.monotonic()
            pace, left = (now - begun) / max(expected, 1.0), 60 * minutes - (now - started)
            arms, expected = drawing.chosen(order, self.needs, known, self.asked, left / pace)

    def made(self) -> list[str]:
        """The stages that ran to their end."""
        missing = self._missing()
        return sorted(address for address in self.asked - missing if not missing & self.stages[address].needs)

    def failed(self) -> list[str]:
        """The stages that failed themselves, without those that did not run because another stage failed."""
        missing = self._missing() - self.left_out().keys()
        return sorted(address for address in missing if not self._missing() & self.stages[address].needs)

    def _missing(self) -> set[str]:
        """The requested stages that have not made all their outputs."""
        return {
            address
            for address in self.asked
            if not all((self.folder / path).exists() for path in self.stages[address].outputs)
        }

    def left_out(self) -> dict[str, str]:
        """The stages that prepare data which is not available on this machine, with the reason."""
        notes = self.folder / ".scratch/unavailable"
        prepared = {stage.address: notes / f"{stage.arm}-{self.preset}.txt" for stage in self.stages.values()}
        return {
            address: note.read_text().strip()
            for address, note in prepared.items()
            if self.stages[address].kind == "prepare" and note.is_file()
        }

    def differences(self) -> list[str]:
        """One line for each result that differs from the committed one; `near` gets those whose bytes may differ."""
        found, after = [f"{address}: failed" for address in self.failed()], locks.read(self.folder, self.preset)
        for address in self.made():
            stage = self.stages[address]
            exact = stage.paper in self.exact
            if exact and (unequal := comparing.digests(stage, after[address])):
                if stage.paper in self.alike:
                    found += unequal
                else:  # the caps do not work on this kind of processor: report it, and use the tolerance
                    self.unequal += unequal
                    exact = False
            if not exact:
                self.near.add(address)
            if stage.kind in MEASURED:
                found += comparing.metrics(self.folder, stage, self.preset, exact)
        return found

    def show(self) -> None:
        """Print what was compared, and how."""
        for reason in self.left_out().values():
            print(f"left out: {reason}")
        if self.unequal:
            section = "The same bytes on every x86-64 processor"
            print(f"NOT THE SAME BYTES on this processor ({kind()}); see CONTRIBUTING.md, {section}:")
            print(*self.unequal, sep="\n")
        made = self.made()
        equal = [address for address in made if address not in self.near]
        near = [address for address in made if address in self.near and self.stages[address].kind in MEASURED]
        other = "by metrics, for bytes may differ from those of the lock on this machine"
        for how, addresses in (("byte by byte", equal), (f"{other}: {comparing.TOLERANCE}", near)):
            if addresses:
                print(f"compared {how}:", *addresses, sep="\n  ")
        tried = {self.stages[address].paper for address in made if self.stages[address].kind in MEASURED}
        if untried := sorted({*self.changed} - tried):
            print(f"code changed, and nothing of it was measured: {', '.join(untried)}")
