"""Weights and inputs that were given to the code of SEED-Voken, drawn by a formula so that no file is needed."""

import numpy as np
import torch


def formula(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The values of a parameter, by its name."""
    count = int(np.prod(shape))
    shift = sum(ord(letter) * (place + 1) for place, letter in enumerate(name)) % 1000
    values = np.sin(np.arange(count, dtype=np.float64) * 0.7390851 + shift * 0.137)
    values = 1 + 0.1 * values if len(shape) == 1 else values * (1.7 / np.sqrt(shape[-1]))
    return torch.from_numpy(values.reshape(shape).astype(np.float32))


def filled(module: torch.nn.Module) -> torch.nn.Module:
    """A module whose parameters have these values."""
    module.load_state_dict({name: formula(name, tuple(x.shape)) for name, x in module.state_dict().items()})
    return module


def summed(x: torch.Tensor) -> float:
    """A weighted sum: a value in a wrong place changes it."""
    weights = np.sin(np.arange(x.numel()) * 0.611 + 0.3) * 0.5 + 0.5
    return float((x.detach().double().flatten() * torch.from_numpy(weights)).sum())
