"""MAGVIT's 3D-VQ, and the 2D-VQ of single frames that it is inflated from."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from einops import rearrange
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from lightning_modules.settings import Count
from lightning_modules.video_tokens.building import build
from lightning_modules.video_tokens.convolution import Padding, lecun_normal_
from lightning_modules.video_tokens.network import Decoder, Encoder
from lightning_modules.video_tokens.quantiser import Quantised, VectorQuantiser
from lightning_modules.video_tokens.tokenizer import VideoTokenizer


class Tokenizer(VideoTokenizer):
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
        padding: beyond the border, see `convolution.conv`; zeros in the official settings,
            reflected pixels in the paper.
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
        multipliers: Annotated[Sequence[Count], Field(min_length=1)] = (1, 2, 2, 4),
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
        self.quantiser = build(
            VectorQuantiser, quantiser or {}, "tokenizer.quantiser", codes=codebook_size, dim=embedding_dim
        )

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
