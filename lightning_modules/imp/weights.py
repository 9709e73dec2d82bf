"""Weights of the official code, by the names that its flax modules have. Read `official_names` first.

No checkpoint is published. What is read is a file of arrays, `.npz` or `.safetensors`, whose names are the paths in the
tree of parameters, joined by slashes. Layers may be scanned, with an axis of layers in front, or not.
"""

import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from lightning_modules.imp.network import Network
from lightning_modules.layers.published import load_strictly

FEATURE = {"vision": "token_raw", "spectrogram": "token_raw", "waveform": "token_raw", "text": "token_id"}
SHORT = {"vision": "rgb", "spectrogram": "spc", "waveform": "wav", "text": "txt"}
AXES = {  # of the tables of positions; the spelling is the official one
    "vision": ("temporal", "vertical", "horizontal"),
    "spectrogram": ("temporal", "spectoral"),
    "waveform": ("temporal",),
    "text": ("temporal",),
}
UNUSED = (  # other features of modalities, which IMP's objectives do not train; pairs and data sets not built here
    "*_token_embed_*",
    "vision_token_id_*",
    "spectrogram_token_id_*",
    "waveform_token_id_*",
    "text_token_raw_*",
    "*_disjoint_projection/*",
    "*_label_classifier/*",
    "*_target_classifier/*",
    "temperature/*",
)
Array = np.ndarray
Turn = Callable[[Array], Array]


def same(x: Array) -> Array:
    """As it is."""
    return x


def turned(x: Array) -> Array:
    """Inputs and outputs change places."""
    return x.T


def from_heads(x: Array) -> Array:
    """A projection to heads, (inputs, heads, dim of a head), as a matrix."""
    return x.reshape(len(x), -1).T


def to_stream(x: Array) -> Array:
    """A projection from heads, (heads, dim of a head, outputs), as a matrix."""
    return x.reshape(-1, x.shape[-1]).T


def official_names(network: Network) -> dict[str, tuple[str, Turn]]:
    """For each of our parameters the official one, of layers `layer_<number>`, and what makes ours of it."""
    found = {}
    for name in network.embed:
        start, ours = f"{name}_{FEATURE[name]}", f"embed.{name}"
        embed = f"{start}_to_embed"
        kernel = ("embedding", same) if name == "text" else ("kernel", turned)
        found[f"{ours}.to_embedding.weight"] = (f"{embed}/{SHORT[name]}_to_embedding/{kernel[0]}", kernel[1])
        if name != "text":
            found[f"{ours}.to_embedding.bias"] = (f"{embed}/{SHORT[name]}_to_embedding/bias", same)
        positions = f"{embed}/{SHORT[name]}_pos_encoding"
        for number, axis in enumerate(AXES[name]):
            table = f"{positions}/{axis}_postition_embeddings/embedding"
            found[f"{ours}.pos_encoding.tables.{number}.weight"] = (table, same)
        found |= _norm(f"{ours}.pos_encoding.layer_norm", f"{positions}/layer_norm")
        found |= _linear(f"pre_projection.{name}", f"{start}_pre_encoder_projection")
        found |= _linear(f"post_projection.{name}", f"{start}_post_encoder_projection")
    found |= _encoder(network)
    found |= _heads(network)
    return found


def _encoder(network: Network) -> dict[str, tuple[str, Turn]]:
    found, experts = {}, network.encoder.experts()
    for number, layer in enumerate(network.encoder.layers):
        ours, theirs = f"encoder.layers.{number}", f"transformer_encoder/layer_{number}"
        for norm in ("layer_norm_sa", "layer_norm_ffn"):
            found |= _norm(f"{ours}.{norm}", f"{theirs}/{norm}", bias=False)
        attention = f"{theirs}/self_attention"
        for part, turn in (("q", from_heads), ("k", from_heads), ("v", from_heads), ("o", to_stream)):
            found[f"{ours}.self_attention.{part}.weight"] = (f"{attention}/{part}/kernel", turn)
        if isinstance(layer.self_attention.layer_norm_q, torch.nn.LayerNorm):
            for norm in ("layer_norm_q", "layer_norm_k"):
                found |= _norm(f"{ours}.self_attention.{norm}", f"{attention}/{norm}", bias=False)
        feed, theirs = f"{ours}.feed_forward", f"{theirs}/feed_forward"
        if layer.feed_forward in experts:
            found |= {f"{feed}.{part}": (f"{theirs}/experts/{part}/kernel", same) for part in ("wi", "wo")}
            soft = hasattr(layer.feed_forward, "scale")
            found[f"{feed}.router"] = (f"{theirs}/router/{'mu' if soft else 'w/kernel'}", same)
            found |= {f"{feed}.scale": (f"{theirs}/router/scale", same)} if soft else {}
        else:
            found |= {f"{feed}.{part}.weight": (f"{theirs}/{part}/kernel", turned) for part in ("wi", "wo")}
    return found | _norm("encoder.final_layer_norm", "transformer_encoder/final_layer_norm")


