"""Weights of MoViNets that others have trained: checkpoints of tensorflow/models, and state dicts of MoViNet-pytorch.

Both are translated name by name, and a network takes them all or none of them (`layers.published.load_strictly`).
"""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from lightning_modules.layers.published import load_strictly, read_checkpoint
from lightning_modules.movinet.network import MoViNet

# Patterns in a port's name and what they are called here; the first that matches is taken (Atze00/MoViNet-pytorch).
PORT = (
    (r"conv1\.conv_1\.(.*)", r"stem.\1"),
    (r"conv7\.conv_1\.(.*)", r"head.\1"),
    (r"classifier\.0\.conv_1\.conv[23]d\.(.*)", r"dense.\1"),
    (r"classifier\.3\.conv_1\.conv[23]d\.(.*)", r"classifier.\1"),
    (r"blocks\.b(\d+)_l(\d+)\.alpha", r"layers.block\1_layer\2.scale"),
    (r"blocks\.b(\d+)_l(\d+)\.(expand|project)\.conv_1\.(.*)", r"layers.block\1_layer\2.\3.\4"),
    (r"blocks\.b(\d+)_l(\d+)\.deep\.conv_1\.(.*)", r"layers.block\1_layer\2.feature.\3"),
    (r"blocks\.b(\d+)_l(\d+)\.deep\.conv_2\.conv2d\.(.*)", r"layers.block\1_layer\2.feature.conv_temporal.\3"),
    (r"blocks\.b(\d+)_l(\d+)\.deep\.conv_2\.norm\.(.*)", r"layers.block\1_layer\2.feature.norm_temporal.\3"),
    (r"blocks\.b(\d+)_l(\d+)\.se\.fc1\.conv_1\.conv[23]d\.(.*)", r"layers.block\1_layer\2.squeeze.reduce.\3"),
    (r"blocks\.b(\d+)_l(\d+)\.se\.fc2\.conv_1\.conv[23]d\.(.*)", r"layers.block\1_layer\2.squeeze.expand.\3"),
    (r"blocks\.b(\d+)_l(\d+)\.res\.\d\.conv_1\.(.*)", r"layers.block\1_layer\2.skip.\3"),
)
# Modules by the names that variables of tensorflow/models (official/projects/movinet) have, and by the paths that a
# checkpoint has for them. `{}` stands for the layer.
TENSORFLOW = (
    (r"stem/stem/(.*)|.*layer_with_weights-0/_stem/(.*)", "stem"),
    (r"head/project/(.*)|.*layer_with_weights-\d+/_project/(.*)", "head"),
    (r"classifier_head(?:_\d+)?/head/(.*)|.*layer_with_weights-1/_head/(.*)", "dense"),
    (r"classifier_head(?:_\d+)?/classifier/(.*)|.*layer_with_weights-1/_classifier/(.*)", "classifier"),
    (r"(?:bneck/)?expansion/(.*)|_expansion/(.*)", "layers.{}.expand"),
    (r"(?:bneck/)?feature/(.*)|_feature/(.*)", "layers.{}.feature"),
    (r"(?:bneck/)?projection/(.*)|_projection/(.*)", "layers.{}.project"),
    (r"(?:bneck/)?skip/skip_project/(.*)|_skip/_projection/(.*)", "layers.{}.skip"),
    (r"(?:bneck/)?se/se_reduce/(.*)|_attention/_se_reduce/(.*)", "layers.{}.squeeze.reduce"),
    (r"(?:bneck/)?se/se_expand/(.*)|_attention/_se_expand/(.*)", "layers.{}.squeeze.expand"),
    (r"(?:bneck/)?se/.*(scale)|_attention/_pos_encoding/_rezero/_?(scale)", "layers.{}.squeeze.position"),
    (r"(?:bneck/)?(?:rezero/)?(scale)|_mobile_bottleneck/_rezero/_?(scale)", "layers.{}"),
)
LAYER = r"(?:block|b)(\d+)(?:_layer|/l)(\d+)/(.*)|.*layer_with_weights-(\d+)/(_.*)"
TENSORS = (  # within a module
    (r"scale", "scale"),
    (r"(?:conv[23]d_temporal|_conv_temporal)/(?:.*/)?(?:depthwise_)?kernel", "conv_temporal.weight"),
    (r"(?:.*/)?(?:bn|_batch_norm)_temporal/(\w+)", r"norm_temporal.\1"),
    (r"(?:.*/)?(?:bn|_batch_norm)/(\w+)", r"norm.\1"),
    (r"(?:conv[23]d|_conv)/(?:.*/)?(?:depthwise_)?kernel", "conv.weight"),
    (r"(?:conv[23]d|_conv)/(?:.*/)?bias", "bias"),
)
DENSE = ("dense", "classifier", "layers.{}.squeeze.reduce", "layers.{}.squeeze.expand")  # no convolutions here
STATISTICS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
NO_WEIGHTS = ("_CHECKPOINTABLE_OBJECT_GRAPH", "*OPTIMIZER_SLOT*", "optimizer/*", "save_counter*", "global_step*")


def load_port(network: MoViNet, state: Mapping[str, Tensor]) -> None:
    """Take over a state dict of MoViNet-pytorch, base or stream.

    Raises:
        ValueError: it is of another architecture or form.
    """
    ours = {}
    for name, value in state.items():
        ours[re.sub(r"\.conv[23]d\.", ".conv.", _translated(name, PORT))] = value
    load_strictly(network, _shaped(network, ours), "the state dict of MoViNet-pytorch")


