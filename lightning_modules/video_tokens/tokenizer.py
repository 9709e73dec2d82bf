"""A video as a grid of tokens, and back: what generators and language models build on."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_modules.video_tokens.quantiser import Quantised

Inflation = Literal["central", "average", "last"]
BEYOND = 1e-3  # that pixels may be out of 0 to 1, as rounding takes them


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

    def encode(self, video: Tensor) -> Int[Tensor, "batch t h w"]:
        """The tokens of clips; `grid` is (t, h, w) for clips as they were trained on.

        Args:
            video: floats (batch, 3, frames, height, width), pixels from 0 to 1.

        Raises:
            ValueError: these are no such clips, or they cannot be divided into tokens.
        """
        check_video(video)
        self.check_shape(video.shape)
        return self.quantise(video).tokens

    def decode(self, tokens: Tensor) -> Float[Tensor, "batch 3 frames height width"]:
        """The clips of tokens. Pixels are not held within 0 and 1.

        Args:
            tokens: whole numbers (batch, t, h, w), 0 to `vocabulary` - 1.

        Raises:
            ValueError: these are no such tokens.
        """
        check_tokens(tokens, self.vocabulary)
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


def check_video(video: Tensor) -> None:
    """Refuse what are no clips with pixels from 0 to 1.

    Raises:
        ValueError: see above.
    """
    if video.ndim != 5 or video.shape[1] != 3 or 0 in video.shape:
        raise ValueError(
            f"video of shape {tuple(video.shape)}, expected (batch, 3, frames, height, width), none of them 0: a clip "
            "alone is a batch of one, a picture a clip of one frame."
        )
    if not video.is_floating_point():
        raise ValueError(f"video of {video.dtype}, expected floats from 0 to 1: divide stored pixels by 255.")
    if video.is_meta:
        return
    least, most = (float(x) for x in video.detach().aminmax())
    if not (-BEYOND <= least and most <= 1 + BEYOND):  # also where there are no numbers
        raise ValueError(f"pixels from {least:g} to {most:g}, expected 0 to 1: divide stored pixels by 255.")


def check_tokens(tokens: Tensor, vocabulary: int) -> None:
    """Refuse what are no tokens of a vocabulary.

    Raises:
        ValueError: see above.
    """
    if tokens.ndim != 4 or 0 in tokens.shape:
        raise ValueError(f"tokens of shape {tuple(tokens.shape)}, expected (batch, t, h, w), none of them 0.")
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise ValueError(f"tokens of {tokens.dtype}, expected whole numbers from 0 to {vocabulary - 1}.")
    if tokens.is_meta:
        return
    least, most = (int(x) for x in tokens.aminmax())
    if not (0 <= least and most < vocabulary):
        raise ValueError(f"tokens from {least} to {most}, expected 0 to {vocabulary - 1}.")


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
