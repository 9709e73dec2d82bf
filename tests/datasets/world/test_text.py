"""Sentences parse back to the records they were made from."""

import re

import numpy as np
import pytest

from lightning_modules.datasets.world import text
from lightning_modules.datasets.world.scenes import (
    COLORS,
    COLUMNS,
    MOTIONS,
    PLACES,
    ROWS,
    SHAPES,
    SIZES,
    TEXTURES,
    Stream,
    sample_scenes,
)

STREAM = Stream(11, "clips/train", 0)
SCENES = sample_scenes(STREAM, (1, 4))
NOUN = (
    rf"an? (?:(?P<size>{'|'.join(SIZES)}) )?(?P<color>{'|'.join(COLORS)}) (?:(?P<texture>{'|'.join(TEXTURES[1:])}) )?"
    rf"(?P<shape>{'|'.join(SHAPES)})"
)
PLACE = re.compile(rf"\b({'|'.join(PLACES)})\b")


def objects(number: int) -> list[dict[str, str]]:
    """What the record says of each object of a scene."""
    said = {"size": SIZES, "color": COLORS, "texture": TEXTURES, "shape": SHAPES, "motion": MOTIONS}
    return [
        {name: words[getattr(SCENES, name)[number, slot]] for name, words in said.items()}
        | {"cell": SCENES.cell[number, slot]}
        for slot in range(SCENES.count[number])
    ]


def place(number: int) -> str:
    return PLACES[SCENES.place[number]]


def test_dense_captions_say_everything():
    for number, caption in enumerate(text.dense_captions(SCENES, STREAM)):
        found = [match.groupdict() for match in re.finditer(rf"{NOUN} at the (?P<where>\w+(?: \w+)?)(?= |$)", caption)]
        for parsed, expected in zip(found, objects(number), strict=True):
            assert (parsed["texture"] or "solid") == expected["texture"]
            assert {name: parsed[name] for name in ("size", "color", "shape")}.items() <= expected.items()
            row, column = ROWS[expected["cell"] // 3], COLUMNS[expected["cell"] % 3]
            where = "center" if expected["cell"] == 4 else f"{row} {column}"
            assert parsed["where"].startswith(where)
        assert PLACE.findall(caption) == [place(number)]


def test_motion_captions_say_every_motion():
    for number, caption in enumerate(text.motion_captions(SCENES, STREAM)):
        motions = "|".join(sorted(text.MOVING, key=len, reverse=True))
        found = [match.groupdict() for match in re.finditer(rf"{NOUN} (?P<motion>{motions})", caption)]
        for parsed, expected in zip(found, objects(number), strict=True):
            assert MOTIONS[text.MOVING.index(parsed["motion"])] == expected["motion"]
            assert (parsed["color"], parsed["shape"]) == (expected["color"], expected["shape"])
        assert PLACE.findall(caption) == [place(number)]


def test_partial_captions_say_less_but_nothing_wrong():
    captions = text.partial_captions(SCENES, STREAM)
    said = {name: 0 for name in ("size", "texture", "place", "two")}
    for number, caption in enumerate(captions):
        found = [match.groupdict() for match in re.finditer(NOUN, caption)]
        assert 1 <= len(found) <= min(2, SCENES.count[number])
        for parsed in found:
            told = {name: word for name, word in parsed.items() if word}
            assert any(told.items() <= expected.items() for expected in objects(number))
        assert PLACE.findall(caption) in ([], [place(number)])
        said["size"] += found[0]["size"] is not None
        said["texture"] += found[0]["texture"] is not None
        said["place"] += bool(PLACE.findall(caption))
        said["two"] += len(found) == 2
    share = {name: count / len(captions) for name, count in said.items()}
    assert all(0.25 < value < 0.6 for value in share.values()), share


def test_dense_captions_tell_scenes_apart_and_partial_ones_do_not():
    dense, partial = (f(SCENES, STREAM) for f in (text.dense_captions, text.partial_captions))
    assert len(set(dense)) == len(SCENES)
    assert len(set(partial)) < len(SCENES)


def test_auxiliary_captions_say_the_same_in_other_words():
    back = {other: word for word, other in text.lexicon(0.0).items()}
    for number, caption in enumerate(text.auxiliary_captions(SCENES, STREAM, 0.0)):
        words = [back[word] for word in re.findall(r"\w+", caption) if word in back]
        expected = [word for each in objects(number) for word in (each["size"], each["color"], each["texture"],
                                                                  each["shape"]) if word != "solid"]  # fmt: skip
        assert [word for word in words if word not in PLACES] == expected
        assert {word for word in words if word in PLACES} <= {place(number)}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_languages_share_as_many_content_words_as_asked_for(share):
    words = text.lexicon(share)
    kept = [word for word, other in words.items() if word == other]
    assert len(kept) == round(share * len(words))
    assert len(set(words.values())) == len(words)
    for kind in (COLORS, SHAPES, PLACES):
        assert abs(len(set(kind) & set(kept)) - share * len(kind)) < 2


def test_without_shared_words_the_languages_have_no_content_word_in_common():
    auxiliary = {w for caption in text.auxiliary_captions(SCENES, STREAM, 0.0) for w in caption.split()}
    assert not auxiliary & {*SIZES, *COLORS, *TEXTURES, *SHAPES, *PLACES}


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_other_shares_are_refused(share):
    with pytest.raises(ValueError, match=rf"shared_words \({share}\) must be between 0"):
        text.lexicon(share)


def test_subtitles_speak_of_one_object_that_does_what_they_say():
    said = {"color": 0, "shape": 0, "chat": 0}
    captions = text.subtitles(SCENES, STREAM)
    for number, caption in enumerate(captions):
        verbs = "|".join(text.SPOKEN)
        color, noun, verb = re.search(
            rf"the (?:({'|'.join(COLORS)}) )?({'|'.join(SHAPES)}|thing) ({verbs})", caption
        ).groups()
        told = {"color": color, "motion": MOTIONS[text.SPOKEN.index(verb)]}
        told |= {} if noun == "thing" else {"shape": noun}
        told = {name: word for name, word in told.items() if word}
        assert any(told.items() <= expected.items() for expected in objects(number))
        said["color"] += "color" in told
        said["shape"] += "shape" in told
        said["chat"] += any(chat in caption for chat in text.CHAT)
        assert not any(texture in caption for texture in TEXTURES)
    share = {name: count / len(captions) for name, count in said.items()}
    assert 0.65 < share["color"] < 0.85 and 0.65 < share["shape"] < 0.85 and 0.35 < share["chat"] < 0.65


def test_region_phrases_name_one_object_each():
    for number, phrases in enumerate(text.region_phrases(SCENES)):
        assert len(set(phrases)) == len(phrases) == SCENES.count[number]
        for phrase, expected in zip(phrases, objects(number), strict=True):
            words = [expected[name] for name in ("size", "color", "texture", "shape")]
            assert phrase.split() == [word for word in words if word != "solid"]


def test_every_motion_has_its_words():
    for words in (text.MOVING, text.SPOKEN):
        assert len(set(words)) == len(words) == len(MOTIONS)


def test_articles_fit():
    captions = text.dense_captions(SCENES, STREAM) + text.partial_captions(SCENES, STREAM)
    assert not [caption for caption in captions if re.search(r"\ba [aeiou]|\ban [^aeiou]", caption)]


def test_sentences_of_one_kind_do_not_depend_on_the_others():
    before = text.subtitles(SCENES, STREAM)
    text.dense_captions(SCENES, STREAM)
    assert text.subtitles(SCENES, STREAM) == before
    assert len(np.unique(before)) > 150
