"""What a rehearsal (`stages/rehearse.py`) does otherwise than a run; without one, nothing here has an effect.

A rehearsal runs the code of a run on a few rows, on machines that may have neither the data nor the published weights.
The few places where that code must know of it ask here. Imports no torch.
"""

from dataclasses import dataclass, field
from typing import Any, TypeVar

Size = TypeVar("Size", int, float)


@dataclass
class Rehearsal:
    """One rehearsal, in the processes of its stages.

    Args:
        rows: of each split that are prepared at most.
        narrow: divides the widths of published networks, whose weights are then drawn; 1 leaves them as they are.
        callbacks: Lightning callbacks of its trainings.
        replaced: published weights and tokenizers that could not be had, or were made narrow, and were replaced.
    """

    rows: int
    narrow: int = 1
    callbacks: list[Any] = field(default_factory=list)
    replaced: set[str] = field(default_factory=set)


current: Rehearsal | None = None


def left(rows: int) -> int | None:
    """How many more rows of a split are prepared after so many; None for all."""
    return None if current is None else current.rows - rows


def width(size: Size) -> Size:
    """What a width of a published network, or a factor on its widths, is here."""
    if current is None or current.narrow == 1:
        return size
    return size // current.narrow if isinstance(size, int) else size / current.narrow


def replaces(name: str, *, missing: bool) -> bool:
    """Whether something drawn takes the place of what is published under a name; then that is noted.

    Args:
        name: of the hub.
        missing: the published one was tried, and could not be had.
    """
    if current is None or not (missing or current.narrow > 1):
        return False
    current.replaced.add(name)
    return True


def measures() -> bool:
    """Whether the speed of a trained network says anything: not if it was made narrow."""
    return current is None or current.narrow == 1


def callbacks() -> list[Any]:
    """Callbacks that a training gets in addition."""
    return [] if current is None else current.callbacks
