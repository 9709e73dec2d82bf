"""A trained MM-GEM tells the classes of pictures by what is said about them: zero-shot, nothing is trained.

A class is the vector of its texts (`classes.class_vectors`), and the most similar one of a picture is the answer.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from pytorch_lightning import LightningDataModule
from torch import Tensor

from lightning_modules.mm_gem.classes import class_vectors
from lightning_modules.mm_gem.module import AT_ONCE, MmGem
from lightning_modules.mm_gem.naming import NamedPictures
from lightning_modules.validation import judged


class Classifying(MmGem):
    """An MM-GEM that classifies pictures; its arguments are those of the arm in `from`."""

    def check_data(self, data: LightningDataModule) -> None:
        """Refuse data without named classes, and a model that has not learnt to embed.

        Raises:
            ValueError: see above.
        """
        if not isinstance(data, NamedPictures):
            raise ValueError(
                f"data are {type(data).__name__}, expected mm_gem.naming.NamedPictures: classes need names."
            )
        if not self.losses["embedding"]:
            raise ValueError(
                "model.losses.embedding is 0, so that nothing was embedded: name an arm in `from` that was trained to."
            )
        if not self.given:
            raise ValueError("the model has no weights: name the arm that has them with `from` in the plan.")

    @torch.no_grad()
    def predictions(self, data: NamedPictures, device: torch.device) -> dict[str, Tensor]:
        """`similarities` of the pictures of the split that is judged to all classes, and their `labels`."""
        self.to(device).eval()
        classes = class_vectors(self._embedded, data.texts())
        (split,) = judged(data.splits)
        found = [
            (self.embed_pictures(batch["images"]) @ classes.T, batch["labels"])
            for batch in data.evaluation_batches(split)
        ]
        return {
            "similarities": torch.cat([own.cpu() for own, _ in found]),
            "labels": torch.cat([own for _, own in found]),
        }

    def _embedded(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        parts = [texts[start : start + AT_ONCE] for start in range(0, len(texts), AT_ONCE)]
        return torch.cat([self.embed_texts(part) for part in parts])
