"""The parts of `world_many` show what their labels and captions say, and what must not tell it does not."""

import numpy as np
import pytest

from lightning_modules.datasets import storage
from lightning_modules.datasets.world.scenes import COLORS

RGB = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}


@pytest.fixture
def part(prepared):
    return lambda name, split="test": storage.read(prepared("world_many") / name, split)


def nearest(known, labels, shown):
    """The label of the most similar row."""
    flat, asked = (x.reshape(len(x), -1).astype(np.float32) for x in (known, shown))
    distance = (asked**2).sum(1)[:, None] - 2 * asked @ flat.T + (flat**2).sum(1)
    return labels[distance.argmin(1)]


def test_a_direction_is_told_by_the_way_of_a_clip_and_not_by_its_middle(part):
    train, test = part("clips", "train"), part("clips")
    moved, asked = (x["video"][:, -1].astype(int) - x["video"][:, 0] for x in (train, test))
    way = nearest(moved, train["label"], asked)
    middle = nearest(train["video"][:, 4], train["label"], test["video"][:, 4])
    assert (way == test["label"]).mean() > 0.9
    assert (middle == test["label"]).mean() < 0.45, "a quarter by chance; things near an edge move along it"


def test_a_caption_names_the_colour_of_its_picture_and_that_of_another_one_does_not(part):
    rows = part("pairs")
    said = np.array([next(word for word in text[0].split() if word in COLORS) for text in rows["captions"]])
    assert (said == np.array(COLORS)[rows["color"][:, 0]]).all()
    shown = rows["image"].astype(int)
    empty = np.median(shown, axis=0)  # the place is the same in all pictures
    thing = np.abs(shown - empty).sum(-1) > 120
    for color, channels in RGB.items():
        means = [image[mask].mean(0) for image, mask in zip(shown[said == color], thing[said == color], strict=True)]
        assert all(mean.argmax() == np.argmax(channels) for mean in means), color
    others = np.roll(said, 1)
    assert (others == said).mean() < 0.25, "an eighth by chance"


def test_a_sound_tells_the_shape_of_its_thing_and_not_its_colour(part):
    """Strengths of the harmonics of the pitch in the middle of the clip."""
    found = {}
    for split in ("train", "test"):
        rows = part("clips", split)
        found[split] = (
            np.stack([harmonics(wave) for wave in rows["audio"][:512]]),
            rows["shape"][:512],
            rows["color"][:512],
        )
    (known, shapes, colors), (asked, shape, color) = found["train"], found["test"]
    assert (nearest(known, shapes, asked) == shape).mean() > 0.6, "an eighth by chance"
    assert (nearest(known, colors, asked) == color).mean() < 0.4, "a quarter by chance"


def harmonics(wave):
    """Strengths of the first three, of a frame of 512 samples at 4,096 Hz whose pitch is between 128 and 640 Hz."""
    power = np.abs(np.fft.rfft(wave[1792:2304] * np.hanning(512), 4096))
    pitches = np.arange(120, 650)
    fits = sum(power[number * pitches] for number in (1, 2, 3))
    pitch = pitches[fits.argmax()]
    strengths = np.array([power[max(0, number * pitch - 12) : number * pitch + 12].max() for number in (1, 2, 3)])
    return strengths / strengths.sum()
