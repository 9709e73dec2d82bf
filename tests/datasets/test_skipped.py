import logging

import pytest

from lightning_modules.datasets.skipped import Skipped


def test_broken_files_are_counted_logged_and_bounded(caplog):
    skipped = Skipped("videos", 0.02)
    with caplog.at_level(logging.WARNING):
        for number in range(50):
            if number % 25 == 0:
                skipped.skip(ValueError(f"clip{number}.mp4 is damaged"))
            else:
                skipped.read()
    assert (skipped.tried, skipped.broken) == (50, 2)
    assert "left out: clip25.mp4 is damaged (2 of 26 videos so far)" in caplog.text
    with pytest.raises(ValueError, match=r"3 of 51 videos are broken, more than max_broken \(0.02\) allows"):
        skipped.skip(ValueError("clip50.mp4 is damaged"))
    with pytest.raises(ValueError, match=r"max_broken \(0.0\)"):
        Skipped("pictures", 0.0).skip(ValueError("cat.png is damaged"))
