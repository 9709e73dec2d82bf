"""Things in quadrants: what is told and asked is what is drawn."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from lightning_modules.datasets.world import quadrants, text, views
from lightning_modules.datasets.world.scenes import CHUNK
from stages.composing import compose

OPTIONS = {"image_size": 32, "objects": (1, 4), "colors": 8, "shapes": 8, "sizes": 2, "captions": 5, "questions": 6}


def columns(chunk: int = 0, **options: object) -> dict[str, np.ndarray]:
    return views.chunk_columns(views.Quadrants(**OPTIONS | options), 7, "train", chunk, CHUNK)


def scene(found: dict[str, np.ndarray], row: int) -> dict[int, dict[str, int]]:
    there = np.flatnonzero(found["cell"][row] >= 0)
    return {
        int(found["cell"][row, i]): {name: int(found[name][row, i]) for name in ("size", "color", "shape")}
        for i in there
    }


@pytest.mark.parametrize("objects", [(1, 4), (2, 2), (4, 4)])
def test_every_caption_reads_back_as_the_scene(objects):
    found = columns(objects=objects)
    for row in range(CHUNK):
        assert all(quadrants.described(said) == scene(found, row) for said in found["captions"][row])
        assert found["caption"][row] == found["captions"][row][0]
        assert list(found["cell"][row][found["cell"][row] >= 0]) == sorted(scene(found, row)), "reading order"
    other = [quadrants.described(found["caption"][row]) == scene(found, row - 1) for row in range(CHUNK)]
    assert sum(other) < CHUNK // 20, "the captions of other pictures do not fit"


def test_a_text_of_a_model_says_what_it_says():
    said = quadrants.described("large red circle , blue star at the bottom right , nonsense , small green")
    assert said == {0: {"size": 1, "color": 0, "shape": 0}, 8: {"color": 2, "shape": 7}}
    assert quadrants.described("") == {}
    assert len(quadrants.described(" , ".join(["red circle"] * 6))) == 4


def test_a_thing_fills_its_box_and_stays_in_its_quadrant():
    found = columns()
    empty = columns(objects=(1, 1))["image"]
    for row in range(CHUNK):
        for slot, cell in enumerate(found["cell"][row]):
            if cell < 0:
                assert not found["boxes"][row, slot].any()
                continue
            left, top, right, bottom = found["boxes"][row, slot]
            assert 0.5 * (cell % 3 == 2) <= left < right <= 0.5 + 0.5 * (cell % 3 == 2)
            assert 0.5 * (cell // 3 == 2) <= top < bottom <= 0.5 + 0.5 * (cell // 3 == 2)
    night = np.median(empty, axis=0)
    for row in range(CHUNK):
        drawn = (np.abs(found["image"][row] - night).max(-1) > 20).reshape(2, 16, 2, 16).any((1, 3))
        assert {(r, c) for r, c in zip(*np.nonzero(drawn), strict=True)} == {
            (cell // 6, cell % 3 // 2) for cell in scene(found, row)
        }


def test_questions_are_answered_by_the_scene():
    found, answers = columns(), {kind: Counter() for kind in quadrants.ASKED}
    for row in range(CHUNK):
        things = scene(found, row)
        kinds = [quadrants.kind_asked(question) for question in found["questions"][row]]
        assert sorted(kinds) == sorted(quadrants.ASKED)
        for kind, question, answer in zip(kinds, found["questions"][row], found["answers"][row], strict=True):
            answers[kind][answer] += 1
            looks = {cell: quadrants._look(thing) for cell, thing in things.items()}
            if kind in quadrants.WORDS:
                cell = next(cell for cell, name in quadrants.CELLS.items() if question.endswith(f"at the {name} ?"))
                assert answer == quadrants.WORDS[kind][things[cell][kind]]
            elif kind == "where":
                asked = question.removeprefix("where is the ").removesuffix(" ?")
                assert [quadrants.CELLS[cell] for cell, look in looks.items() if look == asked] == [answer]
            elif kind == "count":
                size = quadrants.SIZES.index(question.split()[2])
                assert answer == quadrants.NUMBERS[sum(thing["size"] == size for thing in things.values())]
            else:
                asked = question.removeprefix("is there a ").removesuffix(" ?")
                assert answer == ("yes" if asked in looks.values() else "no")
    assert 0.4 < answers["exists"]["yes"] / CHUNK < 0.6, "no answer is right by itself"
    assert max(answers["color"].values()) < CHUNK / 4


@pytest.fixture(scope="module")
def said_of_pairs():
    """Questions and answers of as many pictures of `world_pairs` as 16 chunks have."""
    view = views.Quadrants(image_size=32, **compose("tiny", dataset="world_pairs")["dataset"]["options"])
    chunks = [views.chunk_columns(view, 7, "train", chunk, CHUNK) for chunk in range(16)]
    rows = [row for found in chunks for row in zip(found["questions"], found["answers"], strict=True)]
    return [pair for questions, answers in rows for pair in zip(questions, answers, strict=True)]


@pytest.mark.parametrize(
    ("kind", "most"),
    [("color", 0.16), ("shape", 0.18), ("size", 0.56), ("where", 0.3), ("count", 0.54), ("exists", 0.55)],
)
def test_a_question_about_a_pair_alone_does_not_tell_its_answer(said_of_pairs, kind, most):
    """The answer that was most frequent after the same question, in half of the pictures, is right as by chance."""
    own = [pair for pair in said_of_pairs if quadrants.kind_asked(pair[0]) == kind]
    seen = defaultdict(Counter)
    for question, answer in own[: len(own) // 2]:
        seen[question][answer] += 1
    judged = [(question, answer) for question, answer in own[len(own) // 2 :] if question in seen]
    assert len(judged) > 1000
    assert np.mean([seen[question].most_common(1)[0][0] == answer for question, answer in judged]) < most


def test_all_words_are_words_of_the_language_model():
    from lightning_modules.vision_language.words import TOKENS

    found = columns()
    said = {word for name in ("captions", "questions", "answers", "regions") for row in found[name]
            for line in row for word in line.split()}  # fmt: skip
    assert said <= set(TOKENS)
    assert {word for row in found["captions"] for line in row for word in line.split()} <= set(text.vocabulary())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objects": (0, 2)}, "objects"),
        ({"colors": 9}, "colors"),
        ({"colors": 2, "shapes": 2}, "times"),
        ({"captions": 0}, "captions"),
        ({"questions": 7}, "questions"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        columns(**options)


def test_no_other_question_has_a_kind():
    with pytest.raises(ValueError, match="no question"):
        quadrants.kind_asked("why ?")
