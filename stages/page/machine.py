"""What depends on the machine (time, memory, hardware, links to the tracker), kept out of the page that DVC tracks.

The page names a place for each of these facts; `machine.js` beside it fills them in. Without the file the page is
complete and shows a dash.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any


def script(folder: Path) -> str:
    """The text of `machine.js`: facts of the runs recorded under `.scratch/runs`, by `<stage>/<arm>`."""
    return f"window.REPRISE_MACHINE = {json.dumps(facts(folder), indent=1, sort_keys=True)};\n"


def facts(folder: Path) -> dict[str, dict[str, Any]]:
    """Facts ready to be read, per `<stage>/<arm>`: summed time, peak memory, latency, hardware and the runs' links."""
    groups = defaultdict(list)
    for path in sorted(folder.glob("**/meta.json")):
        record = _read(path) | _read(path.with_name("status.json"))
        if "stage" in record and "arm" in record:
            groups[f"{record['stage']}/{record['arm']}"].append(record)
    return {key: _joined(records) for key, records in groups.items()}


def _read(path: Path) -> dict[str, Any]:
    """A record that a run may be writing just now: an unreadable one counts as not yet there."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _joined(records: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [record["wall_seconds"] for record in records if record.get("wall_seconds") is not None]
    memory = [record["peak_memory_bytes"] for record in records if record.get("peak_memory_bytes") is not None]
    hardware = sorted({str(record["hardware"]) for record in records if record.get("hardware")})
    return {
        "time": duration(sum(seconds)) if seconds else None,
        "memory": f"{max(memory) / 2**20:,.0f} MiB" if memory else None,
        "hardware": "; ".join(hardware) or None,
        "runs": [
            {
                "name": "all seeds" if record.get("seed") is None else f"seed {record['seed']}",
                "url": record.get("mlflow_url"),
            }
            for record in records
        ],
    }


def duration(seconds: float) -> str:
    """A time as people say it: 12.3 s, 4 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
