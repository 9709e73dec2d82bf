"""Chooses what is run again: at random, papers that changed first, as much as fits into the time.

`stages.audit` chooses arms with it, and `stages.rehearsal.drawing` the papers that CI rehearses.
"""

import math
import random
from collections.abc import Collection, Iterable, Mapping, Sequence

from stages.auditing.locks import Locked

UNKNOWN = 60.0  # expected seconds of a stage without a recorded duration


def shuffled(names: Iterable[str], seed: str) -> list[str]:
    """The names in a random order, which depends on nothing but the names and the seed."""
    found = sorted(names)
    random.Random(seed).shuffle(found)
    return found


def drawn(stages: Mapping[str, Locked], changed: Collection[str], seed: str) -> list[str]:
    """All arms, in the order in which they are drawn.

    First one arm of each changed paper, then the other arms of these papers, then all others. The stages `claims` come
    last, because all arms of a paper must have run before.
    """
    arms = shuffled((address for address, stage in stages.items() if stage.kind in ("evaluate", "sweep")), seed)
    first = {stages[arm].paper: arm for arm in reversed(arms)}
    arms.sort(key=lambda arm: 2 if stages[arm].paper not in changed else int(arm != first[stages[arm].paper]))
    return arms + sorted(address for address, stage in stages.items() if stage.kind == "claims")


def chosen(
    order: Sequence[str],
    needs: Mapping[str, Collection[str]],
    durations: Mapping[str, float],
    done: Collection[str],
    seconds: float,
    enough: float = math.inf,
) -> tuple[list[str], float]:
    """The arms that fit into the time, and the seconds that they are expected to take.

    Args:
        order: arms as they are drawn.
        needs: what has to run before an arm.
        durations: seconds of each stage.
        done: stages that have already run; they are not run again and cost nothing.
        seconds: the time available; an arm that needs more than the rest of it is skipped.
        enough: stop choosing when this many seconds are planned.
    """
    arms: list[str] = []
    planned: set[str] = set()
    spent = 0.0
    for arm in order:
        todo = {arm, *needs.get(arm, ())} - planned - set(done)
        cost = sum(durations.get(address, UNKNOWN) for address in todo)
        if arm not in done and spent < enough and spent + cost <= seconds:
            arms.append(arm)
            planned |= todo
            spent += cost
    return arms, spent
