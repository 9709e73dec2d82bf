"""Published weights: fetched from the Hugging Face hub, or read from a file without running any code of it."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # takes seconds, and who calls has it
    from transformers import PreTrainedModel


def from_pretrained(model: "type[PreTrainedModel]", name: str) -> "PreTrainedModel":
    """A model of `transformers` with the weights that the hub, or a folder in its format, has under a name.

    Raises:
        ConnectionError: the hub cannot be reached and the weights are not in its cache.
    """
    try:
        return model.from_pretrained(name, use_safetensors=True)
    except OSError as error:
        raise ConnectionError(
            f"the weights of {name} could not be fetched from huggingface.co, nor found in its cache. Connect this "
            f"machine, or run `hf download {name}` on one that is connected and copy its cache (HF_HOME) here."
        ) from error


def read_checkpoint(path: Path, allowed: Sequence[type] = ()) -> object:
    """The content of a file that torch has saved: tensors, plain values, and objects of the classes `allowed`.

    Raises:
        ValueError: the file holds anything else, none of which is run.
    """
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors and plain values: {str(error).splitlines()[0]}") from error
