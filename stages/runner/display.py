"""What the user sees of a run: a live table in a terminal, otherwise one line for each event."""

import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass
class Running:
    """A child process: what it runs, when it started (`time.monotonic`), and where it writes its progress."""

    title: str
    started: float
    progress: Path


class State(Protocol):
    """What the table shows. It is read from another thread, at any time."""

    total: int
    started: float

    def finished(self) -> int: ...  # noqa: D102

    def working(self) -> Iterable[Running]: ...  # noqa: D102

    def seconds_left(self) -> float | None: ...  # noqa: D102


class Lines:
    """One line for each event."""

    def say(self, text: str) -> None:
        """Print one line."""
        print(text, flush=True)  # to the current `sys.stdout`: the live table replaces it

    def start(self, state: State) -> None:
        """Called before the first stage starts."""

    def stop(self) -> None:
        """Called when no stage runs any more, also after an error."""


class Table(Lines):
    """Lines as above, and below them a table of what is running."""

    def start(self, state: State) -> None:
        """Draw the table until `stop`."""
        from rich.live import Live

        self.live = Live(get_renderable=lambda: table(state), refresh_per_second=4, transient=True)
        self.live.start()

    def stop(self) -> None:
        """Remove the table."""
        if live := self.__dict__.pop("live", None):
            live.stop()


def display() -> Lines:
    """A table in a terminal; `CI` in the environment asks for lines."""
    return Table() if sys.stdout.isatty() and not os.environ.get("CI") else Lines()


def table(state: State):
    """The current table: a row for each child, and a line with the number of finished stages and the time."""
    from rich import box
    from rich.console import Group
    from rich.table import Table as Rows
    from rich.text import Text

    rows = Rows(box=box.SIMPLE_HEAD, pad_edge=False)
    rows.add_column("running", overflow="fold")
    for name in ("step", "loss", "time"):
        rows.add_column(name, justify="right", no_wrap=True)
    now = time.monotonic()
    for child in state.working():
        step, loss = progress(child.progress)
        rows.add_row(child.title, step, loss, span(now - child.started))
    left = state.seconds_left()
    last = (
        f"{state.finished()} of {state.total} stages done, {span(now - state.started)} so far, "
        f"{'time left unknown' if left is None else f'about {span(left)} left'}"
    )
    return Group(rows, Text(last))


def progress(path: Path) -> tuple[str, str]:
    """Step and loss of a training, from the file that it writes; empty if there is none."""
    try:
        found = json.loads(path.read_text())
        return f"{found['step']:,} / {found['steps']:,}", f"{found['loss']:.4g}" if found.get(
            "loss"
        ) is not None else ""
    except (OSError, ValueError, KeyError, TypeError):
        return "", ""


def span(seconds: float) -> str:
    """A duration for reading: `8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
