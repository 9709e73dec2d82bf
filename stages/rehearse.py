"""Rehearse a plan: run every stage of it for a moment, and say what the whole run needs: `make rehearse`.

It works in a copy of the project below `.scratch/rehearse`, which is removed at the end, and changes nothing outside of
it. Data that are not here are replaced by small files in their official form, published weights by random ones.
With a GPU (`REPRISE_TRAINER=gpu`), each training runs two steps at its own size. Without, networks of the preset
`paper` are built without memory, and one chain of arms of each paper runs with narrow networks.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from lightning_modules.files import ROOT, write_json
from lightning_modules.settings import meant
from stages.command import add_preset, run_stage
from stages.composing import check, check_claims, trainer_name
from stages.plan import PlanError, load_plan
from stages.rehearsal import table

COPIED = ("conf", "ideas", "lightning_modules", "plans", "stages", "params.yaml")
MADE = ("data", "datasets", "mlflow.db", "mlruns", "report", "results", "runs", "sources")  # by the pipeline
HUB, PATIENCE = ("huggingface.co", 443), 3.0  # seconds to find out whether it can be reached


def parse() -> argparse.Namespace:
    """The command line.

    Raises:
        ValueError: no memory is given.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    add_preset(parser)
    parser.set_defaults(preset="paper")
    parser.add_argument("--paper", nargs="+", default=[], help="papers (default: all of the preset)")
    parser.add_argument("--memory", type=float, help="gigabytes of the device that the run will have, if not this one")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON, for machines")
    arguments = parser.parse_args()
    if arguments.memory is not None and arguments.memory <= 0:
        raise ValueError(f"--memory is {arguments.memory:g}, expected gigabytes, more than 0")
    return arguments


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the project, removed at the end; it sees the user's other files, which nothing of it writes to."""
    home = ROOT / ".scratch/rehearse"
    home.mkdir(parents=True, exist_ok=True)
    for left in home.iterdir():  # by a rehearsal that was killed
        number = left.name.partition("-")[0]
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(prefix=f"{os.getpid()}-", dir=home, ignore_cleanup_errors=True) as folder:
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__", ".*"))
            elif source.is_file():
                shutil.copy2(source, folder)
        Path(folder, "data").mkdir()
        for entry in [*ROOT.iterdir(), *(ROOT / "data").glob("*")]:  # files that settings may name
            if entry.name not in (*COPIED, *MADE) and not entry.name.startswith("."):
                Path(folder, entry.relative_to(ROOT)).symlink_to(entry)
        yield Path(folder)


def environment(gpus: int) -> dict[str, str]:
    """That of the stages: nothing of the user's is written to, and nobody waits for a network that is not there."""
    found = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
    for name in ("REPRISE_FORCE", "REPRISE_PROGRESS", "PYTHONPATH"):
        found.pop(name, None)
    if mirror := found.get("REPRISE_MIRROR"):
        found["REPRISE_MIRROR"] = str(Path(mirror).expanduser().absolute())
    found |= {"REPRISE_TRACKING": "local", "REPRISE_WORKERS": "1", "CI": "true"}
    found.setdefault("OMP_NUM_THREADS", "1")
    if not hub_answers():
        found["HF_HUB_OFFLINE"] = "1"
    return found


def hub_answers() -> bool:
    """Whether the Hugging Face hub can be reached."""
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return False
    if any(name.lower() == "https_proxy" for name in os.environ):
        return True  # the proxy knows
    try:
        socket.create_connection(HUB, PATIENCE).close()
    except OSError:
        return False
    return True


def graphics_cards() -> int:
    """How many GPUs the trainer uses; none for the trainer `cpu`."""
    if trainer_name() == "cpu":
        return 0
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def rehearse(request: dict[str, Any]) -> dict[str, Any]:
    """What was found: `entries` about each training and each further stage, and `cpu_seconds`.

    Raises:
        ValueError: the rehearsal itself ended early.
    """
    with copied() as folder:
        write_json(folder / "request.json", request)
        process = subprocess.Popen(
            [sys.executable, "-m", "stages.rehearsal.inside", "request.json"],
            cwd=folder,
            env=environment(request["gpus"]),
        )
        try:
            process.wait()
        finally:  # SIGTERM reaches its stages, too: they end with it
            process.terminate()
            process.wait()
        if process.returncode:
            raise ValueError(f"the rehearsal ended with {process.returncode} before the end; its messages are above")
        return json.loads((folder / "found.json").read_text())


def main() -> None:
    """Check the plan, rehearse it, and print what was found. The exit code is 1 if a stage could not run."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the copy is removed
    arguments = parse()
    plan = load_plan(arguments.preset)
    for paper in arguments.paper:
        if paper not in plan.papers:
            raise PlanError(f"--paper is {paper!r}{meant(paper, plan.papers)}")
    papers = arguments.paper or plan.papers
    check(plan, papers)
    check_claims(plan)
    gpus = graphics_cards()
    whole = gpus > 0 or arguments.preset == "tiny"
    request = {"preset": arguments.preset, "papers": papers, "root": str(ROOT), "whole": whole, "gpus": gpus}
    found = rehearse(request | {"memory": arguments.memory})
    entries = found["entries"]
    failed = sum(entry["state"] == "failed" for entry in entries)
    if arguments.json:
        print(json.dumps({"preset": arguments.preset, "failed": failed, **found}, indent=1))
    else:
        text = [*table.lines(entries, papers), "", *summary(entries, failed, whole)]
        print("\n".join([*text, f"{found['cpu_seconds']:.0f} CPU seconds"]))
    sys.exit(failed > 0)


def summary(entries: list[dict[str, Any]], failed: int, whole: bool) -> list[str]:
    """What holds for all: time, disk, and what could not be rehearsed here."""
    disk, free = sum(entry["disk"] or 0 for entry in entries), shutil.disk_usage(ROOT).free
    lack = ": too little, so run fewer papers or seeds at a time" if disk > free else ""
    text = [f"disk for weights and checkpoints: {table.size(disk)}; free here: {table.size(free)}{lack}"]
    if whole:
        hours = sum(entry["hours"] or 0 for entry in entries)
        text.append(f"trainings, one after another on this machine: {table.number(hours)} hours")
    else:
        text.append(
            "This machine has no GPU, or REPRISE_TRAINER does not name it: networks ran narrow, so steps/s are theirs, "
            "hours are not told, and memory is that of weights, gradients and optimiser at full size. "
            "REPRISE_TRAINER=gpu measures all of it."
        )
    text.append(f"{failed} of {len(entries)} could not run" if failed else f"all {len(entries)} could run")
    return text


if __name__ == "__main__":
    run_stage(main)
