"""Compares the results of a stage with the lock and with the committed metrics."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_modules.metrics import claims
from stages.auditing.locks import Locked

ONE_SEED = 0.1  # tolerance of a metric without an interval, as a share of its value
TOLERANCE = (
    "a metric may differ from the committed mean by the width of its 95 % interval, "
    f"or by {100 * ONE_SEED:.0f} % if it has one seed"
)


def digests(before: Locked, after: Locked) -> list[str]:
    """One line for each output of a stage whose bytes are not those of the lock."""
    return [
        f"{before.address}: {path} has md5 {after.outputs[path]} here, the lock says {md5}"
        for path, md5 in before.outputs.items()
        if after.outputs[path] != md5
    ]


def metrics(folder: Path, stage: Locked, preset: str, exact: bool) -> list[str]:
    """One line for each metric that differs from the committed one: at all if `exact`, else beyond the tolerance."""
    arm = stage.arm if stage.kind == "evaluate" else f"sweep-{stage.arm}"
    measured = json.loads((folder / "data/results" / preset / stage.paper / arm / "metrics.json").read_text())
    here = claims.summary({arm: {int(seed): values for seed, values in measured.items()}})[arm]
    file = f"results/{preset}/{stage.paper}/metrics.json"
    there = json.loads(_committed(folder, file)).get(arm, {})
    return [
        f"{stage.address}: {name} is {_shown(here.get(name))} here, {file} has {_shown(there.get(name))}"
        for name in sorted(here.keys() | there.keys())
        if not alike(here.get(name), there.get(name), exact)
    ]


def alike(here: Mapping[str, Any] | None, there: Mapping[str, Any] | None, exact: bool) -> bool:
    """Whether a metric is the committed one: equal if `exact`, else within the tolerance."""
    if exact or not here or not there or here["mean"] is None or there["mean"] is None:
        return here == there
    allowed = ONE_SEED * abs(there["mean"]) if there["low"] is None else there["high"] - there["low"]
    return here["n"] == there["n"] and abs(here["mean"] - there["mean"]) <= allowed


def _committed(folder: Path, file: str) -> str:
    """A file of HEAD; the one in the checkout may have been overwritten by a run."""
    command = ["git", "show", f"HEAD:{file}"]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def _shown(metric: Mapping[str, Any] | None) -> str:
    return f"{metric['mean']} over {metric['n']} seeds" if metric else "missing"
