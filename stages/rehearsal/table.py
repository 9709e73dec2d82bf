"""The table that a rehearsal prints."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

HEAD = (
    "stage",
    "arm",
    "state",
    "data",
    "parameters",
    "steps/s",
    "steps",
    "seeds",
    "hours",
    "GPU-hours",
    "memory",
    "disk",
)

STAGES = ("sources", "prepare", "pretrain", "finetune", "evaluate", "sweep", "claims", "report")


def size(count: float | None) -> str:
    """Bytes for a reader."""
    if count is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def number(value: float | None) -> str:
    """A figure with three digits, or a dash."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ordered(entries: Iterable[Mapping[str, Any]], papers: Sequence[str]) -> list[dict[str, Any]]:
    """By paper and stage; of arms that are only built, those that need the same come as one, with their number."""
    place = {paper: number for number, paper in enumerate(["", *papers])}
    key = operator.itemgetter("paper", "stage")
    last = [dict(entry) for entry in entries if entry["stage"] == "report"]
    found = [dict(entry) for entry in entries if entry["stage"] != "report"]
    found.sort(key=lambda entry: (place.get(key(entry)[0], len(place)), STAGES.index(key(entry)[1])))
    merged: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(found):
        what = {name: value for name, value in entry.items() if name != "arm"}
        alike = repr(what) if entry["state"] == "built" else str(number)
        merged.setdefault(alike, {**entry, "alike": 0})["alike"] += 1
    return [*merged.values(), *last]


def lines(entries: Iterable[Mapping[str, Any]], papers: Sequence[str]) -> list[str]:
    """One line for each entry in columns, and what is to be said about it below, each sentence once."""
    entries = ordered(entries, papers)
    rows = [HEAD, *(_cells(entry) for entry in entries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text, told, paper = [_line(HEAD, widths)], set(), None
    for entry, cells in zip(entries, rows[1:], strict=True):
        if entry["paper"] != paper:
            paper = entry["paper"]
            text += ["", paper] if paper else [""]
        text.append(_line(cells, widths))
        for note in dict.fromkeys(entry["notes"]):
            if note not in told:
                told.add(note)
                text.append(f"      {note}")
    return text


def _line(cells: Iterable[str], widths: Iterable[int]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
    return "  ".join(padded).rstrip()


def _cells(entry: Mapping[str, Any]) -> tuple[str, ...]:
    arm = f"{entry['arm']} {entry['training']}".strip() if entry["stage"] == "finetune" else entry["arm"]
    arm += f" (and {entry['alike'] - 1} more)" if entry.get("alike", 1) > 1 else ""
    trained = entry["parameters"] is not None
    return (
        entry["stage"],
        arm,
        "FAILED" if entry["state"] == "failed" else entry["state"],
        entry["data"],
        f"{entry['parameters'] / 1e6:.1f} M" if trained else "",
        number(entry["steps_per_second"]) if trained else "",
        number(entry["steps"]) if trained else "",
        str(entry["seeds"]) if trained else "",
        number(entry["hours"]) if trained else "",
        number(entry["gpu_hours"]) if trained else "",
        size(entry["memory"]) if entry["memory"] else "",
        size(entry["disk"]) if trained else "",
    )
