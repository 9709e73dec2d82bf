from pathlib import Path

import numpy as np
import pytest

from lightning_modules.datasets.world.quadrants import CELLS, phrase, placed, short
from lightning_modules.mm_gem.evaluation import attributes, evaluate, first_thing, framed
from lightning_modules.runs import Evaluation, Run
from lightning_modules.vision_language.told import marked, texts_of, things

FACTS = {"parameters": 10, "parameters_of_two_models": 17, "visual_tokens": 4}


def stored(texts: list[str]) -> np.ndarray:
    width = max(1, *(len(text.encode()) for text in texts))
    return np.array([list(text.encode().ljust(width, b"\0")) for text in texts], np.uint8)


def predictions(written=None, rows: int = 3) -> dict[str, np.ndarray]:
    """Pictures of four things, told in two ways; every caption is its picture's vector."""
    draws = np.random.default_rng(0)
    look = {name: draws.integers(0, count, (rows, 4)) for name, count in (("size", 2), ("color", 8), ("shape", 8))}
    found = {**look, "cell": np.tile(list(CELLS), (rows, 1))}
    scenes = [list(({"cell": cell} | thing) for cell, thing in things(found, row).items()) for row in range(rows)]
    told = [text for scene in scenes for text in (short(scene), " and ".join(placed(x) for x in scene[::-1]))]
    vectors = np.eye(rows, dtype=np.float32)
    found |= {
        "picture_features": vectors,
        "text_features": vectors.repeat(2, 0),
        "text_rows": np.arange(rows).repeat(2),
        "captions": stored(told).reshape(rows, 2, -1),
        "written": stored(written or told[::2]),
        "region_written": stored([phrase(thing) for scene in scenes for thing in scene]),
        "region_captions": stored([phrase(thing) for scene in scenes for thing in scene]),
        "region_rows": np.arange(rows).repeat(4),
        "region_cells": np.tile(list(CELLS), rows),
        "region_boxes": np.tile(np.float32([[0, 0, 0.5, 0.5]]), (4 * rows, 1)),
        "shown/images": np.zeros((1, 32, 32, 3), np.uint8),
    }
    return found


class Finished(Run):
    """A run whose files are these arrays."""

    facts = FACTS

    def predictions(self) -> dict[str, np.ndarray]:
        return self.arrays


def evaluated(arrays: dict[str, np.ndarray]) -> Evaluation:
    run = Finished(Path("seed-5"), 5)
    object.__setattr__(run, "arrays", arrays)
    return evaluate([run], "world")


def test_what_is_all_right_is_100_percent():
    found = evaluated(predictions())
    metrics = {name.removeprefix("world/"): value for name, value in found.metrics[5].items()}
    for name in ("recall_at_1_percent", "caption_attributes_percent", "caption_exact_percent", "region_color_percent",
                 "region_shape_percent", "region_size_percent"):  # fmt: skip
        assert metrics[name] == 100, name
    assert metrics["parameters_of_two_models"] == 17
    assert metrics["bleu_4"] == pytest.approx(1)
    assert [gallery.id for gallery in found.galleries] == ["captions", "retrieved", "regions"]
    assert found.galleries[0].rows[0][0].picture is not None


def test_one_wrong_word_is_one_attribute_of_one_thing_and_another_order_costs_nothing():
    arrays = predictions()
    right = texts_of(arrays["captions"][:, 1])
    assert attributes(right, arrays)["caption_exact_percent"] == 100
    words = right[0].split()
    words[words.index(next(word for word in words if word in ("small", "large")))] = "blue"
    found = attributes([" ".join(words), *right[1:]], arrays)
    assert found["caption_size_percent"] == pytest.approx(100 * 11 / 12)
    assert found["caption_exact_percent"] == pytest.approx(200 / 3)


def test_each_caption_is_a_query_and_a_picture_has_found_its_text_in_any_of_its_captions():
    arrays = predictions()
    arrays["text_features"] = arrays["text_features"].copy()
    arrays["text_features"][1] = np.float32([0, 0.5, 0])  # the second caption of the first picture is of the second
    metrics = evaluated(arrays).metrics[5]
    assert metrics["world/text_to_picture/recall_at_1_percent"] == pytest.approx(500 / 6)
    assert metrics["world/picture_to_text/recall_at_1_percent"] == 100
    assert metrics["world/recall_at_1_percent"] == pytest.approx((500 / 6 + 100) / 2)


