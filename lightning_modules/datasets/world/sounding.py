"""Sounding things of the captioned world: clips of one moving thing, what is said of it, and the sound that it makes.

For models of video, sound and text together. The caption alone tells the direction, as the colour does not decide it.
The pitch follows the height of the thing in every frame, and the timbre is that of its shape, so that sound and picture
each tell a part of the other. Sound is mono, `RATE` samples a second, `FRAME_SAMPLES` a frame.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from lightning_modules.datasets.world import text
from lightning_modules.datasets.world.drawing import render
from lightning_modules.datasets.world.scenes import (
    CHUNK,
    DOWN,
    FRAME,
    LEFT,
    MAX_OBJECTS,
    RIGHT,
    SINE,
    TURN,
    UNIT,
    UP,
    Scenes,
    Stream,
    Tracks,
    sample_scenes,
)

MOTIONS_USED = np.array([RIGHT, LEFT, DOWN, UP])
STEPS = 16  # of a frame's side that positions are whole numbers of
RADIUS = FRAME * 3 // 16
JITTER = 7  # positions along the way that a thing may start at
RATE, FRAME_SAMPLES = 4096, 512  # samples a second, and of a frame: 8 frames a second
LOWEST, PITCHES = 128, 512  # Hz at the bottom of the frame, and how many more at its top
LOUDNESS = 12_000  # of the fundamental alone, of 32,767
# Strength of the first three harmonics of each shape, in eighths.
TIMBRES = np.array([[8, 0, 0], [5, 0, 3], [5, 3, 0], [6, 1, 1], [6, 2, 0], [5, 2, 1], [5, 1, 2], [4, 3, 1]])


@dataclass(frozen=True, kw_only=True)
class SoundingClips:
    """Clips of one thing that moves a quarter of the frame, with a caption that says it all, and its sound.

    Columns: `video`; `audio`, integers of 16 bits (samples,); `caption`, such as "a red circle moving left"; `label`
    (the direction: right, left, down, up), `color`, `shape`; `height`, float32 (frames,), how far the centre is from
    the top, as a share of the frame.

    Args:
        image_size: side of the frames in pixels.
        frames: number of frames, at least 2.
        colors: number of colours in use; likewise `shapes`.
    """

    name: ClassVar[str] = "sounding"
    num_classes: ClassVar[int | None] = len(MOTIONS_USED)
    row_group: ClassVar[int] = 64

    image_size: int
    frames: int
    colors: int
    shapes: int

    def __post_init__(self):
        if self.frames < 2:
            raise ValueError(f"frames ({self.frames}) must be at least 2, for a thing to move.")
        for name in ("colors", "shapes"):
            if not 1 <= getattr(self, name) <= 8:
                raise ValueError(f"{name} ({getattr(self, name)}) must be between 1 and 8.")

    def columns(self, stream: Stream) -> dict[str, np.ndarray]:
        """The columns of a chunk, without `id`."""
        label = stream.balanced("label", self.num_classes)
        color, shape = (stream.integers(name, getattr(self, f"{name}s")) for name in ("color", "shape"))
        scenes, (x, y) = self.scenes(stream, label, color, shape), self.paths(stream, label)
        tracks = Tracks(*(path[:, None] + np.zeros((MAX_OBJECTS, 1), np.int64) for path in (x, y)),
                        np.full((CHUNK, MAX_OBJECTS, self.frames), RADIUS))  # fmt: skip
        return {
            "video": render(scenes, tracks, grain=np.zeros((CHUNK, self.image_size, self.image_size), np.uint8),
                            size=self.image_size),
            "audio": sound(y, shape),
            "caption": np.array(text.class_captions(scenes), dtype=object),
            "label": label,
            "color": color,
            "shape": shape,
            "height": y.astype(np.float32) / np.float32(FRAME),
        }  # fmt: skip

    def scenes(self, stream: Stream, label: np.ndarray, color: np.ndarray, shape: np.ndarray) -> Scenes:
        """Plain landscapes with one thing of the given motion and look."""
        flat = np.zeros(CHUNK, np.int64)
        everywhere = np.ones(MAX_OBJECTS, np.int64)
        return replace(
            sample_scenes(stream, (1, 1)),
            place=flat,
            light=flat + UNIT,
            horizon=flat + FRAME // 2,
            hills=flat,
            grain=flat,
            color=color[:, None] * everywhere,
            shape=shape[:, None] * everywhere,
            texture=np.zeros((CHUNK, MAX_OBJECTS), np.int64),
            motion=MOTIONS_USED[label][:, None] * everywhere,
            radius=np.full((CHUNK, MAX_OBJECTS), RADIUS),
        )

    def paths(self, stream: Stream, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Centres in each frame, x and y: integers (CHUNK, frames); a quarter of the frame from first to last."""
        step = FRAME // STEPS
        way = FRAME // 4 * np.arange(self.frames) // (self.frames - 1)
        along = RADIUS + step * stream.integers("along", JITTER)[:, None] + way
        across = RADIUS + step * stream.integers("across", STEPS - 2 * RADIUS // step + 1)[:, None] + np.zeros_like(way)
        motion = MOTIONS_USED[label][:, None]
        along = np.where((motion == RIGHT) | (motion == DOWN), along, FRAME - along)
        sideways = (motion == RIGHT) | (motion == LEFT)
        return np.where(sideways, along, across), np.where(sideways, across, along)


def sound(y: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """What things are heard at these heights, from the same phase on; integers of 16 bits (clips, samples), as int64.

    Args:
        y: centres in each frame from the top, integers (clips, frames) below `FRAME`. The pitch glides from frame to
            frame, and holds in the last one.
        shape: of each thing, which has the timbre.
    """
    following = np.concatenate([y[:, 1:], y[:, -1:]], axis=1)
    within = np.arange(FRAME_SAMPLES)
    glide = y[..., None] + (following - y)[..., None] * within // FRAME_SAMPLES
    pitch = LOWEST * FRAME + PITCHES * (FRAME - glide.reshape(len(y), -1))  # in 1 / FRAME of a turn each second
    phase = np.cumsum(pitch // RATE, axis=1)
    heard = np.zeros_like(phase)
    for number, strength in enumerate(TIMBRES[shape].T, start=1):
        heard += strength[:, None] * SINE[number * phase % FRAME * TURN // FRAME]
    return heard * LOUDNESS // (8 * FRAME)
