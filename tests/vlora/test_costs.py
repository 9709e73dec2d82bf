"""The closed forms of what visual tokens cost."""

import pytest

from lightning_modules.vlora.costs import (
    Sizes,
    addition_macs,
    gflops,
    language_macs,
    merging_macs,
    without_visual_tokens,
)

LLAMA = Sizes()


@pytest.mark.parametrize(
    ("text", "with_tokens", "alone", "ratio"),
    [
        (32, 8068.6, 415.0, 0.0514),
        (64, 8504.0, 831.1, 0.0977),
        (128, 9378.1, 1666.4, 0.1777),
        (256, 11139.0, 3350.1, 0.3008),
        (512, 14712.4, 6768.9, 0.4601),
    ],
)
def test_language_model(text, with_tokens, alone, ratio):
    assert gflops(language_macs(text + 576, LLAMA)) == pytest.approx(with_tokens, abs=0.05)
    assert gflops(language_macs(text, LLAMA)) == pytest.approx(alone, abs=0.05)
    assert without_visual_tokens(text, 576, LLAMA) == pytest.approx(ratio, abs=5e-5)


def test_additions():
    assert 2 * addition_macs(1, LLAMA) == 5 * 8 * 4 * 4096 * 64 == 41_943_040
    assert gflops(merging_macs(LLAMA)) == pytest.approx(85.9, abs=0.05)


def test_no_token():
    with pytest.raises(ValueError, match="expected a token"):
        without_visual_tokens(0, 0, LLAMA)
