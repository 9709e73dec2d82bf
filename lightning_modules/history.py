"""What a training has logged, as an output of it, and how far it is, for the runner."""

import csv
import json
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from lightning_modules.base import PaperModule
from lightning_modules.files import replace_file

DIVERGED = "The training diverged, and nothing of this seed was stored: lower its lr, or train with another precision."
PROGRESS_SECONDS = 0.5


class History(Callback, Logger):
    """What was logged at each step, without times: the content of `history.csv`.

    A logger, as only loggers are given what Lightning logs; a callback, as only callbacks have state in the checkpoint.
    """

    name = "history"
    version = ""

    def __init__(self, what: str = "a training") -> None:
        super().__init__()
        self.what = what  # is trained, for messages
        self.rows: dict[int, dict[str, float]] = {}
        self._at_epoch_end = 0

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | int], step: int | None = None) -> None:
        """Keep the metrics of one step.

        Raises:
            ValueError: one is no finite number.
        """
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"{self.what}: {name} is {float(value)} at step {step}. {DIVERGED}")
        self.rows.setdefault(step or 0, {}).update({name: float(value) for name, value in metrics.items()})

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        """Do nothing: they are no part of a history."""

    def state_dict(self) -> dict[str, list]:
        """The rows as lists, which a checkpoint holds without code."""
        return {"rows": [[step, row] for step, row in self.rows.items()]}

    def load_state_dict(self, state_dict: dict[str, list]) -> None:
        """Go on with the rows of a checkpoint."""
        self.rows = {step: dict(row) for step, row in state_dict["rows"]}
        self._at_epoch_end = self._count()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: PaperModule) -> None:
        """Note how much there is when the checkpoint is written."""
        self._at_epoch_end = self._count()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: PaperModule) -> None:
        """Refuse what Lightning has logged since the checkpoint was written: a resumed run would not have it.

        Raises:
            ValueError: a module logs with `on_epoch=True`.
        """
        if trainer.current_epoch and self._count() > self._at_epoch_end:
            raise ValueError(
                f"{type(pl_module).__name__} logs with on_epoch=True, which is logged after the checkpoint of the "
                "epoch and is lost when a run is resumed; log the mean as a step of its own"
            )

    def _count(self) -> int:
        return sum(map(len, self.rows.values()))

    def write(self, path: Path) -> None:
        """Write the rows as CSV: the step, then all names in order."""
        columns = sorted({name for row in self.rows.values() for name in row})
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["step", *columns], lineterminator="\n")
            writer.writeheader()
            writer.writerows({"step": step, **row} for step, row in sorted(self.rows.items()))


class Progress(Callback):
    """Tells the runner how far a training is, in the file that REPRISE_PROGRESS names.

    The content is `{"step": steps done, "steps": steps in all, "loss": of the last batch}`, at most twice a second.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.written = path, -PROGRESS_SECONDS

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: PaperModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Write the file whole; a disk that is full stops no training."""
        now = time.monotonic()
        if now - self.written < PROGRESS_SECONDS or not trainer.is_global_zero:
            return
        self.written = now
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        state = {
            "step": trainer.global_step,
            "steps": trainer.estimated_stepping_batches,
            "loss": float(loss) if isinstance(loss, torch.Tensor) and loss.numel() == 1 else None,
        }
        with suppress(OSError), replace_file(self.path) as temporary:
            temporary.write_text(json.dumps(state))
