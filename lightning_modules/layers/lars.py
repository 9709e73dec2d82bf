"""LARS, the optimiser of linear probes with very large batches."""

from collections.abc import Callable

import torch
from torch.optim import Optimizer


class LARS(Optimizer):
    """SGD with momentum whose rate is scaled for each matrix by |weights| / |gradient| (You et al., 1708.03888).

    Vectors (biases, norms) take the plain rate and no decay, as in the linear probes of MAE and MoCo v3.
    """

    def __init__(
        self,
        params: list,
        *,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust_coefficient: float = 0.001,
    ):
        super().__init__(
            params,
            dict(lr=lr, weight_decay=weight_decay, momentum=momentum, trust_coefficient=trust_coefficient),
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """One update; the closure, where there is one, computes the loss and the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: torch.Tensor, group: dict) -> None:
        gradient = parameter.grad
        if parameter.ndim > 1:
            gradient = gradient + group["weight_decay"] * parameter
            size, slope = parameter.norm(), gradient.norm()
            trust = group["trust_coefficient"] * size / slope
            gradient = gradient * torch.where((size > 0) & (slope > 0), trust, torch.ones_like(trust))
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].mul_(group["momentum"]).add_(gradient)
        parameter.sub_(group["lr"] * momentum)
