"""Checkpoints of a training that is interrupted and goes on: written whole, checked before they are read."""

import pickle
import sys
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pytorch_lightning import Callback, Trainer

from lightning_modules.base import PaperModule
from lightning_modules.files import replace_file, sha256
from lightning_modules.processes import Stopped, asked, signals_noted
from lightning_modules.tracking.logger import RunLogger

if TYPE_CHECKING:
    from lightning_modules.tracking import records

DIGEST = 16  # hex digits in the name of a checkpoint
TOGETHER = 1.0  # seconds between two moments at which the processes of a training agree whether to stop


def usable(folder: Path, record: "records.RunRecord") -> Path | None:
    """The newest checkpoint that is whole and holds nothing but data; the record goes back to its step.

    Others are set aside, each with one line.
    """
    for checkpoint in sorted(folder.glob("last-*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            step = _step(checkpoint)
        except ValueError as error:
            aside = checkpoint.rename(checkpoint.with_suffix(".refused"))
            print(f"{checkpoint} {error}: set aside as {aside.name}, not used", file=sys.stderr, flush=True)
            continue
        print(f"{folder.name}: resuming at step {step}", file=sys.stderr, flush=True)
        record.resume(at_step=step)
        return checkpoint
    return None


def _step(checkpoint: Path) -> int:
    """The step of a checkpoint, read without running anything that may be hidden in it.

    Raises:
        ValueError: it is damaged, or a pickle of more than tensors and plain values.
    """
    found, expected = sha256(checkpoint)[:DIGEST], checkpoint.stem.removeprefix("last-")
    if found != expected:
        raise ValueError(f"has sha256 {found}..., but was written with {expected}...")
    try:
        return torch.load(checkpoint, weights_only=True, map_location="cpu")["global_step"]
    except pickle.UnpicklingError:
        raise ValueError("is a pickle with code in it, which is never run") from None


class ResumeCheckpoint(Callback):
    """Before the first batch of a step, at most every `seconds`: all that is needed to go on exactly from there.

    This is the one point where a training is between two steps: the step before is logged, no gradient is accumulated,
    no epoch is half closed. When the process was asked to stop, it writes a checkpoint there too, and stops. The
    processes of a training do so at the same step, whichever of them was asked.

    The file is `last-<digest of its content>.ckpt`, so that file and digest appear together, and a damaged one is
    known before it is opened.
    """

    def __init__(self, folder: Path, seconds: float):
        self.folder, self.seconds = folder, seconds
        self.written, self.at_step = time.monotonic(), 0
        self.agreed_at, self.agree_next = (0, 0.0), 0  # step and time of the last agreement, step of the next
        self.resumed: dict | None = None
        self.noted = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: PaperModule) -> None:
        """From now on, signals are noted. A resumed training skips the batches that are done.

        Every further process draws masks and augmentations of its own.
        """
        self.noted.enter_context(signals_noted())
        self.at_step = self.agree_next = trainer.global_step
        self.agreed_at = trainer.global_step, time.monotonic()
        if self.resumed is not None:
            loop = trainer.fit_loop
            trainer.train_dataloader.sampler.resume(
                loop.epoch_progress.current.processed, loop.epoch_loop.batch_progress.current.completed
            )
            iter(loop._data_fetcher)  # Lightning has begun an epoch when it counted the steps, before it read the rest
        elif trainer.global_rank:
            torch.manual_seed(torch.initial_seed() + 1_000_003 * trainer.global_rank)

    def on_train_batch_start(self, trainer: Trainer, pl_module: PaperModule, batch: object, batch_idx: int) -> None:
        """Go on as the checkpoint says, if this is the first batch since; write one if it is time.

        Raises:
            Stopped: a signal has asked for it.
        """
        if self.resumed is not None:
            self._go_on(trainer)
        if batch_idx % trainer.accumulate_grad_batches:
            return
        stop, due = self._agree(trainer)
        if (stop or due) and trainer.global_step > self.at_step:
            self._write(trainer)
        if stop:
            self._stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: PaperModule) -> None:
        """Signals stop the process at once again.

        Raises:
            Stopped: there was one during the last step; the last checkpoint is not older than `seconds`.
        """
        self.noted.close()
        if asked and trainer.is_global_zero:
            raise Stopped

    def on_exception(self, trainer: Trainer, pl_module: PaperModule, exception: BaseException) -> None:
        """Signals stop the process at once again."""
        self.noted.close()

    def _agree(self, trainer: Trainer) -> tuple[bool, bool]:
        """Whether to stop, and whether a checkpoint is due: what any process says, known to all at the same step.

        One process decides at every step. Several ask each other once in `TOGETHER` seconds; in how many steps that is
        they agree on each time.
        """
        now = time.monotonic()
        stop, due = bool(asked), now - self.written >= self.seconds
        if trainer.world_size == 1:
            return stop, due
        step, (before, at) = trainer.global_step, self.agreed_at
        if step < self.agree_next:
            return False, False
        pace = (step - before) / max(now - at, 1e-6)  # steps a second
        said = torch.tensor([stop, due, pace], dtype=torch.float32, device=trainer.strategy.root_device)
        stop, due, pace = trainer.strategy.reduce(said, reduce_op="max").tolist()
        self.agreed_at, self.agree_next = (step, now), step + max(1, int(pace * TOGETHER))
        return bool(stop), bool(due)

    def _write(self, trainer: Trainer) -> None:
        """Write the checkpoint whole or not at all, then drop earlier ones."""
        whole = self.folder / "checkpoint"
        with replace_file(whole) if trainer.is_global_zero else nullcontext(whole) as path:
            trainer.save_checkpoint(path)  # every rank takes part, the first one writes
        if trainer.is_global_zero:
            earlier = set(self.folder.glob("last-*.ckpt"))
            new = whole.rename(self.folder / f"last-{sha256(whole)[:DIGEST]}.ckpt")
            for checkpoint in earlier - {new}:
                checkpoint.unlink()
        self.written, self.at_step = time.monotonic(), trainer.global_step

    def _stop(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            name = asked[0].name if asked else "a signal to another process"
            print(f"{self.folder.name}: {name}: stopping at step {trainer.global_step}", file=sys.stderr, flush=True)
            raise Stopped
        raise SystemExit(0)  # the first process says it; whoever has started the others would take a code for a failure

    def on_save_checkpoint(self, trainer: Trainer, pl_module: PaperModule, checkpoint: dict) -> None:
        """Add what Lightning leaves out: random states of every process, and the metrics that were logged last.

        Lightning logs a metric of this epoch again at later steps that do not have it, as where tasks alternate.

        The batch that was fetched and has not begun counts as not fetched.
        """
        loops = checkpoint["loops"]["fit_loop"]
        progress = loops["epoch_loop.batch_progress"]
        for count in (progress["total"], progress["current"]):
            count["ready"] = count["started"]
        progress["is_last_batch"] = False
        device = trainer.strategy.root_device
        states = {"torch": torch.get_rng_state()}
        if device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(device)
        gathered = {name: trainer.strategy.all_gather(state.to(device)).cpu() for name, state in states.items()}
        checkpoint["resume"] = {
            "random_states": {name: x.view(trainer.world_size, -1) for name, x in gathered.items()},
            "accumulated": trainer.accumulate_grad_batches,
            "logged": {name: x.detach().cpu() for name, x in trainer.callback_metrics.items()},
            "logged_again": {
                name: x.cpu() for name, x in trainer.fit_loop._results.metrics(on_step=True)["log"].items()
            },
            "logger_step": loops["epoch_loop.state_dict"]["_batches_that_stepped"],
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: PaperModule, checkpoint: dict) -> None:
        """Keep it for the first batch, because Lightning draws random numbers until then.

        With another number of processes or accumulated batches the training goes on with the same data, but draws
        other random numbers: that is said, and recorded.
        """
        self.resumed = resume = checkpoint["resume"]
        before = len(resume["random_states"]["torch"]), resume["accumulated"]
        now = trainer.world_size, trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            for name, count in counts.items():
                counts[name] = count // before[1] * now[1]
        if before == now:
            return
        said = "{} processes with {} accumulated batches each"
        if trainer.is_global_zero:
            print(
                f"{self.folder.name}: the checkpoint is of {said.format(*before)}, this training has "
                f"{said.format(*now)}: it goes on, but not digit for digit",
                file=sys.stderr,
                flush=True,
            )
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.experiment.machine({"resumed_inexactly_from": said.format(*before)})

    def _go_on(self, trainer: Trainer) -> None:
        resumed, self.resumed = self.resumed, None
        trainer.callback_metrics.update(resumed["logged"])
        for name, value in resumed["logged_again"].items():  # until the epoch ends, or it has another value
            value = value.to(trainer.strategy.root_device)
            trainer.fit_loop._results.log("resumed", name, value, on_step=True, on_epoch=False)
        trainer.fit_loop.epoch_loop._batches_that_stepped = resumed["logger_step"]
        states, rank = resumed["random_states"], trainer.global_rank
        if len(states["torch"]) == trainer.world_size:
            torch.set_rng_state(states["torch"][rank].clone())
            if "cuda" in states and torch.cuda.is_available():
                torch.cuda.set_rng_state(states["cuda"][rank].clone(), trainer.strategy.root_device)
        else:
            torch.manual_seed(torch.initial_seed() + 1_000_003 * rank + trainer.global_step)
