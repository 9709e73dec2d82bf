"""Chooses the papers that CI rehearses: those that changed since their last release first, then others at random."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from lightning_modules.files import ROOT
from stages import sources
from stages.auditing.drawing import chosen, shuffled
from stages.plan import Plan, Row
from stages.rehearsal import scaling

STARTED, RUN, BUILT = 20.0, 12.0, 3.0  # expected CPU seconds: of the start, and of each stage that runs or is built


def digests(plan: Plan) -> dict[str, str]:
    """One digest for each paper, of the code, the configuration and the plan that its rehearsal reads.

    The code counts without comments and docstrings, and YAML without comments, as in the manifests of `stages.sources`.
    """
    code = sources.manifests(plan.preset)
    return {paper: _digest(plan, paper, code) for paper in plan.papers}


def _digest(plan: Plan, paper: str, code: Mapping[str, list[Path]]) -> str:
    found = sources.closure(path for name in {*_manifests(plan, paper)} for path in code.get(name, ()))
    for path in _files(plan, paper):
        found[path.relative_to(ROOT).as_posix()] = sources.digest(path)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def _manifests(plan: Plan, paper: str) -> Iterator[str]:
    """The names of the manifests of the stages that are run or built."""
    for stage, row in _rows(plan, paper):
        yield "sweep" if stage == "sweep" else f"{stage}.{row.system}"
    yield from (f"prepare.{name}" for name in _datasets(plan, paper))
    yield f"claims.{paper}"


def _files(plan: Plan, paper: str) -> set[Path]:
    """Plan and configuration, without the shared files, which are in the manifests."""
    rows = list(_rows(plan, paper))
    found = {ROOT / f"plans/{plan.preset}/{paper}/params.yaml"}
    found |= {ROOT / f"conf/system/{row.system}/{plan.preset}.yaml" for _, row in rows}
    found |= {ROOT / f"conf/dataset/{name}/{plan.preset}.yaml" for name in _datasets(plan, paper)}
    return found | {ROOT / "conf/sweep/cached.yaml" for stage, _ in rows if stage == "sweep"}


def _datasets(plan: Plan, paper: str) -> set[str]:
    mine = {name for name, owner in plan.datasets.items() if owner == paper}
    return mine | {row.dataset for stage, row in _rows(plan, paper) if stage in ("pretrain", "finetune")}


def _rows(plan: Plan, paper: str) -> Iterator[tuple[str, Row]]:
    """The rows of a paper, and those of others that its rehearsal runs, by stage."""
    for stage, rows in scaling.chosen(plan, [paper], whole=False).items():
        yield from ((stage, row) for row in rows)
        yield from ((stage, row) for row in getattr(plan, stage).values() if row.paper == paper)


def seconds(plan: Plan, paper: str) -> float:
    """How long the rehearsal of a paper is expected to take without a GPU, from the number of its stages."""
    run = sum(len(rows) for rows in scaling.chosen(plan, [paper], whole=False).values())
    return STARTED + RUN * run + BUILT * len(list(_rows(plan, paper)))


def drawn(
    plan: Plan, papers: Collection[str], changed: Collection[str], seed: str, minutes: float
) -> tuple[list[str], float]:
    """The papers to rehearse, in the order in which they are drawn, and the seconds that they are expected to take.

    The first one is taken in any case, so that each paper has its turn. Others are taken as they fit into the time.

    Args:
        plan: the plan of a preset.
        papers: stems to draw from.
        changed: those that come first.
        seed: of the order, such as the hash of a commit.
        minutes: the time for all of them.
    """
    first, *others = sorted(shuffled(papers, seed), key=lambda paper: paper not in changed)
    expected = {paper: seconds(plan, paper) for paper in papers}
    found, spent = chosen(others, {}, expected, (), 60 * minutes - expected[first])
    return [first, *found], expected[first] + spent
