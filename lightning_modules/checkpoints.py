"""Checkpoints of a training that is interrupted and goes on: written whole, checked before they are read."""

import pickle
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pytorch_lightning import Callback, Trainer

from lightning_modules.base import PaperModule
from lightning_modules.files import replace_file, sha256

if TYPE_CHECKING:
    from lightning_modules.tracking import records

DIGEST = 16  # hex digits in the name of a checkpoint


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
    """At the end of an epoch, at most every `seconds`: all that is needed to go on exactly, random states included.

    The file is `last-<digest of its content>.ckpt`, so that file and digest appear together, and a damaged one is
    known before it is opened.
    """

    def __init__(self, folder: Path, seconds: float):
        self.folder, self.seconds, self.written = folder, seconds, time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: PaperModule) -> None:
        """Let every further process draw masks and augmentations of its own."""
        if trainer.global_rank:
            torch.manual_seed(torch.initial_seed() + 1_000_003 * trainer.global_rank + trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: PaperModule) -> None:
        """Write the checkpoint whole or not at all, then drop earlier ones."""
        due = trainer.strategy.broadcast(time.monotonic() - self.written >= self.seconds)
        if due and trainer.current_epoch + 1 < trainer.max_epochs:
            whole = self.folder / "checkpoint"
            with replace_file(whole) if trainer.is_global_zero else nullcontext(whole) as path:
                trainer.save_checkpoint(path)  # every rank takes part, the first one writes
            if trainer.is_global_zero:
                earlier = list(self.folder.glob("last-*.ckpt"))
                whole.rename(self.folder / f"last-{sha256(whole)[:DIGEST]}.ckpt")
                for checkpoint in earlier:
                    checkpoint.unlink()
            self.written = time.monotonic()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: PaperModule, checkpoint: dict) -> None:
        """Add the random states."""
        checkpoint["random_states"] = {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: PaperModule, checkpoint: dict) -> None:
        """Put the random states back."""
        torch.set_rng_state(checkpoint["random_states"]["torch"])
        torch.cuda.set_rng_state_all(checkpoint["random_states"]["cuda"])
