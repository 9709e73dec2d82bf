"""What depends on the machine (time, memory, hardware, software, links), kept out of the page that DVC tracks.

The page has a place for each of these facts, and `machine.js` beside it fills them in. Without this file, the page
shows dashes there.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOCAL_SERVER = "http://127.0.0.1:5000"  # where `make ui` shows a store that is a file
TRAINING = "?workflowType=machine_learning"  # without it MLflow opens on its pages for chat traces
LATENCY = "milliseconds_per_image@batch_"
Record = dict[str, dict[str, Any]]


def script(folder: Path, preset: str) -> str:
    """The text of `machine.js`, from the run records under `folder` (`.scratch/runs`)."""
    return f"window.REPRISE_MACHINE = {json.dumps(facts(folder, preset), indent=1, sort_keys=True)};\n"


def facts(folder: Path, preset: str) -> dict[str, dict[str, Any]]:
    """Facts as text, for each `<stage>/<arm>`; if a seed ran more than once, its latest run counts."""
    latest: dict[tuple[str, int], Record] = {}
    for path in folder.glob("*/*/meta.json"):
        record = {name: _read(path.with_name(f"{name}.json")) for name in ("meta", "status", "machine", "sent")}
        tags = record["meta"].get("tags", {})
        if tags.get("preset") == preset and tags["seed"].isdigit():  # the report records a run about all seeds, too
            run = (f"{tags['stage']}/{tags['arm']}", int(tags["seed"]))
            latest[run] = max(latest.get(run, record), record, key=lambda found: found["meta"]["start"])
    groups = defaultdict(list)
    for (key, _), record in sorted(latest.items(), key=lambda item: item[0]):
        groups[key].append(record)
    return {key: _joined(records) for key, records in groups.items()}


def _read(path: Path) -> dict[str, Any]:
    """A part of a record; empty if it does not exist yet or was cut by a crash."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _joined(records: Sequence[Record]) -> dict[str, Any]:
    """The facts of all seeds of one arm in one stage."""
    ended = [record["status"] for record in records]
    seconds = [status["wall_seconds"] for status in ended if "wall_seconds" in status]
    memory = [_largest(ended, f"peak_{kind}memory_mib", f" {where}") for kind, where in (("", "RAM"), ("gpu_", "GPU"))]
    return {
        "time": duration(sum(seconds)) if seconds else None,
        "memory": ", ".join(filter(None, memory)) or None,
        "latency": _latency([record["machine"] for record in records]),
        "hardware": "; ".join(sorted({_hardware(record["meta"]["tags"]) for record in records} - {""})) or None,
        "software": "; ".join(sorted({_software(record["machine"]) for record in records} - {""})) or None,
        "runs": [
            {"name": f"seed {record['meta']['tags']['seed']}", "url": _link(record["sent"])} for record in records
        ],
    }


def _largest(ended: Sequence[dict[str, Any]], name: str, where: str) -> str | None:
    found = [status[name] for status in ended if name in status]
    return f"{max(found):,.0f} MiB{where}" if found else None


def _latency(measured: Sequence[dict[str, Any]]) -> str | None:
    """The range over networks and seeds for each batch size, in milliseconds per image."""
    batches = defaultdict(list)
    for name, value in (item for machine in measured for item in machine.items() if LATENCY in item[0]):
        batches[int(name.partition(LATENCY)[2])].append(value)
    ranges = (f"{min(values):.2g} to {max(values):.2g} (batch {size})" for size, values in sorted(batches.items()))
    return ", ".join(ranges) or None


def _hardware(tags: dict[str, str]) -> str:
    cores = f"{tags['cores']} cores" if "cores" in tags else None
    return tags.get("gpu") or ", ".join(filter(None, (tags.get("cpu"), cores)))


def _software(machine: dict[str, Any]) -> str:
    """What computed the numbers of a training: code paths and precision, then the versions of the libraries."""
    made_by = {name.partition(".")[2]: str(value).strip('"') for name, value in machine.items() if "made_by." in name}
    paths = [made_by[name] for name in ("processor", "precision") if name in made_by]
    names = {"torch": "torch", "numpy": "numpy", "mkl": "MKL", "onednn": "oneDNN", "cuda": "CUDA"}
    return ", ".join([*paths, *(f"{told} {made_by[name]}" for name, told in names.items() if name in made_by)])


def _link(sent: dict[str, Any]) -> str | None:
    """Address of the MLflow run, if the mirror has sent it."""
    if not {"uri", "experiment_id", "run_id"} <= sent.keys():
        return None
    server = sent["uri"].rstrip("/") if sent["uri"].startswith("http") else LOCAL_SERVER
    return f"{server}/#/experiments/{sent['experiment_id']}/runs/{sent['run_id']}{TRAINING}"


def duration(seconds: float) -> str:
    """A time for reading: 12.3 s, 4 min 05 s, 2 h 10 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
