"""A video as a grid of tokens, and back: MAGVIT's 3D-VQ, and the 2D-VQ of single frames that it is inflated from.

What generators and language models build on is `encode`, `decode`, `vocabulary` and `grid`.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_modules.magvit.network import Decoder, Encoder, Padding, lecun_normal_
from lightning_modules.magvit.quantiser import Quantised, VectorQuantiser
from lightning_modules.settings import Count

Inflation = Literal["central", "average"]


class Tokenizer(nn.Module):
    """Encoder, vector quantiser and decoder.

    Args:
        frames: of a clip.
        size: height and width of a frame.
        dims: 3 for kernels over space and time, 2 for a network of single frames, which keeps their number.
        width: channels of the first level: 64 (B) or 128 (L).
        multipliers: channels of each level in units of `width`; (1, 2, 2, 4) at 128 pixels, (1, 2, 4) at 64.
        blocks: residual blocks of a level; 2, or 4 in the undocumented H.
        halve_time: for each level but the last, whether it also halves the number of frames; a 2D network never does.
        embedding_dim: of a latent and a code.
        codebook_size: K.
        norm_groups: of every group norm.
        padding: beyond the border, see `network.conv`.
        quantiser: further arguments of `VectorQuantiser`.

    Raises:
        ValueError: frames or size cannot be halved so often, or `halve_time` has another length.
    """

    def __init__(
        self,
        *,
        frames: Count,
        size: Count,
        dims: Literal[2, 3] = 3,
        width: Count = 64,
        multipliers: Sequence[Count] = (1, 2, 2, 4),
        blocks: Count = 2,
        halve_time: Sequence[bool] = (True, True, False),
        embedding_dim: Count = 256,
        codebook_size: Count = 1024,
        norm_groups: Count = 32,
        padding: Padding = "zeros",
        quantiser: Mapping[str, object] | None = None,
    ):
        super().__init__()
        if len(halve_time) != len(multipliers) - 1:
            raise ValueError(
                f"halve_time has {len(halve_time)} entries, expected {len(multipliers) - 1}: one for each level of "
                f"multipliers ({list(multipliers)}) but the last."
            )
        halve_time = [half and dims == 3 for half in halve_time]
        time, space = 2 ** sum(halve_time), 2 ** len(halve_time)
        if frames % time or size % space:
            raise ValueError(
                f"clips of {frames} frames of {size} pixels cannot become tokens: expected multiples of {time} frames "
                f"and {space} pixels."
            )
        self.frames, self.size, self.dims = frames, size, dims
        self.grid = (frames // time, size // space, size // space)
        options = {
            "depth": 1 if dims == 2 else 3, "width": width, "multipliers": multipliers, "blocks": blocks,
            "halve_time": halve_time, "embedding_dim": embedding_dim, "groups": norm_groups, "padding": padding,
        }  # fmt: skip
        self.encoder, self.decoder = Encoder(**options), Decoder(**options)
        lecun_normal_(self)
        self.quantiser = VectorQuantiser(codebook_size, embedding_dim, **(quantiser or {}))

    @property
    def vocabulary(self) -> int:
        """Number of codes: tokens are 0 to one less."""
        return len(self.quantiser.codebook)

    def encode(self, video: Float[Tensor, "batch 3 frames height width"]) -> Int[Tensor, "batch t h w"]:
        """The tokens of clips with pixels from 0 to 1; `grid` is (t, h, w) for clips as they were trained on.

        Raises:
            ValueError: the clips cannot be divided into tokens.
        """
        time, space = self.frames // self.grid[0], self.size // self.grid[1]
        if video.shape[2] % time or video.shape[3] % space or video.shape[4] % space:
            raise ValueError(
                f"clips of shape {tuple(video.shape)} cannot become tokens: expected (batch, 3, frames, height, width) "
                f"with multiples of {time} frames and {space} pixels."
            )
        return self.quantise(video).tokens

    def decode(self, tokens: Int[Tensor, "batch t h w"]) -> Float[Tensor, "batch 3 frames height width"]:
        """The clips of tokens. Pixels are not held within 0 and 1.

        Raises:
            ValueError: a token is none of the vocabulary.
        """
        if tokens.numel() and not (0 <= int(tokens.min()) and int(tokens.max()) < self.vocabulary):
            raise ValueError(
                f"tokens from {int(tokens.min())} to {int(tokens.max())}, expected 0 to {self.vocabulary - 1}."
            )
        return self.draw(self.quantiser.embed(tokens))

    def quantise(self, video: Float[Tensor, "batch 3 frames height width"]) -> Quantised:
        """Codes and tokens of clips."""
        if self.dims == 3:
            return self.quantiser(self.encoder(video))
        latents = self.encoder(rearrange(video, "b c t h w -> (b t) c 1 h w"))
        return self.quantiser(rearrange(latents, "(b t) d 1 h w -> b d t h w", b=len(video)))

    def draw(self, latents: Float[Tensor, "batch dim t h w"]) -> Float[Tensor, "batch 3 frames height width"]:
        """Clips of codes."""
        if self.dims == 3:
            return self.decoder(latents)
        video = self.decoder(rearrange(latents, "b d t h w -> (b t) d 1 h w"))
        return rearrange(video, "(b t) c 1 h w -> b c t h w", b=len(latents))

    def forward(
        self, video: Float[Tensor, "batch 3 frames height width"]
    ) -> tuple[Float[Tensor, "batch 3 frames height width"], Quantised]:
        """Clips as they are drawn again, and what they became meanwhile."""
        found = self.quantise(video)
        return self.draw(found.latents), found


def inflated(
    flat: Mapping[str, Tensor], deep: Mapping[str, Tensor], how: Inflation
) -> tuple[dict[str, Tensor], list[str]]:
    """A 3D network's weights from those of a 2D network (vqgan_train_lib.py, `inflate_2d_to_3d`).

    Args:
        flat: weights of the 2D network, kernels one frame deep.
        deep: the 3D network's own, under the same names.
        how: `central` puts a 2D kernel into the middle frame of a 3D kernel and zeros around it; `average` puts it,
            divided by the depth, into each frame.

    Returns:
        The weights, and the names of those that fit neither way and are left as they are in `deep`.
    """
    found, kept = {}, []
    for name, own in deep.items():
        given = flat.get(name)
        if given is not None and given.shape == own.shape:
            found[name] = given
        elif given is not None and own.ndim == 5 and given.shape == own[:, :, :1].shape:
            depth = own.shape[2]
            if how == "average":
                found[name] = given.expand_as(own) / depth
            else:
                found[name] = torch.zeros_like(own)
                found[name][:, :, depth // 2] = given[:, :, 0]
        else:
            found[name] = own
            kept.append(name)
    return found, kept
