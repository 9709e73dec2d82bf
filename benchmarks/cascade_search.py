"""The exact threshold search against one vectorised pass over the samples per threshold vector, in the same process."""

import time
from collections.abc import Sequence

import numpy as np

from lightning_modules.ensembling import cascades

PAPERS = ("committees", "small_ensembles")

SAMPLES, CLASSES, TIMED_VECTORS, REPEATS = 50_000, 10, 200, 5


def main() -> list[dict]:
    """One row per setting: time of the search, of the loop (extrapolated), and how many times faster the search is."""
    return [measure(stages=3, count=100), measure(stages=4, count=40)]


def measure(stages: int, count: int) -> dict:
    """Time both on the same samples and edges, and check that they agree on every timed vector."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, SAMPLES)
    scores = {}
    for k in range(stages):
        logits = rng.normal(size=(SAMPLES, CLASSES))
        logits[np.arange(SAMPLES), labels] += 2.4 + 0.6 * k + 1.5 * rng.normal(size=SAMPLES)
        scores[(f"member{k}", "native")] = logits.astype(np.float32)
    confident, correct = cascades.StageTable(scores, labels).stages(tuple(scores))
    macs = [2**k for k in range(stages)]
    edges = cascades.threshold_edges(confident, count)

    search_seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        accuracy, cost, _ = cascades.every_threshold_vector(confident, correct, macs, edges)
        search_seconds.append(time.process_time() - start)

    vectors = [tuple(int(rng.integers(len(e))) for e in edges) for _ in range(TIMED_VECTORS)]
    start = time.process_time()
    looped = [one_vector(confident, correct, macs, [e[i] for e, i in zip(edges, v, strict=True)]) for v in vectors]
    per_vector = (time.process_time() - start) / TIMED_VECTORS
    for vector, (expected_accuracy, expected_cost) in zip(vectors, looped, strict=True):
        if abs(accuracy[vector] - expected_accuracy) > 1e-12 or abs(cost[vector] - expected_cost) > 1e-9:
            raise AssertionError(f"the search and the loop differ at {vector}.")

    seconds = float(np.median(search_seconds))
    return {
        "benchmark": "cascade_search",
        "setting": f"{stages} members, {count} thresholds per stage, {SAMPLES} samples",
        "threshold_vectors": accuracy.size,
        "search_milliseconds": round(1e3 * seconds, 2),
        "loop_milliseconds_per_vector": round(1e3 * per_vector, 4),
        "loop_seconds": round(per_vector * accuracy.size, 2),
        "times_faster": round(per_vector * accuracy.size / seconds),
        "note": f"loop_seconds is extrapolated from {TIMED_VECTORS} random vectors, on which both gave equal results; "
        f"the search is the median of {REPEATS} full runs; CPU time of one thread",
    }


def one_vector(
    confident: np.ndarray, correct: np.ndarray, macs: Sequence[int], thresholds: Sequence[float]
) -> tuple[float, float]:
    """Accuracy and average MACs of one threshold vector, vectorised over the samples."""
    waiting = np.ones(correct.shape[1], dtype=bool)
    right, spent = 0, 0
    for stage, cost in enumerate(macs):
        spent += cost * np.count_nonzero(waiting)
        leaving = waiting & (confident[stage] >= thresholds[stage]) if stage < len(thresholds) else waiting
        right += np.count_nonzero(correct[stage] & leaving)
        waiting = waiting & ~leaving
    return right / correct.shape[1], spent / correct.shape[1]
