"""Weights and clips that a formula gives, so that the code of others can be run on the same ones."""

import torch
from torch import Tensor, nn


def wave(shape, size: float, phase: float) -> Tensor:
    """Numbers between -size and size, computed in float64 and the same everywhere to float32."""
    at = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (size * torch.sin(0.7 * at * (1 + at % 7) + phase)).float().view(shape)


def filled(network: nn.Module) -> nn.Module:
    """A network whose weights keep the size of what passes, and whose statistics differ from channel to channel.

    Weights go by their names in alphabetical order.
    """
    state = network.state_dict()
    for number, name in enumerate(sorted(state)):
        shape = state[name].shape
        if name.endswith("running_var"):
            state[name] = 1 + wave(shape, 0.3, number)
        elif name.endswith("running_mean") or name.endswith("bias"):
            state[name] = wave(shape, 0.2, number)
        elif name.endswith("bn.weight"):
            state[name] = 1 + wave(shape, 0.2, number)
        elif name.endswith("weight"):
            state[name] = wave(shape, (6 / shape[1:].numel()) ** 0.5, number)
    network.load_state_dict(state)
    return network


def clip(shape) -> Tensor:
    """Pixels from 0 to 1."""
    return 0.5 + wave(shape, 0.5, 0.3)
