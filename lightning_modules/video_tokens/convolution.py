"""Convolutions over frames, or over frames and time."""

from typing import Literal

import torch
from torch import nn

Padding = Literal["zeros", "reflect", "replicate"]


def conv(
    depth: int, inputs: int, outputs: int, *, kernel: int = 3, bias: bool = False, padding: Padding = "zeros"
) -> nn.Conv3d:
    """A convolution that keeps the size of a clip.

    Args:
        depth: of the kernel, in frames, where `kernel` is larger than 1.
        inputs: channels that come in.
        outputs: channels that go out.
        kernel: height and width of the kernel.
        bias: whether there is one.
        padding: what is beyond the border.
    """
    size = (depth if kernel > 1 else 1, kernel, kernel)
    return nn.Conv3d(inputs, outputs, size, padding=tuple(k // 2 for k in size), padding_mode=padding, bias=bias)


@torch.no_grad()
def lecun_normal_(module: nn.Module) -> None:
    """Flax's default: kernels normal, cut at two deviations, of variance 1 / inputs; biases zero."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            deviation = (parameter[0].numel() ** -0.5) / 0.87962566103423978
            nn.init.trunc_normal_(parameter, std=deviation, a=-2 * deviation, b=2 * deviation)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
