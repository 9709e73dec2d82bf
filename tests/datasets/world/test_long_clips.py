"""Long clips: what a paragraph says is what is seen, and nothing but the order tells the clips of a group apart."""

import numpy as np
import pytest

from lightning_modules.datasets import storage
from lightning_modules.datasets.columns import ContentDigest, infer_schema, record_batch
from lightning_modules.datasets.world import views
from lightning_modules.datasets.world.scenes import CHUNK, COLORS, SHAPES

OPTIONS = {
    "image_size": 24, "events": 4, "frames_per_event": 4, "visible": 3, "orders": 4, "colors": 6, "shapes": 2,
    "places": ("night",),
}  # fmt: skip
# Of a chunk of seed 7. A change changes the data set: say so in CHANGES.md.
GOLDEN = "0069bea8d4576fbd9e3b88acc5d59b465bafc60ac7ddc608687dfbf4dc101d19"


def draw(**options) -> dict[str, np.ndarray]:
    return views.chunk_columns(views.LongClips(**OPTIONS | options), 7, "train", 0, CHUNK)


def test_the_bytes_are_the_golden_ones():
    columns, found = draw(), ContentDigest()
    found.update(record_batch(columns, infer_schema(columns), "raw", columns["video"].shape[1:]))
    assert found.hexdigest() == GOLDEN


def test_a_sentence_says_what_its_event_shows():
    """In its frames, and no others, there is something of the sentence's colour."""
    drawn, empty = draw(), draw(visible=1)
    assert drawn["video"].shape == (CHUNK, 16, 24, 24, 3)
    for row in range(CHUNK):
        kinds = [(COLORS[kind // 2], SHAPES[kind % 2]) for kind in drawn["event"][row]]
        assert drawn["sentences"][row] == [f"the {color} {shape}" for color, shape in kinds]
        assert len(set(kinds)) == 4
    brightest = drawn["video"].max((2, 3, 4)) > 150  # objects, in front of a night
    shown = np.zeros((CHUNK, 16), bool)
    for seen in range(3):
        shown[np.arange(CHUNK)[:, None], drawn["start"] + seen] = True
    np.testing.assert_array_equal(brightest, shown)
    assert (drawn["start"] // 4 == np.arange(4)).all() and (empty["start"] // 4 == np.arange(4)).all()
    assert len(np.unique(drawn["start"] % 4)) == 2


def test_clips_of_a_group_differ_in_order_alone():
    """So whoever is blind to order finds one clip of four: the control that must fail."""
    drawn = draw()
    groups = drawn["event"].reshape(-1, 4, 4)
    assert (np.sort(groups, axis=2) == np.sort(groups[:, :1], axis=2)).all()
    assert all(len({tuple(order) for order in group.tolist()}) == 4 for group in groups)
    np.testing.assert_array_equal(drawn["group"], np.arange(CHUNK) // 4)
    for row in range(CHUNK):
        assert drawn["permuted"][row] == drawn["sentences"][row // 4 * 4 + (row + 1) % 4]
        assert drawn["permuted"][row] != drawn["sentences"][row]
        assert sorted(drawn["permuted"][row]) == sorted(drawn["sentences"][row])


def test_it_is_prepared_and_read_back(tmp_path):
    options = {name: value for name, value in OPTIONS.items() if name != "image_size"}
    views.prepare(
        tmp_path / "set", view="long_clips", seed=7, sizes={"train": 40}, image_size=24, options=options, workers=1
    )
    read, drawn = storage.read(tmp_path / "set", "train"), draw()
    for name, values in read.items():
        assert [list(x) if name in ("sentences", "permuted") else x.tolist() for x in values] == [
            list(x) if name in ("sentences", "permuted") else x.tolist() for x in drawn[name][:40]
        ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"events": 1}, r"events \(1\) must be between 2 and 7"),
        ({"events": 4, "colors": 3, "shapes": 1}, r"events \(4\) must be between 2 and 3"),
        ({"visible": 5}, r"visible \(5\) must be between 1 and frames_per_event \(4\)"),
        ({"orders": 3}, r"orders \(3\) must divide 256 and be at least 2; 4 events have 24"),
        ({"orders": 32}, r"orders \(32\) must divide 256"),
        ({"colors": 9}, r"colors \(9\) must be between 1 and 8"),
        ({"places": ("moon",)}, r"places \(moon\) must be some of meadow"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw(**options)
