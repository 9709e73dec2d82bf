"""What a training is doing, at each logged step: learning rate and gradient, and how well it uses the machine."""

import math
import time
from typing import TYPE_CHECKING

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.profilers import Profiler
from torch.optim import Optimizer

from lightning_modules.base import PaperModule
from lightning_modules.processes import peak_memory

if TYPE_CHECKING:
    from lightning_modules.tracking import records

FETCH, STEP = "[_TrainingEpochLoop].train_dataloader_next", "run_training_batch"  # Lightning's names of what it does


class Stopwatch(Profiler):
    """The seconds that a training has waited for data and has spent in steps, all else left out."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds, self._begun = {FETCH: 0.0, STEP: 0.0}, 0.0

    def start(self, action_name: str) -> None:
        """Begin to count."""
        if action_name in self.seconds:
            self._begun = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Add what has passed."""
        if action_name in self.seconds:
            self.seconds[action_name] += time.perf_counter() - self._begun


class Watch(Callback):
    """Logs, every `log_every_n_steps`, what a step did and what the steps since then cost.

    For all loggers: `lr`, the largest rate of all groups of parameters, and `grad_norm`, the L2 norm of the whole
    gradient before it is clipped. A norm that is not finite is left out: a scaled loss may overflow, and the step is
    skipped.
    For the run's record alone: `machine/samples_per_second` of all processes together; `machine/data_share`, the share
    of a step's time that is spent waiting for data; and `machine/peak_memory_mib`, on a GPU what torch has allocated
    there, otherwise that of the process.
    """

    def __init__(self, record: "records.RunRecord", stopwatch: Stopwatch) -> None:
        self.record, self.stopwatch = record, stopwatch
        self.seen, self.read = 0, dict(stopwatch.seconds)

    def on_train_start(self, trainer: Trainer, pl_module: PaperModule) -> None:
        """Count from the step that the training begins with."""
        self.seen = trainer.global_step

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: PaperModule, optimizer: Optimizer) -> None:
        """Log the rate and the norm of the gradient with the loss of this step."""
        if not trainer.is_global_zero or (trainer.global_step + 1) % trainer.log_every_n_steps:
            return
        found = {"lr": max(group["lr"] for group in optimizer.param_groups)}
        gradients = [x.grad for group in optimizer.param_groups for x in group["params"] if x.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        if math.isfinite(norm):
            found["grad_norm"] = norm
        for logger in trainer.loggers:
            logger.log_metrics(found, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: PaperModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Record what the steps since the last logged one cost."""
        steps = trainer.global_step - self.seen
        if not steps or trainer.global_step % trainer.log_every_n_steps:
            return
        fetch, step = (self.stopwatch.seconds[name] - self.read[name] for name in (FETCH, STEP))
        self.seen, self.read = trainer.global_step, dict(self.stopwatch.seconds)
        on_gpu = pl_module.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(pl_module.device) if on_gpu else peak_memory()
        measured = {
            "machine/samples_per_second": steps * trainer.datamodule.batch_size / (fetch + step),
            "machine/data_share": fetch / (fetch + step),
            "machine/peak_memory_mib": peak / 2**20,
        }
        self.record.log(measured, trainer.global_step - 1)