def test_what_an_arm_was_not_trained_for_is_not_computed_and_says_why():
    arrays = {name: x for name, x in predictions().items() if not name.startswith(("written", "region"))}
    found = evaluated(arrays)
    assert "world/caption_attributes_percent" not in found.metrics[5]
    assert found.not_computed == {"caption_attributes_percent": "this arm was not trained to write"}
    arrays = {name: x for name, x in predictions().items() if not name.endswith("features")}
    found = evaluated(arrays)
    assert "world/recall_at_1_percent" not in found.metrics[5]
    assert found.not_computed["recall_at_1_percent"] == "this arm was not trained to embed"


def test_captions_of_other_pictures_have_scores_and_no_attributes():
    arrays = {name: x for name, x in predictions().items() if name not in ("cell", "color", "shape", "size")}
    del arrays["region_cells"]
    found = evaluated(arrays)
    assert "world/cider_d" in found.metrics[5]
    assert found.not_computed["caption_attributes_percent"] == "nothing is known of the things in these pictures"


def test_regions_alone_have_scores():
    kept = ("region_written", "region_captions", "region_features", "region_rows")
    found = evaluated({name: x for name, x in predictions().items() if name in kept})
    assert found.metrics[5]["world/region_rouge_l"] == pytest.approx(1)
    assert found.not_computed["recall_at_1_percent"] == "the data set describes regions, and no whole picture"


def test_a_region_is_of_the_class_that_is_most_similar():
    arrays = predictions()
    color = arrays["color"].flatten()
    arrays["region_features"], arrays["class_features/color"] = np.eye(8, dtype=np.float32)[color], np.eye(8)
    assert evaluated(arrays).metrics[5]["world/region_class_color_percent"] == 100
    arrays["class_features/color"] = np.eye(8)[[*range(1, 8), 0]]
    assert evaluated(arrays).metrics[5]["world/region_class_color_percent"] == 0


def test_words_of_captions_are_right_or_wrong():
    truth = {0: {"size": 0, "color": 0, "shape": 0}}
    text = short([{"size": 0, "color": 1, "shape": 0, "cell": 0}])
    pieces = marked(text, truth)
    assert "".join(piece for piece, _ in pieces) == text
    assert [right for _, right in pieces if right is not None] == [True, False, True]
    assert first_thing(text) == {"size": 0, "color": 1, "shape": 0}
    assert first_thing("nothing at all") == {}


def test_regions_are_shown_with_their_phrases_and_what_is_wrong_of_what_is_written():
    arrays = predictions()
    right = texts_of(arrays["region_captions"])
    wrong = ["tiny", *right[1:]] if right[0] == "tiny" else [right[1], *right[1:]]
    rows = evaluated(arrays | {"region_written": stored(wrong)}).galleries[2].rows
    assert len(rows) == 4, "those of the one picture that was kept"
    picture, phrase_, written = rows[0]
    assert picture.picture is not None and phrase_.text == [(right[0], None)]
    judged = [own for _, own in written.text if own is not None]
    assert judged == [a == b for a, b in zip(right[0].split(), right[1].split(), strict=True)]
    assert all(own in (True, None) for _, own in rows[1][2].text)
    unknown = {name: x for name, x in arrays.items() if name not in ("cell", "color", "shape", "size", "region_cells")}
    assert evaluated(unknown).galleries[2].rows[0][2].text == [(right[0], None)]


def test_a_frame_lies_in_its_box():
    found = framed(np.zeros((20, 30, 3), np.uint8), np.float32([0.0, 0.5, 0.5, 1.0]))
    red = found[..., 0] == 255
    assert red[10:, :16].any() and not red[:10].any() and not red[:, 16:].any()
    assert red[-1, :15].all() and red[10:, 0].all() and not red[13:17, 4:12].any()


def test_no_run_is_refused():
    with pytest.raises(ValueError, match="no run"):
        evaluate([], "world")
