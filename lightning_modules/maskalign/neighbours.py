"""Features of picture files, and the pictures of a data set or of a folder that are nearest to them."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lightning_modules.base import PaperModule
from lightning_modules.datasets import storage
from lightning_modules.datasets.pictures import stored
from lightning_modules.files import ROOT
from lightning_modules.predictors import Predictor, centre_share

BATCH = 256
SPLIT = "test"  # of the data set: pictures that the model has not seen


class Neighbours(Predictor):
    """An encoder that was pre-trained without labels, and pictures to compare with.

    Args:
        module: its `forward` gives features of stored pixels.
        record: `data` and `dataset` of what it was trained on, see `predictors.load`.
    """

    def __init__(self, module: PaperModule, record: dict):
        self.module, self.record, self.among = module, record, None
        encoder = module.student if hasattr(module, "student") else module.encoder
        self.shape = (encoder.channels, encoder.image_size, encoder.image_size)

    def begin(self, inputs: Sequence[Path], among: Path | None = None) -> list[Path]:
        """Compare with the pictures of the folder `among`; by default with the test pictures of the data set.

        Raises:
            ValueError: `among` is no folder.
        """
        if among is not None and not among.is_dir():
            raise ValueError(f"--among is {among}, expected a folder of pictures")
        self.among = among
        return list(inputs)

    def features(self, path: str | Path) -> Float[np.ndarray, "rows dim"]:
        """Features of a picture, or of an array of pictures.

        Raises:
            ValueError: see `pictures.stored`.
        """
        share = centre_share(self.record["data"])
        return self._encode(stored(Path(path), self.shape, self.module.preprocess.pixel_scale, share)).numpy()

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """The features of a file, then for each of its pictures the `top` nearest ones by cosine similarity.

        Raises:
            ValueError: see `pictures.stored`.
        """
        features = self.features(path)
        yield {"features": features}
        names, others = self._candidates
        similarity = F.normalize(torch.from_numpy(features), dim=-1) @ others.T
        best = similarity.topk(min(top, len(names)))
        for row, (values, places) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            for rank, (value, place) in enumerate(zip(values, places, strict=True), start=1):
                yield {"row": row, "rank": rank, "similarity": round(value, 6), "neighbour": names[place]}

    @cached_property
    def _candidates(self) -> tuple[list[str], Float[Tensor, "pictures dim"]]:
        """Names and unit features of what is compared with."""
        if self.among is not None:
            return self._of_folder(self.among)
        folder = ROOT / self.record["dataset"]
        if storage.card(folder)["codec"] != "raw":
            raise ValueError(f"{self.record['dataset']} is too large to be compared with: name a folder with --among")
        images = storage.read(folder, SPLIT)["image"]
        features = self._encode(images.transpose(0, 3, 1, 2))
        names = [f"{self.record['dataset']}: {SPLIT} {number}" for number in range(len(images))]
        return names, F.normalize(features, dim=-1)

    def _of_folder(self, folder: Path) -> tuple[list[str], Float[Tensor, "pictures dim"]]:
        names, parts, refused = [], [], []
        for path in sorted(folder.iterdir()):
            try:
                if path.is_dir():
                    raise ValueError(f"{path} lies in a folder and is one itself: put its pictures into {folder}")
                parts.append(torch.from_numpy(self.features(path)))
            except ValueError as error:
                refused.append(str(error))
                continue
            rows = len(parts[-1])
            names += [str(path)] if rows == 1 else [f"{path}: {row}" for row in range(rows)]
        self.refused = refused
        if not parts:
            raise ValueError(f"{folder} holds no picture to compare with")
        return names, F.normalize(torch.cat(parts), dim=-1)

    @torch.inference_mode()
    def _encode(self, images: np.ndarray) -> Float[Tensor, "rows dim"]:
        batches = (torch.from_numpy(images[start : start + BATCH]) for start in range(0, len(images), BATCH))
        return torch.cat([self.module(batch) for batch in batches]).float()
