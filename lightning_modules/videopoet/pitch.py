"""What is heard of a sounding thing: its pitch over time, and so the height at which it is.

A measurement on the wave alone, for data and for what a network makes. Of each frame a window of one frame's length
about its beginning is compared with sines, 4 Hz apart, within the range of the data set. Sums over sines are matrix
products, so that no result depends on a library's Fourier transform.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lightning_modules.datasets.world.sounding import FRAME_SAMPLES, LOWEST, PITCHES, RATE

SPACING = 4  # Hz between two sines
SILENT = 1e-4  # mean square of a window, of waves within -1 to 1, below which nothing is heard


def pitches(wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames"]:
    """The strongest pitch of each frame in Hz, and nan where nothing is heard; `FRAME_SAMPLES` make a frame."""
    frames = wave.shape[1] // FRAME_SAMPLES
    windows = F.pad(wave, (FRAME_SAMPLES // 2, 0)).unfold(1, FRAME_SAMPLES, FRAME_SAMPLES)[:, :frames]
    time = torch.arange(FRAME_SAMPLES, dtype=torch.float64, device=wave.device)
    tried = torch.arange(LOWEST, LOWEST + PITCHES + 1, SPACING, dtype=torch.float64, device=wave.device)
    angle = 2 * math.pi / RATE * tried[:, None] * time
    fade = torch.sin(math.pi * (time + 0.5) / FRAME_SAMPLES).square()
    cosine, sine = ((part * fade).to(wave.dtype) for part in (angle.cos(), angle.sin()))
    power = (windows @ cosine.T).square() + (windows @ sine.T).square()
    best = power.argmax(-1).clamp(1, len(tried) - 2)
    before, at, after = (power.gather(-1, (best + step)[..., None])[..., 0] for step in (-1, 0, 1))
    curve = (before - 2 * at + after).clamp_max(-torch.finfo(power.dtype).tiny)
    shift = (0.5 * (before - after) / curve).clamp(-1, 1)  # of the vertex of a parabola
    found = LOWEST + SPACING * (best + shift)
    return torch.where(windows.square().mean(-1) < SILENT, torch.nan, found)


def heights(wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames"]:
    """How far the thing that is heard is from the top in each frame, as a share of the frame; nan in silence."""
    return 1 - (pitches(wave) - LOWEST) / PITCHES


def disagreement(heard: Float[Tensor, "batch frames"], seen: Float[Tensor, "batch frames"]) -> Float[Tensor, " batch"]:
    """Mean distance between two heights of each clip, as a share of the frame; silence is as far as can be, 1."""
    return (heard - seen).abs().nan_to_num(1.0).clamp_max(1.0).mean(1)
