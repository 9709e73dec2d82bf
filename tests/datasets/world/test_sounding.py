"""The view `sounding`: captions, clips and sounds that belong together, and nothing that tells more than it should."""

import numpy as np

from lightning_modules.datasets.world import views
from lightning_modules.datasets.world.drawing import RGB
from lightning_modules.datasets.world.scenes import CHUNK, Stream
from lightning_modules.datasets.world.sounding import FRAME_SAMPLES, LOWEST, PITCHES, RATE, SoundingClips

SHOWN = {"image_size": 32, "frames": 9, "colors": 4, "shapes": 2}


def drawn(**options) -> dict[str, np.ndarray]:
    return SoundingClips(**SHOWN | options).columns(Stream(7, "sounding/train", 0))


def seen_heights(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Where pixels of the thing's colour are, from the top, as a share of the frame."""
    color = RGB[columns["color"]][:, None, None, None]
    own = (columns["video"].astype(int) == color).all(-1)
    rows = (np.arange(own.shape[2]) + 0.5) / own.shape[2]
    return (own.sum(3) * rows).sum(2) / own.sum((2, 3))


def heard_heights(audio: np.ndarray, frames: int) -> np.ndarray:
    """The same from how often the sound rises through zero in each frame; timbres here have one rise a period."""
    windows = audio[:, : frames * FRAME_SAMPLES].reshape(len(audio), frames, FRAME_SAMPLES)
    rises = ((windows[..., :-1] < 0) & (windows[..., 1:] >= 0)).sum(-1)
    return 1 - (rises * RATE / FRAME_SAMPLES - LOWEST) / PITCHES


def test_the_sound_is_that_of_its_own_clip_and_of_no_other():
    columns = drawn(shapes=1)
    seen, heard = seen_heights(columns), heard_heights(columns["audio"], 9)
    np.testing.assert_allclose(seen, columns["height"], atol=0.02)
    own, other = (np.abs(seen - x).mean() for x in (heard, np.roll(heard, 1, 0)))
    assert own < 0.03
    assert other > 0.15


def test_the_pitch_glides_and_the_timbre_is_that_of_the_shape():
    columns = drawn()
    assert np.abs(columns["audio"]).max() < 2**15
    assert columns["audio"].shape == (CHUNK, 9 * FRAME_SAMPLES)
    jumps = np.abs(np.diff(columns["audio"], axis=1)).max(1)
    assert (jumps < 18_000).all()  # no click: the steepest that two harmonics of the highest pitch can be
    sharp = np.abs(np.diff(columns["audio"], n=2, axis=1)).mean(1)
    assert sharp[columns["shape"] == 1].min() > sharp[columns["shape"] == 0].mean()


def test_the_caption_tells_the_direction_and_the_colour_does_not():
    columns = drawn()
    for said, label, color in zip(columns["caption"], columns["label"], columns["color"], strict=True):
        assert said.split()[-1] == ("right", "left", "down", "up")[label]
        assert said.split()[1] == ("red", "green", "blue", "yellow")[color]
    together = np.histogram2d(columns["label"], columns["color"], bins=4)[0]
    assert together.min() > CHUNK // 16 / 2


def test_a_longer_clip_and_a_larger_picture_have_the_same_scenes():
    small, large, longer = drawn(), drawn(image_size=64), drawn(frames=17)
    for name in ("audio", "caption", "label", "height"):
        np.testing.assert_array_equal(small[name], large[name])
    np.testing.assert_array_equal(small["height"], longer["height"][:, ::2])
    assert longer["audio"].shape[1] == 17 * FRAME_SAMPLES
    np.testing.assert_array_equal(small["video"], longer["video"][:, ::2])
    assert views.VIEWS["sounding"] is SoundingClips
