"""Check the committed locks and rerun a sample of the committed results: `make audit MINUTES=12`.

First every lock entry of HEAD is compared with the code, the configuration and the plan of HEAD. This takes seconds and
trains nothing. Then arms are drawn at random, with the commit's hash as the seed, and run again in a clone, with all
arms that they start from. Their results are compared with the lock. Papers whose code has changed since their last
release (`stages.release`) come first.
"""

import argparse
import math
import sys
import time
from pathlib import Path

from lightning_modules.files import ROOT
from stages.auditing import locks
from stages.auditing.checkout import clone, head
from stages.auditing.sample import Sample
from stages.command import add_preset, run_stage
from stages.doctor import need_repository


def audit(root: Path, preset: str, minutes: float) -> list[str]:
    """Compare the locks of HEAD with its code, and a sample with a new run. Returns one line for each difference."""
    started = time.monotonic()
    with clone(root) as folder:
        locks.make_manifests(folder, preset)
        stages = locks.read(folder, preset)
        if stale := [stage for stage in stages.values() if stage.stale]:
            lines = [f"stale: {stage.address}: {why}" for stage in stale for why in stage.stale]
            way_out = "run `make repro`, and commit what it wrote"
            return [*lines, f"{len(stale)} of {len(stages)} stages are stale: {way_out}"]
        seconds = time.monotonic() - started
        print(f"locks: all {len(stages)} stages belong to this code, configuration and plan ({seconds:.1f} s)")
        sample = Sample(folder, preset, stages)
        print(f"code changed since the last release: {', '.join(sample.changed) or 'no paper'}", flush=True)
        sample.run(minutes, started)
        differences = sample.differences()
        sample.show()
        return differences if sample.made() else [*differences, "no stage ran, so nothing was compared"]


def main() -> None:
    """Print what was compared, and fail when anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=12, help="time limit; at least one arm is run in any case")
    add_preset(parser)
    arguments = parser.parse_args()
    if not 0 <= arguments.minutes < math.inf:
        raise ValueError(f"--minutes is {arguments.minutes}, expected a number of minutes from 0 on, such as 12")
    need_repository()
    started = time.monotonic()
    print(f"audit of commit {head(ROOT)[:12]}; uncommitted changes are ignored", flush=True)
    found = audit(ROOT, arguments.preset, arguments.minutes)
    for line in found:
        print(line)
    outcome = "failed: see the lines above" if found else "passed"
    print(f"audit: {outcome} ({time.monotonic() - started:.0f} s)")
    sys.exit(bool(found))


if __name__ == "__main__":
    run_stage(main)