def load_tensorflow(network: MoViNet, arrays: Mapping[str, np.ndarray]) -> None:
    """Take over the variables of a model of tensorflow/models, base or stream; see `read_tensorflow`.

    Args:
        network: `2plus1d` and `3d_2plus1d` have the same weights, so either may take those of the other.
        arrays: by the names of variables, such as `block0_layer0/bneck/expansion/conv3d/kernel`, or by their paths in a
            checkpoint, such as `backbone/layer_with_weights-1/_expansion/_conv/kernel`.

    Raises:
        ValueError: they are of another architecture or form.
    """
    layers, ours = list(network.layers), {}
    for name, array in arrays.items():
        if any(fnmatchcase(name, pattern) for pattern in NO_WEIGHTS):
            continue
        if array.dtype.kind not in "fiu":
            raise ValueError(f"the variable {name} is of {array.dtype}, expected numbers.")
        array = np.asarray(array, dtype=np.float32)
        ours[_from_tensorflow(name, layers)] = torch.from_numpy(_channels_first(name, array))
    new = ("*.num_batches_tracked",)
    load_strictly(network, _shaped(network, ours), "the variables of tensorflow/models", new=new)


def read_tensorflow(path: Path) -> dict[str, np.ndarray]:
    """The variables of a model: from a `.npz` file of arrays, or from a checkpoint if TensorFlow is installed.

    Raises:
        ValueError: the file of arrays is not there or damaged, or it is a checkpoint, and TensorFlow is not installed.
    """
    if path.suffix == ".npz":
        try:
            with path.open("rb") as file:
                found = np.load(file, allow_pickle=False)
                if isinstance(found, np.ndarray):
                    raise ValueError("it is one array (.npy), expected one for each variable (numpy.savez)")
                return dict(found)
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            raise ValueError(f"{path} cannot be read as arrays: {error}") from error
    try:
        from tensorflow.train import load_checkpoint
    except ImportError as error:
        raise ValueError(
            f"{path} is taken for a checkpoint of TensorFlow, which is not installed here. Where it is, run "
            f"`r = tensorflow.train.load_checkpoint({str(path)!r}); numpy.savez('weights.npz', **{{name: "
            f"r.get_tensor(name) for name in r.get_variable_to_shape_map() if name.endswith({VALUE!r})}})`, and give "
            "that file."
        ) from error
    reader = load_checkpoint(str(path))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if name.endswith(VALUE)}


def _from_tensorflow(name: str, layers: Sequence[str]) -> str:
    """The name here of a variable; its own if it is unknown, about which `load_strictly` then complains."""
    rest, layer = name.removesuffix(":0").removesuffix(VALUE), ""
    place, tensor = _place(rest)
    if not place and (match := re.fullmatch(LAYER, rest)):
        block, number, in_block, index, in_layer = match.groups()
        if index is None:
            layer = f"block{block}_layer{number}"
        elif 1 <= int(index) <= len(layers):
            layer = layers[int(index) - 1]
        place, tensor = _place(in_block or in_layer)
    found = _translated(tensor, TENSORS)
    if not place or ("{}" in place and not layer) or found == tensor != "scale":
        return name
    if place in DENSE:
        found = found.removeprefix("conv.")
    module, _, ending = found.rpartition(".")
    found = f"{module}.{STATISTICS.get(ending, ending)}" if module else found
    return f"{place.format(layer)}{'_' if place.endswith('position') else '.'}{found}"


def _place(name: str) -> tuple[str, str]:
    for pattern, place in TENSORFLOW:
        if match := re.fullmatch(pattern, name):
            return place, next(group for group in match.groups() if group is not None)
    return "", name


def read_port(path: Path) -> dict[str, Tensor]:
    """The state dict in a file of MoViNet-pytorch.

    Raises:
        ValueError: the file holds anything but tensors.
    """
    state = read_checkpoint(path)
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected a state dict: names with tensors.")
    if others := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(
            f"{path} holds {len(others)} entries that are no tensors, such as {others[0]!r}; expected a state dict "
            "alone: save what lies in that entry, or what `state_dict()` gives."
        )
    return dict(state)


def _translated(name: str, patterns: tuple[tuple[str, str], ...]) -> str:
    """The name here, or the name as it is: `load_strictly` then complains about it."""
    for pattern, ours in patterns:
        if match := re.fullmatch(pattern, name):
            return match.expand(ours)
    return name


def _channels_first(name: str, array: np.ndarray) -> np.ndarray:
    """TensorFlow's kernels (..., in, out), or (height, width, channels, 1) of depthwise ones, as (out, in, ...)."""
    if array.ndim < 4:
        return array
    last = (-2, -1) if "depthwise" in name else (-1, -2)
    return np.ascontiguousarray(np.moveaxis(array, last, (0, 1)))


def _shaped(network: MoViNet, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Kernels without sides of length one, or with more of them, in the shape that they have here."""
    own = network.state_dict()
    shaped = {}
    for name, value in state.items():
        same = name in own and [n for n in value.shape if n > 1] == [n for n in own[name].shape if n > 1]
        shaped[name] = value.reshape(own[name].shape) if same else value
    return shaped
