"""Names, shapes and values of weights that SEED-Voken's code was given, drawn by a formula: no file is needed."""

import numpy as np
import torch


def shapes(*, video: bool, width: int, multipliers: tuple[int, ...], blocks: int, bits: int) -> dict[str, tuple]:
    """The tensors of encoder and decoder, in the layout of a released checkpoint."""
    found: dict[str, tuple] = {}

    def conv(name, inputs, outputs, kernel=3, bias=True):
        name += ".conv_1" if video else ""
        found[f"{name}.weight"] = (outputs, inputs) + (kernel,) * (3 if video else 2)
        if bias:
            found[f"{name}.bias"] = (outputs,)

    def norm(name, channels):
        found[f"{name}.weight"] = found[f"{name}.bias"] = (channels,)

    def block(name, inputs, outputs):
        norm(f"{name}.norm1", inputs)
        norm(f"{name}.norm2", outputs)
        conv(f"{name}.conv1", inputs, outputs, bias=False)
        conv(f"{name}.conv2", outputs, outputs, bias=False)
        if inputs != outputs:
            conv(f"{name}.nin_shortcut", inputs, outputs, kernel=1, bias=False)

    channels = [width * m for m in multipliers]
    before = width
    conv("encoder.conv_in", 3, width, bias=False)
    for level, after in enumerate(channels):
        for n in range(blocks):
            block(f"encoder.down.{level}.block.{n}", before, after)
            before = after
        if level < len(channels) - 1:
            conv(f"encoder.down.{level}.downsample", after, after)
    for n in range(blocks):
        block(f"encoder.mid_block.{n}", before, before)
        block(f"decoder.mid_block.{n}", before, before)
    norm("encoder.norm_out", before)
    conv("encoder.conv_out", before, bits, kernel=1)
    conv("decoder.conv_in", bits, before)
    for level, after in reversed(list(enumerate(channels))):
        for part in ("gamma", "beta"):
            found[f"decoder.adaptive.{level}.{part}.weight"] = (before, bits)
            found[f"decoder.adaptive.{level}.{part}.bias"] = (before,)
        for n in range(blocks):
            block(f"decoder.up.{level}.block.{n}", before, after)
            before = after
        if level:
            pixels = 8 if video and multipliers[level - 1] > 1 else 4
            conv(f"decoder.up.{level}.upsample.conv1", before, before * pixels)
    norm("decoder.norm_out", before)
    conv("decoder.conv_out", before, 3)
    return found


def formula(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The values of a tensor, by its name."""
    count = int(np.prod(shape))
    shift = sum(ord(letter) * (place + 1) for place, letter in enumerate(name)) % 1000
    values = np.sin(np.arange(count, dtype=np.float64) * 0.7390851 + shift * 0.137)
    if len(shape) > 1:
        values *= 1.7 / np.sqrt(count / shape[0])
    else:
        values = (1 if "norm" in name and name.endswith("weight") else 0) + 0.1 * values
    return torch.from_numpy(values.reshape(shape).astype(np.float32))


def weights(**sizes) -> dict[str, torch.Tensor]:
    """A checkpoint with these values."""
    return {name: formula(name, shape) for name, shape in shapes(**sizes).items()}


def wave(*shape: int, shift: float = 0.0) -> torch.Tensor:
    """Inputs from -1 to 1."""
    return torch.from_numpy(np.sin(np.arange(int(np.prod(shape))) * 0.611 + shift).reshape(shape).astype(np.float32))


def summed(x: torch.Tensor) -> float:
    """A weighted sum: a value in a wrong place changes it."""
    places = torch.from_numpy(np.sin(np.arange(x.numel()) * 0.611 + 0.3) * 0.5 + 0.5)
    return float((x.detach().double().flatten() * places).sum())
