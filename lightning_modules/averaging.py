"""An exponential moving average of the weights, which takes their place where a network is judged or handed on.

Lightning's `WeightAveraging` copies the whole module, averages codebooks and counters as it averages weights, and keeps
the averages where a checkpoint has the weights that are trained. Here only what is trained is averaged. Buffers, such
as the statistics of a BatchNorm, are those of the training.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lightning_modules.base import PaperModule


class Average(Callback):
    """After n steps the average is d^n w_0 + (1 - d) (d^(n-1) w_1 + ... + w_n), with w_0 the weights at the start.

    Args:
        decay: d; null for no average, so that the weights themselves are taken everywhere.
    """

    def __init__(self, decay: float | None) -> None:
        self.decay, self.seen = decay, 0
        self.weights: dict[str, Tensor] = {}  # of a parameter's name

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The averages, for a checkpoint."""
        return {"weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, dict[str, Tensor]]) -> None:
        """Go on with the averages of a checkpoint."""
        self.weights = dict(state_dict["weights"])

    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, pl_module: PaperModule) -> None:
        """Begin with the weights at the start, or go on with those of a checkpoint."""
        self.seen = trainer.global_step
        if self.decay is not None:
            self.weights = {
                name: self.weights[name].to(x.device) if name in self.weights else x.detach().clone()
                for name, x in pl_module.named_parameters()
                if x.requires_grad or name in self.weights
            }

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: PaperModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Move the averages after each optimiser step; what is frozen meanwhile is taken as it is."""
        stepped, self.seen = trainer.global_step > self.seen, trainer.global_step
        if not stepped or self.decay is None:
            return
        moving, fixed = [], []
        for name, x in pl_module.named_parameters():
            if name in self.weights:
                (moving if x.requires_grad else fixed).append((self.weights[name], x.detach()))
        if moving:
            get_ema_multi_avg_fn(self.decay)(*map(list, zip(*moving, strict=True)), None)
        for average, x in fixed:
            average.copy_(x)

    @contextmanager
    def applied(self, module: PaperModule) -> Iterator[None]:
        """The averages as the module's weights for a while."""
        self.swap(module)
        try:
            yield
        finally:
            self.swap(module)

    @torch.no_grad()
    def swap(self, module: PaperModule) -> None:
        """Exchange the weights of a module and the averages."""
        for name, x in module.named_parameters():
            if name in self.weights:
                trained = x.detach().clone()
                x.copy_(self.weights[name])
                self.weights[name].copy_(trained)
