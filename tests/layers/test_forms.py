"""A block `preprocess` is held against its form before a network is built, in each paper that has one of this form."""

import pytest

from lightning_modules import settings
from stages.composing import compose

BLOCKS = [
    ("vit_bert", ("model",)),
    ("vit_bert", ("downstream", "images", "model")),
    ("visual_parsing", ("model",)),
    ("visual_parsing", ("downstream", "questions", "model")),
]


def block(system, way):
    found = compose("tiny", system=system)["system"]
    for key in way:
        found = found[key]
    return found


@pytest.mark.parametrize(("system", "way"), BLOCKS)
def test_the_sound_block_is_taken(system, way):
    settings.bind(block(system, way), "here")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pixel_scalex": 2.0}, "pixel_scalex"),
        ({"pixel_scale": 0.0}, "preprocess: pixel_scale is"),
        ({"pixel_scale": "white"}, "preprocess: pixel_scale is"),
        ({"mean": []}, "preprocess: mean is"),
        ({"mean": 0.5}, "preprocess: mean is"),
        ({"std": [0.2, 0.2, 0.0]}, "preprocess.*std"),
        ({"flip": "no"}, "preprocess: flip is"),
        ({"shift": -3}, "preprocess: shift is"),
        ({"crop_scale": [0.5]}, "preprocess: crop_scale is"),
    ],
)
@pytest.mark.parametrize(("system", "way"), BLOCKS)
def test_a_misspelt_key_and_a_wrong_value_end_in_one_line(system, way, changed, message):
    given = block(system, way)
    given["preprocess"] = dict(given["preprocess"]) | changed
    with pytest.raises(ValueError, match=message) as raised:
        settings.bind(given, "here")
    assert "\n" not in str(raised.value)
