import shutil

import numpy as np
import pytest
import torch

from lightning_modules.datasets.video.drawn import encode, numbers
from tests.datamodules import test_annotated_videos as annotated_videos
from tests.datamodules.test_annotated_videos import VIDEOS, WORDS, bound, judged, loaded, words

home, plain_environment = annotated_videos.home, annotated_videos.plain_environment


def data(home, corpus="captions", seed=3, **changes):
    values = {"clips": 2, "evaluation_clips": 3, "frames": 3, "stride": 2, "source_size": [36, 40], "size": [32, 32],
              "middles": "original"}  # fmt: skip
    values |= {"source": "caption"} if corpus == "captions" else {}
    return bound(home, "hd_vila.hybrid_clips.HybridClips", corpus, seed, values | changes)


def test_clips_have_a_middle_and_its_neighbours_in_the_order_of_time(home):
    """Of 12 frames, middles can be 2 to 9; three of them from the first one on, two frames apart."""
    module = data(home, "paragraphs")
    found = judged(module)
    assert found["middle"].shape == (VIDEOS, 3, *module.middle_shape) and found["middle"].dtype == torch.uint8
    assert found["neighbours"].shape == (VIDEOS, 3, 2, 3, 8, 8) and found["neighbours"].dtype == torch.uint8
    for middle, neighbours in zip(found["middle"], found["neighbours"], strict=True):
        assert numbers(middle.permute(0, 2, 3, 1).numpy()) == [2, 4, 6]
        assert numbers(neighbours.flatten(0, 1).permute(0, 2, 3, 1).numpy()) == [0, 4, 2, 6, 4, 8]
    assert found["token_ids"].shape == (VIDEOS, 6) and "video" not in found


def test_training_draws_middles_without_replacement_and_one_of_several_captions(home):
    module, middles, texts = data(home), set(), set()
    for epoch in range(3):
        for batch in loaded(module, epoch):
            assert batch["middle"].shape == (4, 2, 3, 32, 32) and batch["neighbours"].shape == (4, 2, 2, 3, 8, 8)
            for clips in batch["middle"]:
                first, second = numbers(clips.permute(0, 2, 3, 1).numpy())
                assert 2 <= first < second <= 9
                middles |= {first, second}
            texts |= set(words(module, batch["token_ids"]))
    assert middles == {*range(2, 10)} and texts == {*WORDS}


def test_a_short_video_has_a_smaller_stride_and_one_that_is_too_short_is_broken(home, tmp_path):
    for name in ("tokenizer", "captions", "mirror"):
        shutil.copytree(home / name, tmp_path / name)
    encode(tmp_path / "mirror/toy/videos/v0.mp4", 5, size=(48, 32))
    encode(tmp_path / "mirror/toy/videos/v1.mp4", 2, size=(48, 32))
    module = data(tmp_path, splits={"test": {"source": "test", "rows": None}}, max_broken=0.01)
    batch = next(iter(module.evaluation_batches("test")))
    assert numbers(batch["middle"][0].permute(0, 2, 3, 1).numpy()) == [1, 2, 3] and batch["broken"] == 1
    assert numbers(batch["neighbours"][0].flatten(0, 1).permute(0, 2, 3, 1).numpy()) == [0, 2, 1, 3, 2, 4]
    module = data(tmp_path, splits={"test": {"source": "test", "rows": None}}, max_broken=0.0)
    with pytest.raises(
        ValueError, match=r"v1.mp4: 2 frames are too few for 3 clips. Complete the copy, or raise max_bro"
    ):
        list(module.evaluation_batches("test"))


def test_the_stride_counts_at_the_rate_that_is_asked_for(home):
    """At five frames a second a video of ten a second has every second frame: 0, 2, ..., 10, six of them."""
    found = judged(data(home, "paragraphs", rate=5.0, stride=1))
    assert numbers(found["middle"][0].permute(0, 2, 3, 1).numpy()) == [2, 4, 6]
    assert numbers(found["neighbours"][0].flatten(0, 1).permute(0, 2, 3, 1).numpy()) == [0, 4, 2, 6, 4, 8]


def test_options_and_questions_are_one_text(home):
    found = judged(module := data(home, "msrvtt_mc"))
    assert found["token_ids"].shape == (VIDEOS, 4, 6) and words(module, found["token_ids"][0]) == [*WORDS]
    found = judged(module := data(home, "msrvtt_qa"))
    assert words(module, found["token_ids"]) == ["moving red"] * 8 and "kinds" in found


def test_flipping_mirrors_the_whole_video_and_so_many_of_them(home):
    never, always, some = (data(home, flip=flip).videos("train") for flip in (0.0, 1.0, 0.3333))
    drawn = [(7, 5, int(word)) for word in np.random.default_rng(0).integers(0, 2**63, 60)]
    plain, mirrored = never.read(0, drawn[0]), always.read(0, drawn[0])
    for name in ("video", "neighbours"):
        side = plain[name].flip(2 if name == "video" else 4)
        assert (side.int() - mirrored[name].int()).abs().max() <= 1  # of the bicubic filter's rounding
    flipped = [not some.read(0, each)["video"].equal(never.read(0, each)["video"]) for each in drawn]
    assert 10 < sum(flipped) < 30


@pytest.mark.parametrize(("corpus", "changes", "told"), [
    ("captions", {"frames": 4}, r"frames \(4\) must be odd"),
    ("captions", {"size": [30, 32]}, r"size \(\[30, 32\]\) must be multiples of 4"),
    ("captions", {"source_size": [38, 40]}, r"source_size \(\[38, 40\]\) must be multiples of 4"),
    ("captions", {"size": [40, 32]}, r"size \(\[40, 32\]\) must fit into source_size \(\[36, 40\]\)"),
    ("captions", {"padded": True}, r"padded is true, so source_size \(\[36, 40\]\) and size \(\[32, 32\]\) must be"),
    ("captions", {"middles": "scaled"}, r"middles is 'scaled', expected"),
    ("captions", {"flip": 2.0}, r"flip is 2.0, expected less than or equal to 1"),
    ("captions", {"clips": 0}, r"clips is 0, expected greater than or equal to 1"),
    ("captions", {"source": None}, r"source is null, but .* has several columns of sentences"),
    ("long_videos", {}, r"13 rows are runs of clips, the first of 3, from r0/r0.0.mp4 on: prepare single videos"),
    ("captions", {"splits": {"test": {"source": "test", "rows": None}}}, r"there is no split 'train' in data.splits"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_told(home, corpus, changes, told):
    with pytest.raises(ValueError, match=told):
        data(home, corpus, **changes).train_dataloader()
