"""What it costs to watch a training at paper size: hooks and validation, in shares of a step of ViT-B/16."""

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
from hydra.utils import instantiate

from lightning_modules.averaging import Average
from lightning_modules.milestones import Milestones
from lightning_modules.tracking import records
from lightning_modules.tracking.logger import RunLogger
from lightning_modules.validation import Validation
from lightning_modules.watching import FETCH, STEP, Stopwatch, Watch
from stages.composing import compose

BATCH_SIZE = 2  # far below that of any recipe: a step grows with it, what the hooks cost does not
EVERY = 50  # steps between two that are logged, as in conf/trainer/gpu.yaml
NAMES = 30  # of what Lightning asks its profiler to time in a step, see `Stopwatch`
TRAINED_ROWS, WATCHED_ROWS = 1_281_167, 50_000  # of ImageNet's splits train and val
TARGET = "at most 1 % of a step"


def main() -> list[dict]:
    """CPU seconds of one training step, and of what is called around it, taken in turns."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"DVC_ROOT": folder, "REPRISE_TRACKING": "local"}
        with records.open_record(
            experiment="benchmark", arm="classifier", stage="pretrain", seed=0, preset="paper"
        ) as record:
            rows = _measure(record)
            written = [line for path in Path(folder).rglob("metrics.jsonl") for line in path.read_text().splitlines()]
            assert len(written) > 1, "nothing was written"
    return rows


def _measure(record: records.RunRecord) -> list[dict]:
    torch.set_num_threads(1)
    system = compose("paper", system="classifier")["system"]
    module = instantiate(system["model"], _convert_="all").train()
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    images = torch.randint(0, 256, (BATCH_SIZE, 3, 224, 224), dtype=torch.uint8)
    batch = {"images": images, "labels": torch.arange(BATCH_SIZE)}

    def step() -> None:
        optimizer.zero_grad()
        module.training_step(batch).backward()
        optimizer.step()

    step()
    quiet = SimpleNamespace(log_metrics=lambda *_: None, log=lambda *_: None)
    trainer = SimpleNamespace(
        global_step=0,
        log_every_n_steps=EVERY,
        is_global_zero=True,
        loggers=[quiet],
        datamodule=SimpleNamespace(batch_size=BATCH_SIZE, evaluation_batches=lambda split: iter([batch])),
        precision_plugin=SimpleNamespace(val_step_context=nullcontext),
        is_last_batch=False,
        current_epoch=0,
    )
    stopwatch, never = Stopwatch(), {"steps": 10**6}
    stopwatch.seconds = {FETCH: 1.0, STEP: 1.0}
    watch = Watch(quiet, stopwatch)
    periodic, average = [Validation(never), Milestones(never, None)], Average(0.9999)
    for callback in (watch, average, *periodic):
        callback.on_train_start(trainer, module)

    def hooks(number: int, watch: Watch, logger: object) -> Callable[[], None]:
        """A step that is logged if its number is a multiple of EVERY; with nothing validated and no average."""

        def call() -> None:
            for _ in range(NAMES // 2):
                with stopwatch.profile(STEP):
                    pass
            trainer.loggers, trainer.global_step = [logger], number - 1
            watch.on_before_optimizer_step(trainer, module, optimizer)
            trainer.global_step = number
            watch.seen = 0
            for callback in (watch, *periodic):
                callback.on_train_batch_end(trainer, module, None, batch, 0)

        return call

    def averaging() -> None:
        trainer.global_step += 1
        average.on_train_batch_end(trainer, module, None, batch, 0)

    calls = {
        "step": step,
        "optimizer": optimizer.step,
        "logged": hooks(EVERY, watch, quiet),
        "written": hooks(EVERY, Watch(record, stopwatch), RunLogger(record)),
        "other": hooks(EVERY + 1, watch, quiet),
        "validation": lambda: Validation(never).act(trainer, module),
        "average": averaging,
    }
    seconds = _in_turns(calls, rounds=3)
    mean = (seconds["logged"] + (EVERY - 1) * seconds["other"]) / EVERY
    epochs = system["pretrain"]["validate_every"]["epochs"]
    validation = seconds["validation"] * WATCHED_ROWS / (epochs * TRAINED_ROWS)
    whole = seconds["step"]
    growing = whole - seconds["optimizer"]  # with the rows, as validation does; at the batch of a recipe it is all
    rows = {
        "a training step (forward, backward, AdamW)": (whole, whole, ""),
        "hooks of a step that is logged: rate, norm of the gradient, use of the machine": (
            seconds["logged"],
            whole,
            "",
        ),
        "the same with the run's record, which writes its lines": (seconds["written"], whole, ""),
        "hooks of another step": (seconds["other"], whole, ""),
        f"hooks on average, every {EVERY}th step logged": (mean, whole, TARGET),
        "validation of a batch (share: of the step without AdamW)": (seconds["validation"], growing, ""),
        f"validation on average, of {WATCHED_ROWS:,} rows every {epochs} epochs": (validation, growing, TARGET),
        "the average of weights, where a recipe has `ema`": (seconds["average"], whole, ""),
    }
    return [
        {
            "what": f"ViT-B/16 at 224, batch {BATCH_SIZE}: {name}",
            "ms of CPU": 1000 * value,
            "share of the step, percent": 100 * value / of,
            "target": target,
        }
        for name, (value, of, target) in rows.items()
    ]


def _in_turns(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each call, short ones repeated within a round."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            repeats = 1 if name in ("step", "validation") else 3
            begin = time.process_time()
            for _ in range(repeats):
                call()
            found[name].append((time.process_time() - begin) / repeats)
    return {name: median(values) for name, values in found.items()}
