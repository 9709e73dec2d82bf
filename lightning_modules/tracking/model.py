"""Trained networks as MLflow models that point to the pipeline's files instead of copying them.

    mlflow.pyfunc.load_model("models:/m-...").predict(images)

A logged model has two small files: `MLmodel`, which names this module, and `reference.json`, which says what loads the
weights, where they lie and which digests they must have. So the weights are on the disk once. The price: the model can
be loaded where the project's folder is, and not from a server alone.
"""

import importlib
import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_modules.files import ROOT, scratch, sha256

if TYPE_CHECKING:
    import numpy as np

REFERENCE = "reference.json"


def write(folder: Path, reference: Mapping[str, Any], root: Path, model_id: str, run_id: str) -> None:
    """Write the two files of a logged model.

    Args:
        folder: where to.
        reference: what `RunRecord.model` has recorded.
        root: folder of the project; MLflow puts it on Python's path, so that the model loads from anywhere.
        model_id: of the logged model.
        run_id: of the run that trained it.
    """
    from mlflow.models import Model

    (folder / REFERENCE).write_text(json.dumps(reference, indent=1))
    python = platform.python_version()
    flavor = {"loader_module": __name__, "data": REFERENCE, "code": str(root), "python_version": python}
    Model(run_id=run_id, model_id=model_id, flavors={"python_function": flavor}).save(str(folder / "MLmodel"))


def _load_pyfunc(path: str) -> Any:
    """Called by `mlflow.pyfunc.load_model` with the path of the reference.

    Raises:
        ValueError: none of the places has the files that were recorded.
    """
    reference = json.loads(Path(path).read_text())
    return located(reference["loader"])(found(reference), **reference["given"])


def located(name: str) -> Callable[..., Any]:
    """The function, class or method with a dotted name."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        try:
            place: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            place = getattr(place, part)
        return place
    raise ValueError(f"there is no {name} in the code of {ROOT}; the model belongs to another commit, see its run")


def found(reference: Mapping[str, Any]) -> Path:
    """The first of the folders that has the files, with the digests that they had when the run ended.

    Raises:
        ValueError: no folder has.
    """
    for folder in (base / place for place in reference["folders"] for base in (ROOT, scratch().parent)):
        files = {folder / name: digest for name, digest in reference["sha256"].items()}
        if all(file.is_file() and sha256(file) == digest for file, digest in files.items()):
            return folder
    names = " and ".join(reference["sha256"])
    raise ValueError(
        f"{names} of this model are no longer in {' or '.join(reference['folders'])} of {ROOT}, or were replaced by "
        "those of a later training. With the commit of the model's run checked out, `dvc checkout` or `make repro` "
        "brings them back"
    )


class Trained:
    """The network of one trained seed.

    Args:
        folder: its `weights.safetensors`.
        model: the block `model` of its configuration.
    """

    def __init__(self, folder: Path, model: Mapping[str, Any]):
        from safetensors.torch import load_file

        from lightning_modules import settings

        self.module = settings.bind(model, f"the model of {folder}")()
        self.module.load_export(load_file(folder / "weights.safetensors"))
        self.module.eval()

    def predict(self, model_input: "np.ndarray", params: dict | None = None) -> "np.ndarray":
        """What the network's `forward` says.

        Args:
            model_input: stored pixels, channels last: images (rows, height, width, channels) or videos (rows, frames,
                height, width, channels), in the type of the data set.
            params: part of MLflow's interface; not used.

        Returns:
            One row for each input: class probabilities, logits, features or token ids, see the module's `forward`.
        """
        import torch

        with torch.inference_mode():
            return self.module(channels_first(model_input)).numpy()


def channels_first(pixels: "np.ndarray") -> Any:
    """Pixels with the channels last, (rows, ..., channels), as a tensor (rows, channels, ...)."""
    import numpy as np
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(pixels), -1, 1)))
