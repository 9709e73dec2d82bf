"""Looks at a training without touching it: what a module says about the split val, every so many epochs or steps."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from pytorch_lightning import Callback, LightningDataModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_modules.base import PaperModule

Batch = dict[str, Tensor]
Averaged = Callable[[PaperModule], AbstractContextManager]  # see `averaging.Average.applied`
SEED = 0  # of what is drawn in a validation: the same masks each time, so that the points of a curve can be compared


class Periodic(Callback):
    """Calls `act` after an optimiser step, each time that `every` is due.

    Args:
        every: `{"epochs": N}` or `{"steps": N}`, see `base.Every`; null for never. The end of the training is no
            exception.
        averaged: gives the module the weights that it is looked at with, for as long as a `with` lasts.
    """

    def __init__(self, every: Mapping[str, int] | None, averaged: Averaged = nullcontext) -> None:
        self.every, self.averaged, self.seen = every, averaged, 0

    def on_train_start(self, trainer: Trainer, pl_module: PaperModule) -> None:
        """A training that goes on from a step has done what was due there."""
        self.seen = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: PaperModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Act where it is due; of accumulated batches only the last one ends a step."""
        stepped, self.seen = trainer.global_step > self.seen, trainer.global_step
        if stepped and self.every is not None and self._is_due(trainer):
            self.act(trainer, pl_module)

    def _is_due(self, trainer: Trainer) -> bool:
        if "steps" in self.every:
            return trainer.global_step % self.every["steps"] == 0
        return trainer.is_last_batch and (trainer.current_epoch + 1) % self.every["epochs"] == 0

    def act(self, trainer: Trainer, pl_module: PaperModule) -> None:
        """What is to be done."""
        raise NotImplementedError


class Validation(Periodic):
    """Logs what `PaperModule.validate` gives as `validation/<name>`, at the number of steps done.

    Each process does all of it, so that none waits for another and the result is that of one process.

    Args:
        every: see `Periodic`, also for `averaged`.
        rows: the first of the split to be looked at; null for all.
    """

    def __init__(
        self, every: Mapping[str, int] | None, rows: int | None = None, averaged: Averaged = nullcontext
    ) -> None:
        super().__init__(every, averaged)
        self.rows = rows

    def act(self, trainer: Trainer, pl_module: PaperModule) -> None:
        """Validate, and tell the loggers; the network is as it was before."""
        with untouched(pl_module), self.averaged(pl_module), trainer.precision_plugin.val_step_context():
            found = validated(pl_module, trainer.datamodule, self.rows)
        values = {f"validation/{name}": value.item() for name, value in found.items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, trainer.global_step)


def validated(module: PaperModule, data: LightningDataModule, rows: int | None = None) -> dict[str, Tensor]:
    """What a module gives for the first rows of the split val."""
    return module.validate(data, _moved(data.evaluation_batches("val"), module.device, rows))


def _moved(batches: Iterable[Batch], device: torch.device, rows: int | None) -> Iterator[Batch]:
    for batch in batches:
        if rows is not None:
            batch = {name: x[:rows] if isinstance(x, Tensor) and x.ndim else x for name, x in batch.items()}
            rows -= len(next(iter(batch.values())))
        yield {name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.items()}
        if rows == 0:
            return


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, with draws from `SEED`; then modes and random states are what they were."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        with isolate_rng(include_cuda=torch.cuda.is_initialized()), torch.no_grad():
            torch.manual_seed(SEED)
            module.eval()
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def mean_over(batches: Iterable[Batch], measure: Callable[[Batch], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean over rows of what a function gives as means of a batch.

    Args:
        batches: whose first column has as many rows as the batch.
        measure: name -> scalar.
    """
    sums, total = defaultdict(float), 0
    for batch in batches:
        rows = len(next(iter(batch.values())))
        total += rows
        for name, value in measure(batch).items():
            sums[name] = sums[name] + rows * value.double()
    return {name: value / total for name, value in sums.items()}


def check_watched(recipe: Mapping[str, object], splits: Iterable[str], where: str) -> None:
    """Refuse a validation without rows for it.

    Raises:
        ValueError: `validate_every` is set, and there is no split val.
    """
    if recipe.get("validate_every") and "val" not in splits:
        raise ValueError(
            f"{where}.validate_every is {recipe['validate_every']}, but data.splits has {', '.join(splits)}, expected "
            "val among them: add rows that are not trained on, or set validate_every to null."
        )


def judged(splits: Iterable[str]) -> list[str]:
    """The splits that predictions are made of: test; where there is no test, val, which was watched in training too."""
    splits = list(splits)
    return [name for name in splits if name == ("test" if "test" in splits else "val")]
