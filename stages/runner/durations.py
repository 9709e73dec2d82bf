"""How long stages took in earlier runs, and an estimate of the remaining time from that.

`make release` copies the durations of this checkout to `plans/<preset>/<paper>/durations.json`. These files are
committed, for users who have not run anything yet.
"""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path

import networkx

from lightning_modules.files import write_json
from stages.plan import parts

NAME = "durations.json"


def load(root: Path, own: Path) -> dict[str, float]:
    """Seconds of each stage: those of this checkout, otherwise the committed ones."""
    known: dict[str, float] = {}
    for path in (*sorted(root.glob(f"plans/**/{NAME}")), own / NAME):
        try:
            found = json.loads(path.read_text())
            known |= {str(name): float(seconds) for name, seconds in found.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            continue  # without the file there is only no estimate
    return known


def remember(own: Path, new: Mapping[str, float]) -> None:
    """Add the seconds of stages to the durations of this checkout."""
    path = own / NAME
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    write_json(path, known | {name: round(seconds, 1) for name, seconds in new.items()})


def seconds_left(graph: networkx.DiGraph, left: set[str], spent: Mapping[str, float], known: Mapping[str, float],
                 slots: int) -> float | None:  # fmt: skip
    """An estimate of the wall time until the stages of `left` are done, or None where nothing is known.

    It is the larger of two numbers: all the work divided by the number of slots, and the longest chain of stages that
    need each other. `spent` has the seconds that running stages have taken so far. For a stage that never ran, the
    median of its kind is used.
    """
    if not known:
        return None
    kinds: dict[str, list[float]] = {}
    for name, seconds in known.items():
        kinds.setdefault(parts(name)[1], []).append(seconds)
    usual = statistics.median(known.values())
    ends: dict[str, float] = {}
    total = 0.0
    for name in networkx.topological_sort(graph.subgraph(left).reverse(copy=False)):
        expected = known[name] if name in known else statistics.median(kinds.get(parts(name)[1], [usual]))
        rest = max(expected - spent.get(name, 0.0), 0.0)
        total += rest
        ends[name] = rest + max((ends[need] for need in graph.successors(name) if need in ends), default=0.0)
    return max(total / slots, max(ends.values(), default=0.0))
