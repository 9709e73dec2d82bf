"""A video as a grid of tokens, and back: what generators and language models build on."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_modules.video_tokens.quantiser import Quantised

Inflation = Literal["central", "average", "last"]


class VideoTokenizer(nn.Module):
    """Base of encoder, quantiser and decoder. A generator needs `encode`, `decode`, `vocabulary` and `grid`.

    Attributes:
        frames: of a clip that it is trained on.
        size: height and width of a frame.
        dims: 3 where tokens stand for space and time, 2 where each frame has tokens of its own.
        grid: (t, h, w), the number of tokens of such a clip along time, height and width.
        encoder: pixels to latents.
        quantiser: latents to codes, with `embed` and `vocabulary`.
        decoder: codes to pixels.
    """

    frames: int
    size: int
    dims: int
    grid: tuple[int, int, int]
    encoder: nn.Module
    quantiser: nn.Module
    decoder: nn.Module

    @property
    def vocabulary(self) -> int:
        """Number of codes: tokens are 0 to one less."""
        return self.quantiser.vocabulary

    def check_shape(self, shape: Sequence[int]) -> None:
        """Refuse clips that cannot be divided into tokens.

        Args:
            shape: of clips, (batch, 3, frames, height, width).

        Raises:
            ValueError: see above.
        """
        time, space = self.frames // self.grid[0], self.size // self.grid[1]
        if shape[2] % time or shape[3] % space or shape[4] % space:
            raise ValueError(
                f"clips of shape {tuple(shape)} cannot become tokens: expected (batch, 3, frames, height, width) with "
                f"multiples of {time} frames and {space} pixels."
            )

    def encode(self, video: Float[Tensor, "batch 3 frames height width"]) -> Int[Tensor, "batch t h w"]:
        """The tokens of clips with pixels from 0 to 1; `grid` is (t, h, w) for clips as they were trained on.

        Raises:
            ValueError: the clips cannot be divided into tokens.
        """
        self.check_shape(video.shape)
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
        return self.quantiser(self.encoder(video))

    def draw(self, latents: Float[Tensor, "batch dim t h w"]) -> Float[Tensor, "batch 3 frames height width"]:
        """Clips of codes."""
        return self.decoder(latents)

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
        how: `central` puts a 2D kernel into the middle frame of a 3D kernel and zeros around it, `last` into the last
            frame, for causal kernels; `average` puts it, divided by the depth, into each frame.

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
                found[name][:, :, depth // 2 if how == "central" else -1] = given[:, :, 0]
        else:
            found[name] = own
            kept.append(name)
    return found, kept
