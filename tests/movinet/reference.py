"""Networks with weights that anyone can make again, and the layout of MoViNet-pytorch's state dicts."""

import re
import zlib

import numpy as np
import torch
from torch import Tensor

from lightning_modules.movinet.network import MoViNet

STREAM = dict(form="2plus1d", causal=True, squeeze="2plus3d", activation="hard_swish", gate="hard_sigmoid")
OURS_TO_PORT = (
    (r"stem\.(.*)", r"conv1.conv_1.\1"),
    (r"head\.(.*)", r"conv7.conv_1.\1"),
    (r"dense\.(.*)", r"classifier.0.conv_1.conv.\1"),
    (r"classifier\.(.*)", r"classifier.3.conv_1.conv.\1"),
    (r"layers\.block(\d)_layer(\d+)\.scale", r"blocks.b\1_l\2.alpha"),
    (r"layers\.block(\d)_layer(\d+)\.(expand|project)\.(.*)", r"blocks.b\1_l\2.\3.conv_1.\4"),
    (r"layers\.block(\d)_layer(\d+)\.feature\.(conv|norm)_temporal\.(.*)", r"blocks.b\1_l\2.deep.conv_2.\3.\4"),
    (r"layers\.block(\d)_layer(\d+)\.feature\.(.*)", r"blocks.b\1_l\2.deep.conv_1.\3"),
    (r"layers\.block(\d)_layer(\d+)\.squeeze\.reduce\.(.*)", r"blocks.b\1_l\2.se.fc1.conv_1.conv.\3"),
    (r"layers\.block(\d)_layer(\d+)\.squeeze\.expand\.(.*)", r"blocks.b\1_l\2.se.fc2.conv_1.conv.\3"),
    (r"layers\.block(\d)_layer(\d+)\.skip\.(.*)", r"blocks.b\1_l\2.res.1.conv_1.\3"),
)


def port_name(name: str, stream: bool) -> str:
    for pattern, port in OURS_TO_PORT:
        if match := re.fullmatch(pattern, name):
            return match.expand(port).replace(".conv.", ".conv2d." if stream else ".conv3d.")
    raise KeyError(name)


def port_shape(name: str, shape: tuple[int, ...], stream: bool) -> tuple[int, ...]:
    """Everything is a convolution there: over images in a stream, in time with one column."""
    if "norm" in name or len(shape) < 2:
        return shape
    shape = shape + (1,) * (5 - len(shape))
    if not stream:
        return shape
    return shape[:4] if "conv_temporal" in name else shape[:2] + shape[3:]


def filled(name: str, shape: tuple[int, ...]) -> Tensor:
    """Values that depend on the name alone, of the size that trained ones have."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    drawn = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        drawn = np.exp(0.2 * drawn)
    elif name.endswith("norm.weight"):
        drawn = 1 + 0.1 * drawn
    elif name.endswith("alpha"):
        drawn = np.float32(0.5 + 0.1 * drawn)
    elif drawn.ndim > 1:
        drawn = drawn * np.float32((2 / np.prod(shape[1:])) ** 0.5)
    else:
        drawn = 0.1 * drawn
    return torch.tensor(drawn)


def port_state(network: MoViNet) -> dict[str, Tensor]:
    """A state dict in the layout of MoViNet-pytorch for this network."""
    stream = network.form == "2plus1d"
    found = {}
    for name, value in network.state_dict().items():
        port = port_name(name, stream)
        found[port] = filled(port, port_shape(name, tuple(value.shape), stream))
    return found


def video(batch: int = 2, frames: int = 6, height: int = 40, width: int = 40, seed: int = 7) -> Tensor:
    drawn = np.random.RandomState(seed).uniform(size=(batch, 3, frames, height, width))
    return torch.from_numpy(drawn.astype(np.float32))


def tensorflow_path(name: str, layers: list[str], split: bool) -> str:
    """Where a checkpoint of tensorflow/models has one of our weights."""
    module, _, tensor = name.rpartition(".")
    tensor = {
        "running_mean": "moving_mean", "running_var": "moving_variance", "scale": "scale", "position_scale": "scale",
    }.get(tensor, tensor)  # fmt: skip
    conv = "_conv/_conv" if split else "_conv"
    depthwise = "depthwise_" if split and ".feature." in name else ""
    if module.endswith(("norm", "norm_temporal")):
        tensor = {"weight": "gamma", "bias": "beta"}.get(tensor, tensor)
        tensor = f"_batch_{module.rpartition('.')[2]}/{tensor}"
        module = module.rpartition(".")[0]
    elif module.endswith(("conv", "conv_temporal")):
        module, _, which = module.rpartition(".")
        tensor = f"{conv if which == 'conv' else '_conv_temporal/_conv'}/{depthwise}kernel"
    elif tensor in ("weight", "bias"):
        tensor = f"{conv}/{'kernel' if tensor == 'weight' else 'bias'}"
    if not module.startswith("layers."):
        place = {
            "stem": "backbone/layer_with_weights-0/_stem",
            "head": f"backbone/layer_with_weights-{len(layers) + 1}/_project",
            "dense": "model/layer_with_weights-1/_head",
            "classifier": "model/layer_with_weights-1/_classifier",
        }[module]
        return f"{place}/{tensor}"
    _, layer, *part = module.split(".")
    part = {
        (): "_mobile_bottleneck/_rezero", ("expand",): "_expansion", ("feature",): "_feature",
        ("project",): "_projection", ("skip",): "_skip/_projection", ("squeeze",): "_attention/_pos_encoding/_rezero",
        ("squeeze", "reduce"): "_attention/_se_reduce", ("squeeze", "expand"): "_attention/_se_expand",
    }[tuple(part)]  # fmt: skip
    return f"backbone/layer_with_weights-{layers.index(layer) + 1}/{part}/{tensor}"


def tensorflow_shape(name: str, shape: tuple[int, ...], split: bool) -> tuple[int, ...]:
    """(..., in, out), and for a depthwise convolution over images (height, width, channels, 1)."""
    if len(shape) < 2:
        return shape
    out, inputs, time, height, width = shape + (1,) * (5 - len(shape))
    if not split:
        return (time, height, width, inputs, out)
    sides = (time, 1) if "conv_temporal" in name else (height, width)
    return (*sides, out, 1) if ".feature." in name else (*sides, inputs, out)


def tensorflow_variables(network: MoViNet) -> dict[str, np.ndarray]:
    """Variables as in a checkpoint of tensorflow/models for this network, which depend on their paths alone."""
    split, layers, found = network.form == "2plus1d", list(network.layers), {}
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        path = tensorflow_path(name, layers, split)
        shape = tensorflow_shape(name, tuple(value.shape), split)
        drawn = np.random.RandomState(zlib.crc32(path.encode())).standard_normal(shape)
        drawn = np.asarray(drawn, dtype=np.float32)
        if path.endswith("moving_variance"):
            drawn = np.exp(0.2 * drawn)
        elif path.endswith("gamma"):
            drawn = 1 + 0.1 * drawn
        elif path.endswith("scale"):
            drawn = np.float32(0.5 + 0.1 * drawn)
        elif drawn.ndim > 1:
            inputs = np.prod(shape[:2] if "depthwise" in path else shape[:-1])
            drawn = drawn * np.float32((2 / inputs) ** 0.5)
        else:
            drawn = 0.1 * drawn
        found[path] = drawn
    return found
