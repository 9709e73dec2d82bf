"""Which frames a hybrid of high and low resolution shows, and how they are cut: HD-VILA (CVPR 2022, section 4.1).

A clip is a middle frame in high resolution and its neighbours, a stride apart, in a quarter of it. The rules are those
of `hd-vila/src/datasets/`. Its data loader for pre-training hands the neighbours on in their full size, by a slip
(`get_images`: the quarter is computed, then overwritten); here they have a quarter of it, as the network needs.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int, UInt8

from lightning_modules.datasets.video.files import BrokenVideo
from lightning_modules.datasets.video.showing import read_shown, scaled

Clips = tuple[UInt8[np.ndarray, "clips height width 3"], UInt8[np.ndarray, "clips others low_h low_w 3"]]
SMALLER = 4  # times that the neighbours' sides are smaller than the middle frame's
GREY = 127  # around frames that keep their aspect: int(255 / 2) of the official code


@dataclass(frozen=True)
class Hybrid:
    """How clips are taken from a video; sizes are those of the high resolution.

    Args:
        frames: of a clip: its middle and as many neighbours before as behind it.
        stride: frames from one to the next.
        source: height and width to which a frame is brought, whatever its aspect.
        size: height and width that are cut from it.
        middles: `original`: cut from the frame; `upsampled`: the quarter, scaled up again (bicubic).
        padded: keep a frame's aspect: it lies at the upper left of a grey square of the side `size`, which is then all
            that is shown (`source` and `size` are equal).

    Raises:
        ValueError: the number of frames is even, or sizes do not fit.
    """

    frames: int
    stride: int
    source: tuple[int, int]
    size: tuple[int, int]
    middles: Literal["original", "upsampled"]
    padded: bool = False

    def __post_init__(self):
        if self.frames % 2 == 0:
            raise ValueError(f"frames ({self.frames}) must be odd: a middle, and as many before as behind it.")
        for name, (height, width) in (("source_size", self.source), ("size", self.size)):
            if height % SMALLER or width % SMALLER:
                raise ValueError(
                    f"{name} ({[height, width]}) must be multiples of {SMALLER}: neighbours have a quarter."
                )
        if any(cut > side for cut, side in zip(self.size, self.source, strict=True)):
            raise ValueError(
                f"size ({list(self.size)}) must fit into source_size ({list(self.source)}): it is cut from it."
            )
        if self.padded and not self.source == self.size == self.source[::-1]:
            raise ValueError(
                f"padded is true, so source_size ({list(self.source)}) and size ({list(self.size)}) must be one square."
            )

    @property
    def reach(self) -> int:
        """Neighbours on each side."""
        return self.frames // 2

    def middle_frames(self, total: int, clips: int, word: int | None = None) -> Int[np.ndarray, " clips"]:
        """Numbers of the middle frames, in ascending order.

        Args:
            total: frames of the video.
            clips: how many are shown.
            word: a large random integer that draws them without replacement; null to spread them evenly, from the first
                possible one on.

        Raises:
            BrokenVideo: there are fewer frames than clips.
        """
        stride = self.stride_of(total, clips)
        possible = np.arange(self.reach * stride, total - self.reach * stride)
        if word is None:
            return possible[:: len(possible) // clips][:clips]
        return np.sort(possible[np.random.Philox(key=word).random_raw(len(possible)).argsort(kind="stable")[:clips]])

    def stride_of(self, total: int, clips: int) -> int:
        """The stride, or the largest one that a short video has room for; 0 shows one frame again and again.

        Raises:
            BrokenVideo: there are fewer frames than clips.
        """
        if total < clips:
            raise BrokenVideo(f"{total} frames are too few for {clips} clips")
        if total >= 2 * self.reach * self.stride + clips or not self.reach:
            return self.stride
        return (total - clips) // (2 * self.reach)

    def clip_frames(self, total: int, clips: int, word: int | None = None) -> Int[np.ndarray, "clips frames"]:
        """Numbers of all frames of the clips; see `middle_frames`."""
        steps = self.stride_of(total, clips) * np.arange(-self.reach, self.reach + 1)
        return self.middle_frames(total, clips, word)[:, None] + steps

    def corner(self, word: int | None = None) -> tuple[int, int]:
        """Top and left of what is cut, multiples of four.

        Args:
            word: a large random integer that draws them; null for the centre.
        """
        (tall, wide), (height, width) = self.source, self.size
        down, right = (tall - height) // SMALLER, (wide - width) // SMALLER
        if word is None:
            return SMALLER * (down // 2), SMALLER * (right // 2)
        return SMALLER * (word % (down + 1)), SMALLER * ((word >> 32) % (right + 1))

    def show(
        self, picture: UInt8[np.ndarray, "h w 3"], corner: tuple[int, int], *, mirrored: bool
    ) -> UInt8[np.ndarray, "height width 3"]:
        """What is cut from a frame: in high resolution, or a quarter of it if middle frames are scaled up from that.

        Frames are brought to `source` by their nearest pixels, as the official code does.
        """
        part = 1 if self.middles == "original" else SMALLER
        (tall, wide), (height, width), (top, left) = (
            (a // part, b // part) for a, b in (self.source, self.size, corner)
        )
        picture = _in_a_square(picture, tall) if self.padded else scaled(picture, tall, wide, "nearest")
        cut = picture[top : top + height, left : left + width]
        return np.ascontiguousarray(cut[:, ::-1] if mirrored else cut)

    def read(
        self,
        path: Path,
        clips: int,
        *,
        rate: float | None = None,
        middles: int | None = None,
        crop: int | None = None,
        mirrored: bool = False,
    ) -> Clips:
        """Clips of a video file; without `middles`, `crop` and `mirrored` those that are judged.

        Args:
            path: of the file.
            clips: how many are shown.
            rate: frames a second that the video is brought to first; null for its own.
            middles: the `word` of `middle_frames`.
            crop: the `word` of `corner`.
            mirrored: whether all frames are mirrored.

        Raises:
            BrokenVideo: it cannot be decoded, or has fewer frames than clips.
        """

        def choose(total: int) -> Int[np.ndarray, " shown"]:
            return self.clip_frames(total, clips, middles).ravel()

        show = partial(self.show, corner=self.corner(crop), mirrored=mirrored)
        frames = read_shown(path, choose, show, rate=rate).frames
        return self.split(frames.reshape(clips, self.frames, *frames.shape[1:]))

    def split(self, shown: UInt8[np.ndarray, "clips frames h w 3"]) -> Clips:
        """Middle frames in high resolution, and their neighbours in a quarter of it."""
        height, width = self.size
        middles, others = shown[:, self.reach], np.delete(shown, self.reach, axis=1)
        if self.middles == "upsampled":
            return np.stack([scaled(frame, height, width, "bicubic") for frame in middles]), others
        low = (height // SMALLER, width // SMALLER)
        small = [scaled(frame, *low, "bicubic") for clip in others for frame in clip]
        small = np.stack(small) if small else np.empty((0, *low, 3), np.uint8)
        return middles, small.reshape(*others.shape[:2], *low, 3)


def _in_a_square(picture: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    """A picture whose longer edge was brought to `side`, at the upper left of a grey square."""
    height, width = picture.shape[:2]
    small = scaled(picture, max(1, side * height // max(height, width)), max(1, side * width // max(height, width)))
    square = np.full((side, side, 3), GREY, np.uint8)
    square[: small.shape[0], : small.shape[1]] = small
    return square
