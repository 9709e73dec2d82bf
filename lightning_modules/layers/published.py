"""Weights that were trained elsewhere: fetched from the Hugging Face hub, or read from a file, and loaded completely.

Every loader ends in `load_strictly` or `from_pretrained`. Both refuse a parameter that has no place and a parameter
that stays unset, unless the loader names it.
"""

import pickle
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lightning_modules import rehearsal

if TYPE_CHECKING:  # takes seconds, and who calls has it
    from transformers import PreTrainedModel

# mean and standard deviation of CLIP's images, per channel
CLIP_STATISTICS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def load_strictly(
    module: nn.Module, state: Mapping[str, Tensor], what: str, *, unused: Sequence[str] = (), new: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Load a state dict that has all parameters and buffers of a module, and no others.

    Args:
        module: what is loaded into. Nothing is changed if an error is raised.
        state: the state dict, under the module's names.
        what: the state dict in words, for messages.
        unused: names that may be in `state` and have no place in the module, as patterns of the shell (`pooler.*`).
        new: names that may be missing in `state`, likewise; the module keeps its own values.

    Returns:
        The entries of `state` that are named as unused.

    Raises:
        ValueError: another name is on one side only, or shapes differ; the message gives the first such names.
    """
    own = module.state_dict()
    rest = {key: x for key, x in state.items() if key not in own and _named(key, unused)}
    kept = {key: x for key, x in own.items() if key not in state and _named(key, new)}
    given = {**kept, **{key: x for key, x in state.items() if key not in rest}}
    found, expected = ({key: tuple(x.shape) for key, x in tensors.items()} for tensors in (given, own))
    different = [key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)]
    _complain(what, {key: (found.get(key, "absent"), expected.get(key, "absent")) for key in different})
    module.load_state_dict(given)
    return rest


def from_pretrained(
    model: "type[PreTrainedModel]",
    name: str,
    drawn: "Callable[[], PreTrainedModel]",
    *,
    unused: Sequence[str] = (),
    new: Sequence[str] = (),
) -> "PreTrainedModel":
    """A model of `transformers` with the weights that the hub, or a folder in its format, has under a name.

    Under `torch.device("meta")` it is its architecture only, without network.

    Args:
        model: its class.
        name: of the hub, or the path of a folder.
        drawn: builds the same architecture without the weights: for the meta device, and for a rehearsal on a machine
            that cannot have them.
        unused: see `load_strictly`; the names are those of `transformers`.
        new: likewise.

    Raises:
        ConnectionError: the hub cannot be reached and the weights are not in its cache.
        ValueError: as for `load_strictly` (`transformers` itself would leave out or draw such parameters), or the file
            of the weights is damaged.
    """
    if torch.get_default_device().type == "meta" or rehearsal.replaces(name, missing=False):
        return drawn()
    try:
        loaded, report = model.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except SafetensorError as error:
        raise ValueError(
            f"the weights of {name} are cut off or damaged ({error}): remove them there or from the cache of the hub "
            "(HF_HOME), and fetch them again."
        ) from error
    except OSError as error:
        if rehearsal.replaces(name, missing=True):
            return drawn()
        raise ConnectionError(
            f"the weights of {name} could not be fetched from huggingface.co, nor found in its cache. Connect this "
            f"machine, or run `hf download {name}` on one that is connected and copy its cache (HF_HOME) here."
        ) from error
    different = {key: ("present", "absent") for key in report["unexpected_keys"] if not _named(key, unused)}
    different |= {key: ("absent", "present") for key in report["missing_keys"] if not _named(key, new)}
    different |= {key: (tuple(found), tuple(expected)) for key, found, expected in report["mismatched_keys"]}
    _complain(name, different)
    return loaded


def _named(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _complain(what: str, different: Mapping[str, tuple[object, object]]) -> None:
    """Refuse names whose two sides, found and expected, are not equal."""
    if different:
        first = "; ".join(f"{key}: {different[key][0]}, expected {different[key][1]}" for key in sorted(different)[:5])
        raise ValueError(
            f"{what} is of another architecture: {len(different)} keys differ. First: {first}. "
            "Build the module with the sizes of the checkpoint."
        )


def read_checkpoint(path: Path, allowed: Sequence[type] = ()) -> object:
    """The content of a file that torch has saved: tensors, plain values, and objects of the classes `allowed`.

    Raises:
        ValueError: the file is not there, is no such file, is cut off, or holds anything else, none of which is run.
    """
    try:
        with path.open("rb") as file:
            start = file.read(60)
        if not start.startswith((b"PK\x03\x04", b"\x80")):  # a ZIP file, or a pickle as torch wrote before 1.6
            raise ValueError(
                f"{path} is no file that torch has saved: it begins with {start!r}. An HTML page or a pointer of Git "
                "LFS in its place means that the download went wrong: fetch it again."
            )
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: download it, or correct its path in conf/.") from None
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors and plain values: {str(error).splitlines()[0]}") from error
    except (OSError, EOFError, RuntimeError, struct.error) as error:
        size = path.stat().st_size
        raise ValueError(f"{path} ({size} bytes) is cut off or damaged: fetch it again. ({error})") from error
