"""Texts as bytes, and what captions say of things."""

import numpy as np
import pytest

from lightning_modules.vision_language.told import encoded, enlarged, texts_of, told_rightly

TRUTH = {0: {"size": 0, "color": 1, "shape": 2}}


def test_texts_come_back_from_their_bytes():
    assert encoded(["ab", "\u00fc"]).tolist() == [[97, 98], [0xC3, 0xBC]] and encoded(["a", "bcd"]).tolist()[0] == [
        97,
        0,
        0,
    ]
    for texts in (["a", "", "b\u00fccher"], [""], []):
        stored = encoded(texts)
        assert stored.shape[0] == len(texts) and stored.shape[1] >= 1 and texts_of(stored) == texts
        stored += 1  # it is an array of its own


def test_pictures_with_nothing_in_them_are_refused():
    with pytest.raises(ValueError, match="nothing in any of the pictures"):
        told_rightly(["a caption"], [{}])
    assert told_rightly(["", ""], [TRUTH, {}])["exact"] == 50, "of an empty picture nothing is to be said"


def test_small_pictures_are_enlarged():
    assert enlarged(np.zeros((64, 32, 3), np.uint8)).shape == (256, 128, 3)
    assert enlarged(np.zeros((65, 32, 3), np.uint8)).shape == (65, 32, 3)
