"""Published tokenizers of SEED-Voken (Open-MAGVIT2), measured as those are that are trained here."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lightning_modules import rehearsal
from lightning_modules.magvit2.pictures import reconstruction_scores
from lightning_modules.magvit2.weights import load_seed_voken, read_seed_voken
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.settings import Positive
from lightning_modules.video_tokens.causal_training import CausalTraining
from lightning_modules.video_tokens.clips import ClipData

NO_DISCRIMINATOR = {"width": 1, "multipliers": [1], "blur": True}  # SEED-Voken's has another architecture


class ReleasedTokenizer(CausalTraining):
    """A tokenizer with the weights of a checkpoint of SEED-Voken; `epochs` is 0.

    Args:
        tokenizer: arguments of `CausalTokenizer`, those of the checkpoint (see `weights.SETTINGS`).
        checkpoint: its file, as SEED-Voken gives it on the hub.
        averages: whether to take the moving averages, as the official evaluation does, or else the last weights.
        published: files of the networks of published measures, see `metrics.video_networks.PublishedNetworks`.
        pixel_scale: the stored value of white.

    Raises:
        ValueError: an argument of the tokenizer is unknown or of another kind; the file is not there, is no such
            checkpoint, or is one of another architecture.
    """

    def __init__(
        self,
        *,
        tokenizer: dict,
        checkpoint: str,
        averages: bool = True,
        published: dict | None = None,
        pixel_scale: Positive = 255.0,
    ):
        super().__init__(
            tokenizer=tokenizer, discriminator=NO_DISCRIMINATOR, published=published, pixel_scale=pixel_scale
        )
        del self.discriminator
        drawn = torch.get_default_device().type == "meta"  # it is only asked how large it is
        if not drawn and not rehearsal.replaces(checkpoint, missing=not Path(checkpoint).is_file()):
            load_seed_voken(self.tokenizer, read_seed_voken(checkpoint), averages=averages)

    @classmethod
    def check_recipe(cls, recipe: Mapping[str, object], where: str) -> dict:
        """Refuse to train.

        Raises:
            ValueError: `epochs` is not 0.
        """
        if recipe.get("epochs") != 0:
            raise ValueError(
                f"{where}.epochs is {recipe.get('epochs')!r}, expected 0: the weights are published ones. To train a "
                "tokenizer, use the system magvit2_tokenizer or magvit2_image."
            )
        return super().check_recipe(recipe, where)

    def facts(self) -> dict:
        """Sizes of the tokenizer."""
        return {
            "parameters": count_parameters(self.tokenizer),
            "vocabulary": self.tokenizer.vocabulary,
            "grid": list(self.tokenizer.grid),
            "pixels": self.tokenizer.frames * self.tokenizer.size**2,
        }


class ReleasedPictures(ReleasedTokenizer):
    """One of pictures."""

    @torch.no_grad()
    def predictions(self, data: ClipData, device: torch.device) -> dict[str, Tensor]:
        """As `CausalTraining`, and where torch-fidelity is installed `fid` and `inception_score` (1,)."""
        found = super().predictions(data, device)
        return found | reconstruction_scores(self, data, found["tokens"])
