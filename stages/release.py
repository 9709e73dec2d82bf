"""Record what the locks were made with, and update the README's table of papers: `make release`.

Run it right after `make repro FORCE=1`, on the same machine. It writes two files into `plans/<preset>/<paper>/`.
`release.json` has the processor, the versions and the manifests of the code: an audit expects the same bytes on such a
processor, and begins with papers whose code has changed since. It also has a digest of what a rehearsal of the preset
`paper` reads, so that CI rehearses first what has changed since. `durations.json` has the seconds that each stage took,
from which the time of a run is estimated.
"""

import argparse
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lightning_modules.files import ROOT, scratch, write_json
from lightning_modules.portable import kind, made_by
from lightning_modules.settings import meant
from stages import readme
from stages.auditing import locks
from stages.auditing.locks import Locked
from stages.command import add_preset, run_stage
from stages.doctor import need_repository
from stages.plan import PlanError, load_plan
from stages.rehearsal import drawing
from stages.runner import durations


def manifests(stages: Mapping[str, Locked], paper: str) -> dict[str, str | None]:
    """Path and md5 of each manifest that the stages of a paper depend on."""
    found = {path: md5 for each in stages.values() if each.paper == paper for path, md5 in each.manifests.items()}
    return dict(sorted(found.items()))


def read(root: Path, preset: str, paper: str) -> dict[str, Any]:
    """The last release of a paper's lock; empty where it was never released."""
    path = root / "plans" / preset / paper / "release.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def rehearsals_changed(root: Path, digests: Mapping[str, str]) -> list[str]:
    """The papers whose rehearsal reads something else than at their last release in the preset `tiny`.

    Args:
        root: the checkout.
        digests: what `rehearsal.drawing.digests` gives.
    """
    return [paper for paper, digest in digests.items() if read(root, "tiny", paper).get("rehearsal") != digest]


def release(
    root: Path,
    preset: str,
    took: Mapping[str, float],
    papers: Collection[str] = (),
    rehearsals: Mapping[str, str] | None = None,
) -> list[str]:
    """Write the records of papers, and return their stems.

    Args:
        root: the checkout, with fresh manifests.
        preset: which plans.
        took: seconds of each stage, by address.
        papers: stems, or all of the preset.
        rehearsals: what `rehearsal.drawing.digests` gives, for the papers that can be rehearsed.

    Raises:
        PlanError: an unknown paper, or a lock that does not belong to this code, configuration and plan.
    """
    stages = locks.read(root, preset)
    known = sorted({each.paper for each in stages.values()})
    for paper in papers:
        if paper not in known:
            raise PlanError(f"no paper {paper!r} in plans/{preset}{meant(paper, known)}")
    papers = sorted(papers or known)
    if stale := [address for address, each in stages.items() if each.stale and each.paper in papers]:
        raise PlanError(
            f"{len(stale)} stages are not up to date, such as {stale[0]}: run `make repro`, then `make release`"
        )
    for paper in papers:
        folder = root / "plans" / preset / paper
        record = {"made_by": made_by(), "kind": kind(), "manifests": manifests(stages, paper)}
        if rehearsals and paper in rehearsals:
            record["rehearsal"] = rehearsals[paper]
        write_json(folder / "release.json", record)
        mine = {address: took[address] for address, each in stages.items() if each.paper == paper and address in took}
        write_json(folder / durations.NAME, mine)
    return papers


def main() -> None:
    """Release the locks of a preset, or of some of its papers, as they lie in the working tree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paper", nargs="*", default=[], help="stems of papers, such as maskalign (default: all)")
    add_preset(parser)
    arguments = parser.parse_args()
    need_repository()
    locks.make_manifests(ROOT, arguments.preset)
    rehearsals = drawing.digests(load_plan("paper")) if any(ROOT.glob("plans/paper/*/params.yaml")) else {}
    papers = release(ROOT, arguments.preset, durations.load(ROOT, scratch()), arguments.paper, rehearsals)
    readme.main()
    print(
        f"released: {', '.join(papers)}. Now commit plans/{arguments.preset}, results/{arguments.preset} and README.md"
    )


if __name__ == "__main__":
    run_stage(main)
