"""Captions read back are the scenes they were made from; what is wrong in a caption is found."""

import numpy as np
import pytest

from lightning_modules.datasets.world import text
from lightning_modules.datasets.world.parsing import mark, parse, read
from lightning_modules.datasets.world.scenes import COLORS, PLACES, SHAPES, SIZES, TEXTURES, Stream, sample_scenes
from lightning_modules.metrics.generation import scene_agreement

STREAMS = [Stream(seed, "images/train", chunk) for seed in (0, 3) for chunk in (0, 1)]
ALL = ("size", "color", "texture", "shape")


def columns(scenes, *names):
    return {"place": scenes.place} | {name: np.where(scenes.exists, getattr(scenes, name), -1) for name in names}


@pytest.mark.parametrize(
    ("language", "ending", "unsaid"),
    [(text.dense_captions, "cell", "motion"), (text.motion_captions, "motion", "cell")],
)
def test_captions_read_back_to_their_scenes(language, ending, unsaid):
    forms = set()
    for stream in STREAMS:
        scenes = sample_scenes(stream, (1, 4))
        captions, expected = language(scenes, stream), columns(scenes, *ALL, ending)
        forms |= set(stream.integers("caption/template", 4).tolist())
        found = parse(captions)
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)
        assert (found[unsaid] == -1).all() and not found["loose"].any()
        assert set(scene_agreement(found, expected).values()) == {1.0}
        for number, caption in enumerate(captions):
            pieces = mark(caption, {name: values[number] for name, values in expected.items()})
            assert "".join(piece for piece, _ in pieces) == caption
            assert {judged for _, judged in pieces} <= {True, None}
    assert forms == {0, 1, 2, 3}


def test_captions_of_other_scenes_agree_by_chance_only():
    scenes = sample_scenes(STREAMS[0], (1, 3))
    captions = text.dense_captions(scenes, STREAMS[0])
    agreement = scene_agreement(parse(captions[1:] + captions[:1]), columns(scenes, *ALL, "cell"))
    assert 0.2 < agreement["precision"] < 0.3 and 0.2 < agreement["recall"] < 0.3 and agreement["exact"] == 0


def test_partial_captions_say_only_what_is_there():
    stream = STREAMS[0]
    scenes = sample_scenes(stream, (1, 3))
    found = parse(text.partial_captions(scenes, stream))
    agreement = scene_agreement(found | {"texture": np.full_like(found["texture"], -1)}, columns(scenes, *ALL))
    assert agreement["precision"] == 1 and 0.3 < agreement["recall"] < 0.8 and agreement["recall_texture"] == 0


def index(**words):
    kinds = {"size": SIZES, "color": COLORS, "texture": TEXTURES, "shape": SHAPES}
    return {name: kinds[name].index(word) for name, word in words.items()}


def test_what_a_network_may_write():
    assert read("").objects == [] and read("").place is None
    assert read("a big scene of nothing").objects == []
    assert read("circle").objects == [index(shape="circle", texture="solid")]
    assert read("a red red circle on a sea background").loose == [(2, 5)]
    assert read("a circling ring").objects == [index(shape="ring", texture="solid")]
    assert read("a large striped red circle").loose == [(2, 7), (8, 15)]  # not the order of the language
    reading = read("a red circle in the sea in the city")
    assert reading.place is None and len(reading.places) == 2
    assert parse(["a red circle and " * 5 + "a red circle"])["color"].shape == (1, 6)


def scene(*objects, place="sea"):
    names = ("size", "color", "texture", "shape")
    filled = [index(**dict(zip(names, each.split(), strict=True))) for each in objects]
    return {"place": np.array(PLACES.index(place))} | {
        name: np.array([each[name] for each in filled] + [-1] * (4 - len(filled))) for name in names
    }


def test_right_and_wrong_words_are_told_apart():
    marked = mark(
        "a small red circle and a large blue striped star in the city",
        scene("large blue striped star", "small red solid square"),
    )
    judged = [(piece, right) for piece, right in marked if right is not None]
    assert judged == [
        ("small", True), ("red", True), ("circle", False),
        ("large", True), ("blue", True), ("striped", True), ("star", True),
        ("city", False),
    ]  # fmt: skip


def test_an_object_that_is_not_there_and_a_loose_word_are_wrong():
    real = scene("small red solid circle", place="night")
    marked = dict(mark("a red green circle and a pink star in the night", real))
    assert marked["red"] is False and marked["green"] is False and marked["circle"] is True
    assert marked["pink"] is False and marked["star"] is False and marked["night"] is True
    assert mark("nothing at all", real) == [("nothing at all", None)] and mark("", real) == []
