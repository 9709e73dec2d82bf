"""Which frames of a video make a clip, and how they become squares, as `processors.py` of DMVR and its users have it.

MoViNets' code (tensorflow/models, `preprocess_ops_3d.py`) and MAGVIT's, whose settings have DMVR's names, take frames a
stride apart; a video that is too short begins again, and nothing is padded. Frames are resized without a filter that
widens as they shrink, and numbers are cut off to integers, not rounded.
"""

import numpy as np
from jaxtyping import Int, UInt8


def at_random(total: int, shown: int, stride: int, word: int) -> Int[np.ndarray, " shown"]:
    """Frames from a random one on, a stride apart; a clip that is too short begins again (`sample_sequence`)."""
    span = (shown - 1) * stride
    first = word % (total - span if total > span else total)
    return (first + stride * np.arange(shown)) % total


def in_the_middle(total: int, shown: int, stride: int) -> Int[np.ndarray, " shown"]:
    """Frames a stride apart, with as many before as behind them; a clip that is too short begins again."""
    return (max(0, (total - shown * stride) // 2) + stride * np.arange(shown)) % total


def spread(total: int, shown: int, stride: int, number: int, clips: int) -> Int[np.ndarray, " shown"]:
    """The clip with this number of several whose beginnings lie evenly between the first and the last that fits.

    So `sample_linspace_sequence` has it; of a video that is too short, all begin at the start.
    """
    last = max(0, total - shown * stride)
    first = int(last * number / (clips - 1)) if clips > 1 else 0
    return (first + stride * np.arange(shown)) % total


def resized(picture: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """A picture in another size, bilinear between the nearest pixels, cut off to integers (`tf.image.resize`)."""
    if picture.shape[:2] == (height, width):
        return picture
    import torch
    import torch.nn.functional as F

    pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, size=(height, width), mode="bilinear", align_corners=False)
    return pixels[0].byte().permute(1, 2, 0).contiguous().numpy()


def central_square(picture: UInt8[np.ndarray, "h w 3"], short_side: int, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The central square of a frame whose shorter side was brought to `short_side` pixels."""
    tall, wide = _brought_to(short_side, *picture.shape[:2])
    top, left = (tall - size) // 2, (wide - size) // 2
    return np.ascontiguousarray(resized(picture, tall, wide)[top : top + size, left : left + size])


def random_square(
    picture: UInt8[np.ndarray, "h w 3"], short_side: int, size: int, words: tuple[int, int], *, mirrored: bool
) -> UInt8[np.ndarray, "size size 3"]:
    """A square of such a frame, perhaps mirrored; two large random integers decide how far down and across it lies."""
    tall, wide = _brought_to(short_side, *picture.shape[:2])
    top, left = words[0] % (tall - size + 1), words[1] % (wide - size + 1)
    square = resized(picture, tall, wide)[top : top + size, left : left + size]
    return np.ascontiguousarray(square[:, ::-1] if mirrored else square)


def _brought_to(short_side: int, height: int, width: int) -> tuple[int, int]:
    return max(short_side, height * short_side // width), max(short_side, width * short_side // height)
