"""Weights that a training passes through, kept for later evaluation.

They lie beside the checkpoint while it trains, so that an interruption loses none, and go into the seed's output as
`milestones/step-<n>/weights.safetensors` (`runs.Run.milestones`).
"""

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from pytorch_lightning import Trainer
from safetensors.torch import save

from lightning_modules.base import PaperModule
from lightning_modules.files import replace_file, sha256
from lightning_modules.validation import Averaged, Periodic


class Milestones(Periodic):
    """Writes what `PaperModule.export` gives as `step-<n>.safetensors` into `folder`, each whole or not at all."""

    def __init__(self, every: Mapping[str, int] | None, folder: Path, averaged: Averaged = nullcontext) -> None:
        super().__init__(every, averaged)
        self.folder = folder

    def act(self, trainer: Trainer, pl_module: PaperModule) -> None:
        """Write the weights; one that an interrupted training has written already becomes what it was."""
        if trainer.is_global_zero:
            with (
                self.averaged(pl_module),
                replace_file(self.folder / f"step-{trainer.global_step}.safetensors") as path,
            ):
                path.write_bytes(save(pl_module.export()))


def copy_milestones(folder: Path, out: Path) -> dict[str, str]:
    """Copy what `Milestones` wrote into the output of a seed, and give the digests by step."""
    digests = {}
    for path in sorted(folder.glob("step-*.safetensors"), key=lambda path: int(path.stem.removeprefix("step-"))):
        target = out / "milestones" / path.stem / "weights.safetensors"
        target.parent.mkdir(parents=True)
        shutil.copyfile(path, target)
        digests[path.stem.removeprefix("step-")] = sha256(target)
    return digests
