"""Speed of drawing the captioned world and of reading it back, per second of CPU time of one core (best of three).

Threads are not used: with n workers, n cores each draw at this speed.
"""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from lightning_modules.datasets import storage
from lightning_modules.datasets.streaming import RowGroups, WindowBatches
from lightning_modules.datasets.world import views

CHUNKS = 8
VIEWS = {
    "images of 64 px with captions": ("images", {"image_size": 64, "objects": (1, 3), "shared_words": 0.5}, 4000),
    "graded images of 32 px": ("graded", {"image_size": 32, "noise": 180, "fading": 0.8}, None),
    "clips of 16 frames of 64 px": (
        "clips",
        {"image_size": 64, "frames": 16, "objects": (1, 2), "shared_words": 0.5},
        350,
    ),
    "action clips of 16 frames of 64 px": ("actions", {"image_size": 64, "frames": 16, "zoom": 1.75}, None),
}


def main() -> list[dict]:
    """Drawing each view, then the resident and the streaming reader on captioned images of 64 px."""
    rows = []
    for what, (name, options, target) in VIEWS.items():
        view, chunks = views.VIEWS[name](**options), CHUNKS if "image" in what else 1
        seconds = _best(lambda view=view, chunks=chunks: _draw(view, chunks))
        rows.append(_row(f"draw {what}", chunks * views.CHUNK / seconds, target))
    with TemporaryDirectory() as scratch:
        folder = Path(scratch, "images")
        count, options = 40 * views.CHUNK, {"objects": (1, 3), "shared_words": 0.5}
        views.prepare(folder, view="images", seed=0, sizes={"train": count}, image_size=64, options=options, workers=1)
        rows.append(_row("read resident, digest checked", count / _best(lambda: storage.read(folder, "train")), 30_000))
        rows.append(_row("read streaming, batches of 64", count / _best(lambda: _stream(folder)), 30_000))
    return rows


def _draw(view: views.View, chunks: int) -> None:
    for chunk in range(chunks):
        views.chunk_columns(view, 0, "train", chunk, views.CHUNK)


def _stream(folder: Path) -> None:
    groups = RowGroups(folder, "train", ["id", "image", "caption"])
    for rows in WindowBatches(groups.ends, batch_size=64, seed=0):
        groups[rows]


def _best(work: Callable[[], object]) -> float:
    """CPU seconds of the quickest of three runs."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def _row(what: str, rate: float, target: int | None) -> dict:
    return {"what": what, "samples per CPU second": round(rate), "target": target}
