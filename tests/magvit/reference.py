"""The weights and inputs that were given to the official JAX code, drawn by a formula so that no file is needed."""

import numpy as np
import torch

from lightning_modules.magvit.weights import flax_names, load_flax


def formula(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The values of a parameter of the official code, by its path."""
    count = int(np.prod(shape))
    shift = sum(ord(letter) * (place + 1) for place, letter in enumerate(path)) % 1000
    values = np.sin(np.arange(count, dtype=np.float64) * 0.7390851 + shift * 0.137)
    if path.endswith("scale"):
        values = 1 + 0.1 * values
    elif path.endswith("bias"):
        values = 0.1 * values
    elif path.endswith("codebook"):
        values = 0.5 * values
    elif path.endswith("embedding"):
        values = 0.3 * values
    else:
        values = values * (1.7 / np.sqrt(count / shape[-1]))
    return values.reshape(shape).astype(np.float32)


def flax_shape(name: str, parameter: torch.Tensor, path: str, *, heads: int = 0, flat: bool = False) -> tuple[int, ...]:
    """The shape that a parameter has in Flax."""
    shape = tuple(parameter.shape)
    if "/self_attention/" in path:
        if path.endswith("bias"):
            return shape if "/out/" in path else (heads, shape[0] // heads)
        return (heads, shape[1] // heads, shape[0]) if "/out/" in path else (shape[1], heads, shape[0] // heads)
    if not path.endswith("/kernel"):
        return shape
    if len(shape) == 2:
        return shape[::-1]
    turned = tuple(shape[axis] for axis in (2, 3, 4, 1, 0))
    return turned[1:] if flat else turned


def checkpoint(module, *, heads: int = 0, flat: bool = False) -> dict[str, np.ndarray]:
    """A checkpoint of the official code with the values of the formula."""
    names = flax_names(module)
    return {
        names[name]: formula(names[name], flax_shape(name, parameter, names[name], heads=heads, flat=flat))
        for name, parameter in module.named_parameters()
    }


def filled(module, **options):
    """The module with these values, read as a checkpoint is."""
    load_flax(module, checkpoint(module, **options))
    return module


def wave(shape: tuple[int, ...], scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """Inputs between 0 and `scale`."""
    count = int(np.prod(shape))
    return ((np.sin(np.arange(count) * 0.611 + shift) * 0.5 + 0.5) * scale).reshape(shape).astype(np.float32)


def video(shape: tuple[int, ...], scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    """Clips as torch has them, from channels last."""
    return torch.from_numpy(wave(shape, scale, shift)).permute(0, 4, 1, 2, 3).contiguous()


def summed(x: torch.Tensor) -> float:
    """A weighted sum of a tensor in the official order: a value in a wrong place changes it."""
    return float((x.double() * torch.from_numpy(wave(tuple(x.shape), 1.0, 0.3)).double()).sum())


def last(x: torch.Tensor) -> torch.Tensor:
    """Channels last."""
    return x.permute(0, 2, 3, 4, 1)
