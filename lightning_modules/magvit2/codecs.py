"""Clips through the video codecs of today, at several rates: H.265 (HEVC) and AV1, by the encoders of PyAV's FFmpeg.

A codec spends some hundred bits on headers, more than a small clip takes in all. So small clips are put side by side
into pictures of at least `SIDE` pixels, which the codec may also use to predict one clip from another.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Shaped, UInt8

from lightning_modules.metrics.video import psnr, ssim

SIDE = 128
RATE = Fraction(24)  # frames a second


class Codec(NamedTuple):
    """An encoder.

    Attributes:
        encoder: FFmpeg's name.
        decoder: likewise.
        pixels: how colours are stored; SVT-AV1 has half of their resolution alone.
        options: of the encoder; one thread, so that the result is the same everywhere, and no note of the settings in
            the stream.
        qualities: constant rate factors, the best first.
    """

    encoder: str
    decoder: str
    pixels: str
    options: dict[str, str]
    qualities: tuple[int, ...]


CODECS = {
    "hevc": Codec(
        "libx265",
        "hevc",
        "yuv444p",
        {"preset": "slow", "x265-params": "info=0:log-level=none:pools=none:frame-threads=1:wpp=0"},
        (15, 22, 29, 36, 43, 51),
    ),
    "av1": Codec(
        "libsvtav1",
        "libdav1d",
        "yuv420p",
        {"preset": "4", "svtav1-params": "lp=1"},
        (20, 32, 44, 54, 63),
    ),
}


def tried(clips: UInt8[np.ndarray, "clips frames h w 3"], codec: str) -> dict[str, Shaped[np.ndarray, "*qualities"]]:
    """Bits per pixel, PSNR and SSIM of clips at each of a codec's qualities, means over the clips, and their number.

    Args:
        clips: as they are to be encoded; the last ones are left out where they fill no picture.
        codec: `hevc` or `av1`.

    Raises:
        ValueError: the codec is unknown, or its encoder is not in this FFmpeg.
    """
    if codec not in CODECS:
        raise ValueError(f"codecs names {codec!r}, expected one of {', '.join(CODECS)}.")
    side = ceil(SIDE / min(clips.shape[2:4]))
    whole = len(clips) // side**2 * side**2
    if whole == 0:
        raise ValueError(f"{len(clips)} clips are too few for a picture of {side} x {side}: judge at least {side**2}.")
    clips = clips[:whole]
    tiled = rearrange(clips, "(n r c) t h w x -> n t (r h) (c w) x", r=side, c=side)
    truth = _pixels(clips)
    found: dict[str, list[float]] = {"bits_per_pixel": [], "psnr": [], "ssim": []}
    for quality in CODECS[codec].qualities:
        bits, again = zip(*(through(clip, CODECS[codec], quality) for clip in tiled), strict=True)
        again = _pixels(rearrange(np.stack(again), "n t (r h) (c w) x -> (n r c) t h w x", r=side, c=side))
        found["bits_per_pixel"].append(sum(bits) / truth[:, 0].numel())
        found["psnr"].append(psnr(again, truth).mean().item())
        found["ssim"].append(ssim(again, truth).mean().item())
    return {name: np.array(values) for name, values in found.items()} | {"clips": np.array(whole)}


def through(
    clip: UInt8[np.ndarray, "frames h w 3"], codec: Codec, quality: int
) -> tuple[int, UInt8[np.ndarray, "frames h w 3"]]:
    """The bits of a clip's packets, without a container, and the clip that they give."""
    import av

    os.environ.setdefault("SVT_LOG", "1")  # errors alone
    try:
        encoder = av.CodecContext.create(codec.encoder, "w")
        decoder = av.CodecContext.create(codec.decoder, "r")
    except av.codec.codec.UnknownCodecError as error:
        raise ValueError(f"the FFmpeg of PyAV {av.__version__} has no {error}: leave that codec out.") from error
    encoder.height, encoder.width = clip.shape[1:3]
    encoder.pix_fmt, encoder.framerate, encoder.time_base = codec.pixels, RATE, 1 / RATE
    encoder.options = {**codec.options, "crf": str(quality)}
    packets = []
    with own_priority():
        for number, picture in enumerate(clip):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = number
            packets += encoder.encode(frame)
        packets += encoder.encode(None)
    frames = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    return 8 * sum(p.size for p in packets), np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


@contextmanager
def own_priority() -> Iterator[None]:
    """Give this thread back the priority that it had.

    Where the user is root, SVT-AV1 leaves the thread that calls it with priority over every other program.
    """
    if not hasattr(os, "sched_setscheduler"):  # macOS
        yield
        return
    policy, param = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != policy:
            os.sched_setscheduler(0, policy, param)


def _pixels(clips: UInt8[np.ndarray, "clips frames h w 3"]) -> Float[torch.Tensor, "clips 3 frames h w"]:
    return torch.from_numpy(np.ascontiguousarray(clips)).permute(0, 4, 1, 2, 3) / 255
