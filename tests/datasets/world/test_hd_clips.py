"""What can be seen in clips of a patterned circle: the pattern only if sharp, the direction only in several frames."""

from dataclasses import replace

import numpy as np
import pytest

from lightning_modules.datasets.tokenizers import world_tokenizer
from lightning_modules.datasets.world.hd_clips import PATTERNS, HdClips
from lightning_modules.datasets.world.scenes import Stream
from tests.datasets.world.test_views import Partner

VIEW = HdClips(image_size=32, frames=5, colors=3, places=("night",))
STREAM = Stream(3, "hd_clips/train", 0)


class OtherPattern(Stream):
    """A stream whose labels are those of the next pattern, and nothing else is different."""

    def balanced(self, purpose: str, classes: int) -> np.ndarray:
        labels = super().balanced(purpose, classes)
        return labels // 12 * 12 + (labels % 12 + 4) % 12


@pytest.mark.parametrize("frames", [2, 5])
def test_a_clip_in_reverse_is_one_of_the_other_direction(frames):
    view = replace(VIEW, frames=frames)
    ours, partner = (view.columns(kind(3, "hd_clips/train", 0)) for kind in (Stream, Partner))
    np.testing.assert_array_equal(ours["video"], partner["video"][:, ::-1])
    np.testing.assert_array_equal(ours["label"] // 2, partner["label"] // 2)
    for one, other in zip(ours["caption"], partner["caption"], strict=True):
        assert one.split()[:-1] == other.split()[:-1]
        assert {one.split()[-1], other.split()[-1]} in ({"left", "right"}, {"up", "down"})


def test_a_quarter_of_the_sides_hides_what_tells_patterns_apart():
    ours, other = (VIEW.columns(kind(3, "hd_clips/train", 0))["video"].astype(float) for kind in (Stream, OtherPattern))
    sharp = np.abs(ours - other)
    coarse = np.abs(np.subtract(*(x.reshape(256, 5, 8, 4, 8, 4, 3).mean((3, 5)) for x in (ours, other))))
    assert sharp.max() > 100
    assert coarse.sum() * 16 < 0.25 * sharp.sum()  # what is left is at the edge of the circle


def test_a_caption_is_a_class_in_words_that_are_known():
    drawn = VIEW.columns(STREAM)
    assert len(set(zip(drawn["caption"], drawn["label"], strict=True))) == len(set(drawn["caption"])) == 36
    token_ids, mask = world_tokenizer()(drawn["caption"].tolist(), 8)
    assert mask.all() and not (token_ids == world_tokenizer().unknown_id).any()
    orange = replace(VIEW, colors=6).columns(STREAM)["caption"]
    assert any(caption.startswith("an orange") for caption in orange)
    assert len(PATTERNS) == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"frames": 1}, r"frames \(1\) must be at least 2"),
        ({"colors": 9}, r"colors \(9\) must be between 1 and 8"),
        ({"places": ("moon",)}, r"places \(moon\) must be some of meadow"),
    ],
)
def test_arguments_out_of_range_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        replace(VIEW, **options)
