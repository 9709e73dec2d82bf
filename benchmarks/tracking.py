"""What logging costs a training step, through a run record and by calling MLflow directly."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

METRICS = {f"pretrain/loss_{number}": (100 + number) / 7 for number in range(8)}
STEPS = 2000
DIRECT_STEPS = 50  # these cost milliseconds each


def main() -> list[dict]:
    """Time a 64-wide MLP step alone, and 8 metrics logged at every step.

    Returns:
        One row per way of logging: microseconds per call, and per cent of the training step measured in the same run.
    """
    with tempfile.TemporaryDirectory() as folder:
        step = _per_call(_training_step(), STEPS)
        ways = {
            "run record": _per_call(_record_log(Path(folder)), STEPS),
            "run record, replaying": _per_call(_replayed_log(Path(folder)), STEPS),
            "MLflow client on SQLite": _per_call(_mlflow_log(Path(folder)), DIRECT_STEPS),
        }
    return [
        {
            "benchmark": f"tracking: {len(METRICS)} metrics by {way}",
            "us_per_call": round(seconds * 1e6, 2),
            "training_step_us": round(step * 1e6, 1),
            "share_at_every_step_percent": round(100 * seconds / step, 2),
            "share_at_every_10th_step_percent": round(10 * seconds / step, 2),
        }
        for way, seconds in ways.items()
    ]


def _per_call(call: Callable[[int], None], steps: int) -> float:
    """Seconds per call: the median of ten rounds, so that a busy neighbour does not decide."""
    rounds = []
    for first in range(0, steps, steps // 10):
        begin = time.perf_counter()
        for step in range(first, first + steps // 10):
            call(step)
        rounds.append((time.perf_counter() - begin) / (steps // 10))
    return sorted(rounds)[len(rounds) // 2]


def _training_step() -> Callable[[int], None]:
    import torch

    torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters())
    images, labels = torch.randn(64, 64), torch.randint(10, (64,))

    def step(_: int) -> None:
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _open_record(folder: Path):
    from lightning_modules.tracking import records

    os.environ |= {"DVC_ROOT": str(folder), "REPRISE_TRACKING": "local"}
    return records.open_record(experiment="benchmark", arm="mlp", stage="pretrain", seed=0, preset="tiny")


def _record_log(folder: Path) -> Callable[[int], None]:
    record = _open_record(folder)

    def log(step: int) -> None:
        record.log(METRICS, step)
        if step == STEPS - 1:
            record.finish()

    return log


def _replayed_log(folder: Path) -> Callable[[int], None]:
    """The steps after a checkpoint, which a resumed run passes again."""
    record = _open_record(folder)
    return lambda step: record.log(METRICS, step)


def _mlflow_log(folder: Path) -> Callable[[int], None]:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(f"sqlite:///{folder}/direct.db")
    run = client.create_run(client.create_experiment("benchmark"))

    def log(step: int) -> None:
        now = time.time_ns() // 1_000_000
        client.log_batch(run.info.run_id, [Metric(name, value, now, step) for name, value in METRICS.items()])

    return log


if __name__ == "__main__":
    for row in main():
        print(row)
