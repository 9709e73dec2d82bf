"""Trials of a sweep over cached logits, sampler included: the target is at least 50 a second on one core."""

import tempfile
import time
from pathlib import Path

import numpy as np

from lightning_modules.ensembling.pools import Member, Pool
from lightning_modules.sweeps import batches
from lightning_modules.sweeps.search import KINDS, CachedSearch

PAPERS = ("committees", "small_ensembles")

MACS = {4: 312, 8: 656, 11: 935, 16: 1440, 23: 2231, 32: 3392, 45: 5355, 64: 8832}  # the digits pool of `committees`
SEEDS, COPIES, SAMPLES, CLASSES = 6, 4, 450, 10
TRIALS, BATCH = 360, 12


def main() -> list[dict]:
    search = CachedSearch([pool(seed) for seed in range(SEEDS)], edges={"3": 16, "4": 8})
    with tempfile.TemporaryDirectory() as memory:
        start = time.process_time()
        _, trials = batches.run(search, trials=TRIALS, batch=BATCH, seed=0, workers=1, memory=Path(memory))
        whole = time.process_time() - start
    rows = [{"trials": "whole study: ask, evaluate, remember, tell", "number": TRIALS, "per_second": TRIALS / whole}]
    for kind in KINDS:
        configs = [trial.config for trial in trials if trial.config["kind"] == kind]
        fresh = CachedSearch([seed.pool for seed in search.seeds], edges={"3": 16, "4": 8})
        start = time.process_time()
        for config in configs:
            fresh.evaluate(config)
        seconds = time.process_time() - start
        rows.append({"trials": f"evaluate, {kind}", "number": len(configs), "per_second": len(configs) / seconds})
    return [{**row, "target_per_second": 50} for row in rows]


def pool(seed: int) -> Pool:
    """Members whose logits are the truth plus noise, less of it for the wider ones."""
    rng = np.random.default_rng(seed)
    labels = {split: rng.integers(0, CLASSES, SAMPLES) for split in ("val", "test")}
    members = [
        Member(f"mlp-h{width}#{copy}", "mlp", width, 2, copy, macs, {"8": macs}, "8")
        for width, macs in MACS.items()
        for copy in range(COPIES)
    ]
    logits = {
        (member.name, "8"): {split: noisy(rng, own, member.width) for split, own in labels.items()}
        for member in members
    }
    return Pool(seed, CLASSES, tuple(members), labels, logits)


def noisy(rng: np.random.Generator, labels: np.ndarray, width: int) -> np.ndarray:
    """Logits (samples, classes) that are right the more often the wider the member."""
    signal = np.eye(CLASSES)[labels] * 3 * width**0.3
    return (signal + rng.normal(0, 2.0, signal.shape)).astype(np.float32)
