"""The paper's first figure at any size: reconstruction and use of the vocabulary as it grows, by kind of quantiser.

For each kind and each vocabulary an image tokenizer of its own learns, all on the same batches, with the same network,
pixel loss and steps. They share no weight, and the optimiser treats each alone; side by side they cost one stage in
place of many. There is no discriminator: it would hide what quantisation costs.

Read `VocabularyLadder.training_step` first.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped, UInt8
from pydantic import Field
from torch import Tensor, nn

from lightning_modules.base import PaperModule
from lightning_modules.datamodules.labelled import ImageData
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.settings import Count, Natural, Positive
from lightning_modules.validation import judged, mean_over
from lightning_modules.video_tokens.building import build
from lightning_modules.video_tokens.causal_tokenizer import CausalTokenizer
from lightning_modules.video_tokens.training import SHOWN, TokensRecipe, annealed


class VocabularyLadder(PaperModule):
    """Image tokenizers of all kinds and vocabularies.

    Args:
        tokenizer: arguments of `CausalTokenizer` that all have, without `frames` and `dims`.
        kinds: for each kind of quantiser the arguments that only it has, such as `quantisation` and `quantiser`.
        vocabularies: K of each tokenizer of a kind.
        entropy_start: see `TokenizerTraining`.
        entropy_steps: likewise.
        pixel_scale: the stored value of white.

    Raises:
        ValueError: a kind has what all have, or a setting is unknown or not of its kind.
    """

    recipe_form = TokensRecipe

    def __init__(
        self,
        *,
        tokenizer: dict,
        kinds: Annotated[dict[str, dict], Field(min_length=1)],
        vocabularies: Annotated[list[Count], Field(min_length=1)],
        entropy_start: Positive = 3.0,
        entropy_steps: Natural = 2000,
        pixel_scale: Positive = 255.0,
    ):
        super().__init__()
        self.tokenizers = nn.ModuleDict()
        for kind, options in kinds.items():
            if twice := sorted(options.keys() & tokenizer.keys()):
                raise ValueError(
                    f"model.kinds.{kind} has {twice[0]!r}, which model.tokenizer gives to all kinds: leave out one."
                )
            for size in vocabularies:
                self.tokenizers[f"{kind}-{size}"] = build(
                    CausalTokenizer, tokenizer | options, f"model.kinds.{kind}", frames=1, dims=2, codebook_size=size
                )
        self.entropy_start, self.entropy_steps, self.pixel_scale = entropy_start, entropy_steps, pixel_scale

    def check_data(self, data: ImageData) -> None:
        """Refuse images of another shape.

        Raises:
            ValueError: see above.
        """
        size = next(iter(self.tokenizers.values())).size
        if tuple(data.image_shape) != (size, size, 3):
            raise ValueError(
                f"the data has images of shape {tuple(data.image_shape)} (height, width, channels), but tokenizer.size "
                f"is for {(size, size, 3)}; data.fit_to brings grey images to three channels."
            )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """The sum over tokenizers of the pixels' mean squared difference and the quantiser's terms."""
        losses = self.losses(batch)
        self.log_terms({f"pretrain/{name}/loss": loss for name, loss in losses.items()})
        return sum(losses.values())

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """That of each tokenizer."""
        video, found = self.read(batch["images"]), {}
        for name, tokenizer in self.tokenizers.items():
            drawn, quantised = tokenizer(video)
            terms = quantised.terms
            if "entropy" in terms:
                terms["entropy"] = terms["entropy"] * annealed(self.global_step, self.entropy_start, self.entropy_steps)
            found[name] = F.mse_loss(drawn, video) + sum(terms.values())
        return found

    def validate(self, data: ImageData, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """How well each draws images again."""

        def measure(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            video = self.read(batch["images"])
            return {f"{name}/mse": F.mse_loss(each(video)[0], video) for name, each in self.tokenizers.items()}

        return mean_over(batches, measure)

    def read(self, images: Shaped[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch 3 1 h w"]:
        """Stored pixels as clips of one frame with pixels from 0 to 1."""
        return images.unsqueeze(2) / self.pixel_scale

    @torch.no_grad()
    def forward(self, images: Shaped[Tensor, "batch 3 h w"]) -> Int[Tensor, "batch tokenizers h2 w2"]:
        """The tokens that each tokenizer gives stored images."""
        return torch.cat([each.encode(self.read(images)) for each in self.tokenizers.values()], 1)

    @torch.no_grad()
    def predictions(self, data: ImageData, device: torch.device) -> dict[str, Tensor]:
        """For each tokenizer `<kind>-<K>/tokens`, and of each image `/mse`; of the first `shown/<kind>-<K>`."""
        self.to(device).eval()
        parts = defaultdict(list)
        for split in judged(data.rows):
            for number, batch in enumerate(data.evaluation_batches(split)):
                video = self.read(batch["images"].to(device))
                if number == 0:
                    parts["shown/real"].append(pictures(video[:SHOWN]))
                for name, tokenizer in self.tokenizers.items():
                    tokens = tokenizer.encode(video)
                    drawn = tokenizer.decode(tokens).clamp(0, 1)
                    parts[f"{name}/tokens"].append(tokens)
                    parts[f"{name}/mse"].append((drawn - video).square().flatten(1).mean(1))
                    if number == 0:
                        parts[f"shown/{name}"].append(pictures(drawn[:SHOWN]))
        return {name: torch.cat(part).cpu() for name, part in parts.items()}

    def facts(self) -> dict:
        """Sizes of each tokenizer."""
        return {
            "parameters": {name: count_parameters(each) for name, each in self.tokenizers.items()},
            "vocabularies": {name: each.vocabulary for name, each in self.tokenizers.items()},
        }

    def compiled_parts(self) -> Iterable[nn.Module]:
        """The tokenizers' networks."""
        return [part for each in self.tokenizers.values() for part in (each.encoder, each.decoder)]


def pictures(video: Float[Tensor, "batch 3 1 h w"]) -> UInt8[Tensor, "batch h w 3"]:
    """Pixels from 0 to 1 as stored ones, channels last."""
    return (video[:, :, 0] * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
