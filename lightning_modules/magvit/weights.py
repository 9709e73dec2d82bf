"""Weights in the layout of google-research/magvit (Flax), by their paths: `encoder/ResBlock_0/Conv_1/kernel`.

The authors have published none (issue 16 of that repository), so these are of one's own trainings with that code, as an
`.npz` file with one array for each path: `numpy.savez(file, **flax.traverse_util.flatten_dict(params, sep="/"))`, of
`ema_params` of a tokenizer, `d_params` of a discriminator, `params` of a transformer. JAX is not needed to read it.
"""

from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.layers.published import load_strictly
from lightning_modules.magvit.tokenizer import Tokenizer
from lightning_modules.video_tokens.discriminator import Discriminator
from lightning_modules.video_tokens.network import Decoder, Encoder
from lightning_modules.video_tokens.transformer import Bert, Layer


def read_flax(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file by their paths.

    Raises:
        ValueError: the file is not there, is none, or is cut off.
    """
    try:
        with np.load(path, allow_pickle=False) as file:  # of an .npy file, an array: TypeError
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, BadZipFile, EOFError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read as an .npz file of Flax parameters ({error}): write it with numpy.savez from "
            "flatten_dict(params, sep='/')."
        ) from error


def load_flax(module: Tokenizer | Discriminator | Bert, arrays: Mapping[str, np.ndarray]) -> None:
    """Load parameters of the official code, every one of them.

    Args:
        module: what is loaded into.
        arrays: path -> array, of a generator, a discriminator, or a transformer, see `read_flax`.

    Raises:
        ValueError: a path is on one side only, shapes differ, or an array holds no floating-point numbers.
    """
    names = flax_names(module)
    _check_kinds(arrays)
    _check_shapes(module, arrays, names)
    unknown = {theirs: torch.from_numpy(arrays[theirs]) for theirs in arrays.keys() - set(names.values())}
    state = {ours: _turned(arrays[theirs], theirs) for ours, theirs in names.items() if theirs in arrays}
    load_strictly(module, state | unknown, "the Flax checkpoint")


def flax_names(module: Tokenizer | Discriminator | Bert) -> dict[str, str]:
    """The official path of each parameter. Flax numbers the layers of a class in the order in which they are called."""
    if isinstance(module, Tokenizer):
        inner = {f"encoder.{k}": f"encoder/{v}" for k, v in _coder(module.encoder).items()}
        inner |= {f"decoder.{k}": f"decoder/{v}" for k, v in _coder(module.decoder).items()}
        return _leaves(module, inner | {"quantiser": "quantizer"})
    return _leaves(module, _discriminator(module) if isinstance(module, Discriminator) else _bert(module))


def _coder(coder: Encoder | Decoder) -> dict[str, str]:
    blocks = len(coder.tail)
    found = {"stem": "Conv_0", "norm": "GroupNorm_0"}
    if isinstance(coder, Encoder):
        order = [f"levels.{level}.{n}" for level in range(len(coder.levels)) for n in range(blocks)]
        order += [f"tail.{n}" for n in range(blocks)]
        found["head"] = "Conv_1"
    else:
        order = [f"tail.{n}" for n in range(blocks)]
        order += [f"levels.{level}.{n}" for level in range(len(coder.levels)) for n in range(blocks)]
        found |= {f"grow.{n}": f"Conv_{n + 1}" for n in range(len(coder.grow))}
        found["head"] = f"Conv_{len(coder.grow) + 1}"
    parts = {"norm1": "GroupNorm_0", "conv1": "Conv_0", "norm2": "GroupNorm_1", "conv2": "Conv_1", "shortcut": "Conv_2"}
    for number, block in enumerate(order):
        found |= {f"{block}.{ours}": f"ResBlock_{number}/{theirs}" for ours, theirs in parts.items()}
    return found


def _discriminator(module: Discriminator) -> dict[str, str]:
    found = {"stem": "Conv_0", "last": "Conv_1", "hidden": "Dense_0", "logit": "Dense_1"}
    for number in range(len(module.blocks)):
        parts = {"conv1": "Conv_0", "shortcut": "Conv_1", "conv2": "Conv_2"}
        found |= {f"blocks.{number}.{ours}": f"ResBlock_{number}/{theirs}" for ours, theirs in parts.items()}
    return found


def _bert(module: Bert) -> dict[str, str]:
    found = {
        "words": "BertEmbed_0/word_embeddings",
        "positions": "BertEmbed_0/position_embeddings",
        "embedding_norm": "BertEmbed_0/embeddings_ln",
        "head": "BertMlmLayer_0/mlm_dense",
        "head_norm": "BertMlmLayer_0/mlm_ln",
        "": "BertMlmLayer_0/mlm_bias",
    }
    parts = {name: f"BertAttention_0/self_attention/{name}" for name in ("query", "key", "value", "out")}
    parts |= {"attention_norm": "BertAttention_0/attention_output_ln", "fc1": "BertMlp_0/intermediate_output"}
    parts |= {"fc2": "BertMlp_0/layer_output", "mlp_norm": "BertMlp_0/layer_output_ln"}
    for number in range(len(module.layers)):
        found |= {f"layers.{number}.{ours}": f"BertLayer_{number}/{theirs}" for ours, theirs in parts.items()}
    return found


def _leaves(module: nn.Module, paths: Mapping[str, str]) -> dict[str, str]:
    names = {}
    for name, parameter in module.named_parameters():
        owner, _, leaf = name.rpartition(".")
        kind = type(module.get_submodule(owner))
        if leaf == "weight":
            leaf = "embedding" if kind is nn.Embedding else "kernel" if parameter.ndim > 1 else "scale"
        names[name] = f"{paths[owner]}/{leaf}"
    return names


def flax_shape(module: Tokenizer | Discriminator | Bert, name: str) -> tuple[int, ...]:
    """The shape that a parameter of ours has in Flax; where a kernel has depth 1, that of 3D.

    Args:
        module: whose parameter it is.
        name: of the parameter.
    """
    owner, _, leaf = name.rpartition(".")
    shape = tuple(module.get_parameter(name).shape)
    layer, _, part = owner.rpartition(".")
    if part in ("query", "key", "value", "out") and isinstance(found := module.get_submodule(layer), Layer):
        heads = (found.heads, shape[0] // found.heads)
        if leaf == "bias":
            return shape if part == "out" else heads
        return (*heads, shape[0]) if part == "out" else (shape[1], *heads)
    if leaf == "weight" and not isinstance(module.get_submodule(owner), nn.Embedding):
        return (*shape[2:], *shape[1::-1]) if len(shape) > 1 else shape
    return shape


def _check_kinds(arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            raise ValueError(
                f"the Flax checkpoint holds {array.dtype} at {name}, expected floating-point numbers: save its "
                "parameters alone, as float32."
            )


def _check_shapes(module: nn.Module, arrays: Mapping[str, np.ndarray], names: Mapping[str, str]) -> None:
    """Refuse other shapes before they are turned: heads of another number would give as large a matrix."""
    for ours, theirs in names.items():
        if theirs not in arrays:
            continue
        found, expected = arrays[theirs].shape, flax_shape(module, ours)
        flat = expected[1:] if len(expected) == 5 and expected[0] == 1 else expected  # a kernel of 2D
        if found not in (expected, flat):
            and_heads = "heads and " if "/self_attention/" in theirs else ""
            raise ValueError(
                f"the Flax checkpoint is of another architecture: {theirs} has shape {found}, expected {expected}. "
                f"Build the module with the {and_heads}sizes of the checkpoint."
            )


def _turned(array: np.ndarray, path: str) -> Tensor:
    """An array of Flax, of the right shape, in the order of torch: output channels first."""
    x = torch.from_numpy(array)
    if "/self_attention/" in path:  # (dim, heads, dim of a head), and for `out` (heads, dim of a head, dim)
        if path.endswith("bias"):
            return x.flatten()
        return (x.flatten(0, 1) if "/out/" in path else x.flatten(1)).T.contiguous()
    if not path.endswith("/kernel"):
        return x
    if x.ndim == 2:
        return x.T.contiguous()
    return (x if x.ndim == 5 else x[None]).permute(4, 3, 0, 1, 2).contiguous()
