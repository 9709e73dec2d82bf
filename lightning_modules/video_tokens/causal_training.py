"""Trains causal tokenizers; read `training.py` first, then `causal_tokenizer.py` and `lookup_free.py`.

The weight of the entropy term falls from three times its own to its own, linearly over the first 2,000 steps.
(SEED-Voken's `codebook_enlarge_ratio` is what is added to 1, and is 0 in its released settings.)
A video tokenizer that starts from an image tokenizer has its kernels in the last frame.

SEED-Voken differs from the paper: absolute differences of pixels, LPIPS, a hinge for the discriminator, which is a
PatchGAN there, and no penalty on its gradient.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_modules.validation import judged
from lightning_modules.video_tokens.causal_tokenizer import CausalTokenizer
from lightning_modules.video_tokens.clips import ClipData
from lightning_modules.video_tokens.training import TokenizerTraining

PROBED = 32  # clips whose later frames are changed


class CausalTraining(TokenizerTraining):
    """A causal tokenizer, its discriminator and the judge."""

    tokenizer_class = CausalTokenizer

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over a tokenizer; that of images is inflated. The discriminator and the judge begin anew.

        Raises:
            ValueError: the other tokenizer has another architecture.
        """
        own = {name.removeprefix("tokenizer."): x for name, x in weights.items() if name.startswith("tokenizer.")}
        self.tokenizer.start_from(own)

    @torch.no_grad()
    def predictions(self, data: ClipData, device: torch.device) -> dict[str, Tensor]:
        """As `TokenizerTraining`, and of the first clips `leak`, how far latents move when later frames change.

        The last half of the frames of each clip is replaced by that of the next clip. `leak` is the largest difference
        in the latents of the frames before, `moved` that in the others.
        """
        found = super().predictions(data, device)
        if self.tokenizer.grid[0] > 1:
            batch = next(iter(data.evaluation_batches(judged(data.rows)[0])))
            found |= self.probe(self.read(batch["video"][:PROBED].to(device)))
        return found

    def probe(self, video: Float[Tensor, "batch 3 frames h w"]) -> dict[str, Float[Tensor, " batch"]]:
        """`leak` and `moved` of clips, see `predictions`."""
        kept = (self.tokenizer.grid[0] + 1) // 2  # latent frames
        frames = 1 + (kept - 1) * ((video.shape[2] - 1) // (self.tokenizer.grid[0] - 1))
        other = torch.cat([video[:, :, :frames], video.roll(1, 0)[:, :, frames:]], 2)
        before, after = (self.tokenizer.latents(x) for x in (video, other))
        change = (before - after).abs().amax((1, 3, 4)).cpu()
        return {"leak": change[:, :kept].amax(1), "moved": change[:, kept:].amax(1)}