def _heads(network: Network) -> dict[str, tuple[str, Turn]]:
    found = {}
    for pair in network.common:
        source, _, target = pair.partition("_to_")
        theirs = f"{source}_{FEATURE[source]}_disjoint_projection/to_{target}"
        for part in ("wi", "wo"):
            found |= _linear(f"common.{pair}.{part}", f"{theirs}/{part}")
        found |= _norm(f"common.{pair}.layer_norm", f"{theirs}/layer_norm")
    found |= {f"temperatures.{pair}": (f"temperature/temperature_{pair}", same) for pair in network.temperatures}
    for name, modality in network.classified.items():
        theirs = f"{modality}_{FEATURE[modality]}_label_classifier/classifier_{name}"
        found |= _linear(f"classifiers.{name}", theirs)
    if network.word_classifier is not None:
        found |= _linear("word_classifier", "text_token_id_target_classifier/classifier")
    return found


def _linear(ours: str, theirs: str) -> dict[str, tuple[str, Turn]]:
    return {f"{ours}.weight": (f"{theirs}/kernel", turned), f"{ours}.bias": (f"{theirs}/bias", same)}


def _norm(ours: str, theirs: str, *, bias: bool = True) -> dict[str, tuple[str, Turn]]:
    found = {f"{ours}.weight": (f"{theirs}/scale", same)}
    return found | ({f"{ours}.bias": (f"{theirs}/bias", same)} if bias else {})


def load_official(network: Network, arrays: Mapping[str, Array], what: str) -> None:
    """Take over the arrays of an official checkpoint, all of them but what `UNUSED` names.

    Args:
        network: of the sizes of the checkpoint.
        arrays: by their official names, with or without `params/` in front.
        what: the checkpoint in words, for messages.

    Raises:
        ValueError: an array is missing, has another shape or other heads, or has no place here.
    """
    arrays = unrolled({name.removeprefix("params/"): x for name, x in arrays.items()}, len(network.encoder.layers))
    names = official_names(network)
    wanted = {theirs for theirs, _ in names.values()}
    unknown = [name for name in arrays if name not in wanted and not any(fnmatchcase(name, each) for each in UNUSED)]
    missing = sorted(wanted - set(arrays))
    if unknown or missing:
        first = (*(f"{name}: absent" for name in missing), *(f"{name}: has no place here" for name in sorted(unknown)))
        raise ValueError(
            f"{what} is of another architecture: {len(missing)} arrays are missing and {len(unknown)} have no place. "
            f"First: {'; '.join(first[:3])}. Build the model with the sizes of the checkpoint."
        )
    _check_heads(network.encoder.layers[0].self_attention.heads, names.values(), arrays, what)
    state = {ours: _tensor(turn, arrays[theirs], theirs, what) for ours, (theirs, turn) in names.items()}
    load_strictly(network, state, what)


def _check_heads(heads: int, names: Iterable[tuple[str, Turn]], arrays: Mapping[str, Array], what: str) -> None:
    """Refuse projections of other heads, which are matrices of the same size once their axes are joined."""
    for name, turn in names:
        if turn in (from_heads, to_stream):
            shape, axis = arrays[name].shape, 1 if turn is from_heads else 0
            if len(shape) != 3 or shape[axis] != heads:
                raise ValueError(
                    f"{what} has {name} of shape {shape}, expected three axes with {heads} heads as number {axis + 1}: "
                    "set model.encoder.heads to those of the checkpoint."
                )


def _tensor(turn: Turn, array: Array, name: str, what: str) -> Tensor:
    if array.dtype.kind != "f":
        raise ValueError(f"{what} has {name} as {array.dtype}, expected floating-point numbers.")
    return torch.from_numpy(np.array(turn(array), np.float32, order="C"))


SCANS = {"layer_scan": "all", "layer_scan_dense": "first", "layer_scan_moe": "last"}


def unrolled(arrays: Mapping[str, Array], layers: int) -> dict[str, Array]:
    """Arrays of layers that were scanned, by the names that they have otherwise.

    Args:
        arrays: those of `layer_scan` have a first axis of all layers; of `layer_scan_dense` of the first ones, of
            `layer_scan_moe` of the last ones.
        layers: of the encoder.

    Raises:
        ValueError: one has no axis of layers.
    """
    return dict(_unrolled(arrays, layers))


def _unrolled(arrays: Mapping[str, Array], layers: int) -> Iterator[tuple[str, Array]]:
    for name, x in arrays.items():
        scan = re.fullmatch(r"transformer_encoder/(layer_scan(?:_dense|_moe)?)/(.+)", name)
        if scan is None:
            yield name, x
            continue
        if not x.ndim:
            raise ValueError(f"{name} is a single number, expected an array with an axis of layers in front.")
        start = layers - len(x) if SCANS[scan[1]] == "last" else 0
        for number, part in enumerate(x):
            yield f"transformer_encoder/layer_{start + number}/{scan[2]}", part


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of a file.

    Raises:
        ValueError: there is no such file, it is of another kind, or it is damaged.
    """
    if path.suffix not in (".npz", ".safetensors") or not path.is_file():
        raise ValueError(
            f"{path} is {'no .npz or .safetensors file' if path.is_file() else 'not there'}: save the tree of "
            "parameters as one, with names joined by slashes."
        )
    try:
        if path.suffix == ".npz":
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        from safetensors.torch import load_file  # numpy has neither bfloat16 nor eight bits

        read = load_file(path)
        return {name: (x.float() if x.is_floating_point() else x).numpy() for name, x in read.items()}
    except (OSError, ValueError, BadZipFile, zlib.error, EOFError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged, or holds more than arrays: {str(error).splitlines()[0]}") from error
