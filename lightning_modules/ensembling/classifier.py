"""Answers of a classifier about picture files, and about arrays of pictures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lightning_modules.datasets.pictures import stored
from lightning_modules.ensembling.members import Members
from lightning_modules.predictors import Predictor, centre_share


class Classifier(Predictor):
    """The ensemble of all members of a pool.

    Args:
        module: the pool.
        record: `data` of what it was trained on, see `predictors.load`.
    """

    def __init__(self, module: Members, record: dict):
        self.module, self.share = module, centre_share(record["data"])

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """For each picture of a file, the most probable class.

        Raises:
            ValueError: see `pictures.stored`.
        """
        images = stored(Path(path), self.module.image_shape, self.module.pixel_scale, self.share)
        with torch.inference_mode():
            shares = self.module(torch.from_numpy(images))
        for row, (share, best) in enumerate(zip(*(x.tolist() for x in shares.max(dim=1)), strict=True)):
            yield {"row": row, "class": best, "probability": round(share, 6)}
