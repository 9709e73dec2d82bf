"""Pictures, clips, sounds and texts as tokens with coordinates. Read `Tokens` and `tubelets` first.

A coordinate is the index of a token along an axis as a share of the axis, so that positions hold for any resolution,
and stay right where tokens are dropped. A picture is a clip of as many equal frames as a tubelet has.
"""

from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Dropping = Literal["sample", "batch"]
LOUDEST = 32_768  # of 16-bit sound
FLOOR = 1e-6  # beside a mel band, before the logarithm, as in the official code


class Tokens(NamedTuple):
    """What is embedded.

    content: numbers of each token, or its id; pixels are stored ones, 0 to 255.
    coordinates: of each token along each axis of its modality, 0 to 1; null for texts, whose positions are indices.
    there: which tokens are no padding; null where all are there.
    """

    content: Shaped[Tensor, "batch tokens *numbers"]
    coordinates: Float[Tensor, "batch tokens axes"] | None
    there: Bool[Tensor, "batch tokens"] | None


def grid(*sizes: int) -> Float[Tensor, "tokens axes"]:
    """Coordinates of a grid of tokens, the last axis running fastest."""
    axes = [torch.arange(size) / size for size in sizes]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def tubelets(video: Shaped[Tensor, "batch 3 frames height width"], patch: tuple[int, int, int]) -> Tokens:
    """Boxes of pixels; within each the order is frame, row, column, colour, as in the official code.

    Raises:
        ValueError: the clip cannot be cut evenly.
    """
    shape = tuple(video.shape[2:])
    if any(size % side for size, side in zip(shape, patch, strict=True)):
        raise ValueError(
            f"clips of {shape} (frames, height, width) cannot be cut into tubelets of {patch}: take multiples of these."
        )
    t, h, w = patch
    content = rearrange(video, "b c (t pt) (h ph) (w pw) -> b (t h w) (pt ph pw c)", pt=t, ph=h, pw=w)
    return _of_all(content, grid(*(size // side for size, side in zip(shape, patch, strict=True))))


def spectrogram_patches(spectrogram: Float[Tensor, "batch times bands"], patch: tuple[int, int]) -> Tokens:
    """Rectangles of times and bands.

    Raises:
        ValueError: the spectrogram cannot be cut evenly.
    """
    shape = tuple(spectrogram.shape[1:])
    if any(size % side for size, side in zip(shape, patch, strict=True)):
        raise ValueError(
            f"spectrograms of {shape} (times, bands) cannot be cut into patches of {patch}: take multiples of these."
        )
    t, s = patch
    content = rearrange(spectrogram, "b (t pt) (s ps) -> b (t s) (pt ps)", pt=t, ps=s)
    return _of_all(content, grid(shape[0] // t, shape[1] // s))


def waveform_patches(wave: Float[Tensor, "batch samples"], patch: int) -> Tokens:
    """Pieces of a wave.

    Raises:
        ValueError: the wave cannot be cut evenly.
    """
    if wave.shape[1] % patch:
        raise ValueError(f"waves of {wave.shape[1]} samples cannot be cut into pieces of {patch}: take a multiple.")
    content = wave.unflatten(1, (-1, patch))
    return _of_all(content, grid(content.shape[1]))


def text_tokens(token_ids: Int[Tensor, "batch length"], there: Bool[Tensor, "batch length"]) -> Tokens:
    """Words."""
    return Tokens(token_ids, None, there.bool())


def drop_tokens(tokens: Tokens, rate: float, way: Dropping) -> Tokens:
    """DropToken (VATT, 2104.11178): a random part of the tokens is kept.

    Args:
        tokens: none of them padding.
        rate: share that is dropped; int((1 - rate) x tokens) are kept.
        way: each sample keeps tokens of its own, as the official pipeline of data does, or the whole batch keeps the
            same ones, as the official module does.

    Raises:
        ValueError: nothing would be kept.
    """
    count = tokens.content.shape[1]
    kept = int((1 - rate) * count)
    if kept < 1:
        raise ValueError(f"a drop rate of {rate} leaves none of {count} tokens: take a smaller one.")
    if kept == count:
        return tokens
    batch = tokens.content.shape[0]
    rows = batch if way == "sample" else 1
    order = torch.rand(rows, count, device=tokens.content.device).argsort(1)[:, :kept].sort(1).values.expand(batch, -1)
    content, coordinates = (
        x.gather(1, order[..., None].expand(-1, -1, x.shape[2])) for x in (tokens.content, tokens.coordinates)
    )
    return Tokens(content, coordinates, None)


def centred(pixels: Shaped[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Stored pixels, 0 to 255, as numbers from -1 to 1."""
    return pixels.float() / 127.5 - 1


def still(images: Shaped[Tensor, "batch 3 height width"], frames: int) -> Shaped[Tensor, "batch 3 frames height width"]:
    """Pictures as clips of equal frames."""
    return repeat(images, "b c h w -> b c t h w", t=frames)


def log_mel(
    wave: Float[Tensor, "batch samples"], *, rate: int, frame: int, step: int, bands: int, lowest: float, highest: float
) -> Float[Tensor, "batch times bands"]:
    """The logarithm of mel bands of a wave, samples // step of them over time: the end is filled up with silence.

    Args:
        wave: numbers from -1 to 1.
        rate: samples a second.
        frame: samples of a window.
        step: samples from one window to the next.
        bands: of the mel scale.
        lowest: edge of the bands in Hz.
        highest: likewise.
    """
    count = wave.shape[1] // step
    padded = torch.nn.functional.pad(wave, (0, max(0, (count - 1) * step + frame - wave.shape[1])))
    cosine, sine, filters = (
        torch.from_numpy(x).to(wave.device, wave.dtype) for x in _transform(rate, frame, bands, lowest, highest)
    )
    windows = padded.unfold(1, frame, step)[:, :count]
    magnitude = ((windows @ cosine).square() + (windows @ sine).square()).sqrt()
    return (magnitude @ filters + FLOOR).log()


@lru_cache(maxsize=8)
def _transform(
    rate: int, frame: int, bands: int, lowest: float, highest: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cosines and sines of a windowed Fourier transform as matrices, and mel filters."""
    from transformers.audio_utils import mel_filter_bank, window_function

    bins = frame // 2 + 1
    angle = 2 * np.pi / frame * np.outer(np.arange(frame), np.arange(bins))
    window = window_function(frame, "hann")[:, None]
    filters = mel_filter_bank(
        num_frequency_bins=bins, num_mel_filters=bands, min_frequency=lowest, max_frequency=highest,
        sampling_rate=rate, norm=None, mel_scale="htk",
    )  # fmt: skip
    return window * np.cos(angle), window * np.sin(angle), filters


def _of_all(content: Tensor, coordinates: Tensor) -> Tokens:
    return Tokens(content, coordinates.to(content.device).expand(len(content), -1, -1), None)
