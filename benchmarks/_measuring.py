"""What several benchmarks measure in the same way: CPU time and peak memory of calls, and their ratios."""

import time
from collections.abc import Callable
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
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return {"what": what, "ms of CPU": 1000 * median(times), "peak, MiB": peak_bytes(call) / 2**20}


def ratios(rows: list[dict]) -> list[dict]:
    """The rows with their figures over those of the first."""
    first = rows[0]
    return [row | {"times the time": row["ms of CPU"] / first["ms of CPU"],
                   "times the memory": row["peak, MiB"] / max(first["peak, MiB"], 1e-9)} for row in rows]  # fmt: skip
