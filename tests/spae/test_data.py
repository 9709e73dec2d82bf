"""What words are judged by: captions say what is seen, those of other pictures do not, distractors are never said."""

import numpy as np
import pytest

from lightning_modules.datasets import storage
from lightning_modules.datasets.world.scenes import COLORS, SHAPES
from lightning_modules.spae import lexicon


@pytest.fixture(scope="module")
def columns(prepared):
    return storage.read(prepared("world_plain"), "test")


def said(captions):
    return [set(" ".join(own).split()) for own in captions]


def test_captions_name_colour_and_shape_of_the_picture_and_of_few_others(columns):
    """The control: with captions of the next picture, colour and shape are both right about once in 32."""
    seen = [
        {COLORS[color], SHAPES[shape]}
        for color, shape in zip(columns["color"][:, 0], columns["shape"][:, 0], strict=True)
    ]
    words = said(columns["captions"])
    assert all(own <= told for own, told in zip(seen, words, strict=True))
    others = [own <= told for own, told in zip(seen, words[1:] + words[:1], strict=True)]
    assert 0 < np.mean(others) < 0.1


def test_distractors_stand_in_no_caption(columns):
    told = set.union(*said(columns["captions"]))
    assert not told & set(lexicon.DISTRACTORS)
    assert len(lexicon.DISTRACTORS) > len(told) > 10 and told - {","} <= set(lexicon.WORDS)
