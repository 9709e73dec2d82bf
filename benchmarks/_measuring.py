"""What several benchmarks measure in the same way: CPU time and peak memory of calls, and their ratios."""

import time
from collections.abc import Callable, Mapping
from statistics import median

from lightning_modules.metrics.memory import peak_bytes


def measured(what: str, call: Callable[[], object], repeats: int) -> dict:
    """A row with the median CPU time of some calls, and the peak memory of one; a call before them allocates.

    Args:
        what: is measured.
        call: does it once.
        repeats: calls that are timed.
    """
    call()
    return {"what": what, "ms of CPU": 1000 * seconds(call, repeats), "peak, MiB": peak_bytes(call) / 2**20}


def seconds(call: Callable[[], object], repeats: int, warm: int = 0) -> float:
    """Median CPU seconds of some calls, see `in_turns`."""
    return in_turns({"": call}, repeats, warm)[""]


def in_turns(calls: Mapping[str, Callable[[], object]], repeats: int, warm: int = 0) -> dict[str, float]:
    """Median CPU seconds of each call, taken in turns so that a busy machine is busy for all.

    Args:
        calls: by name.
        repeats: turns that are timed.
        warm: turns before them.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(warm + repeats):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    return {name: median(values[warm:]) for name, values in times.items()}


def ratios(rows: list[dict]) -> list[dict]:
    """The rows with their figures over those of the first."""
    first = rows[0]
    return [row | {"times the time": row["ms of CPU"] / first["ms of CPU"],
                   "times the memory": row["peak, MiB"] / max(first["peak, MiB"], 1e-9)} for row in rows]  # fmt: skip
