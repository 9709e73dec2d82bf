"""Clips of video files with their sound."""

import numpy as np
import pytest

from lightning_modules.datasets.video.files import BrokenVideo
from lightning_modules.datasets.video.with_sound import write_tone
from lightning_modules.imp.captioned_videos import CaptionedVideos, ToldVideos


@pytest.fixture
def told(tmp_path):
    def told(frames, **changes):
        write_tone(tmp_path / "a.mp4", frames, 440)
        options = {
            "folder": tmp_path, "seed": 0, "splits": {"train": {"source": "train", "rows": None}}, "text_length": 4,
            "frames": 4, "rate": 10.0, "size": 16, "sample_rate": 8000, "seconds": 3.0, "batch_size": 1,
            "evaluation_batch_size": 1, "max_broken": 0.0,
        }  # fmt: skip
        captions = np.array([["a red circle"], []], dtype=object)[:1]
        return ToldVideos(tmp_path, np.array(["a.mp4"]), captions, CaptionedVideos(**options | changes))

    return told


@pytest.mark.parametrize("word", [0, 9, 10, 11, 12345])
def test_wherever_a_clip_begins_its_sound_is_there(told, word):
    found = told(40).read(0, (word, 0, 0))
    assert found["video"].shape == (4, 16, 16, 3)
    assert found["audio"].shape == (24_000,)
    assert found["audio"][-2000:].any()


def test_without_sound_a_clip_needs_its_own_frames_alone(told):
    found = told(5, sample_rate=None, seconds=None).read(0, (7, 0, 0))
    assert set(found) == {"video", "token_ids", "attention_mask"}


def test_a_video_without_enough_sound_is_broken(told):
    with pytest.raises(BrokenVideo, match="ends before the clip does"):
        told(20).read(0, None)
