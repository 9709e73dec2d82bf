"""Captions of the captioned world read back into records: what `world.text` says, and what a model says instead.

A caption that a network wrote may say anything. An object is read wherever a shape is named, with the words that lead
to it and the place or motion that follows; words of the language that belong to no object are counted, not passed over.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lightning_modules.datasets.world.scenes import COLORS, COLUMNS, MAX_OBJECTS, PLACES, ROWS, SHAPES, SIZES, TEXTURES
from lightning_modules.datasets.world.text import MOVING
from lightning_modules.metrics.generation import match_objects

CELLS = tuple(f"{row} {column}".replace("middle center", "center") for row in ROWS for column in COLUMNS)
WORDS = {"size": SIZES, "color": COLORS, "texture": TEXTURES, "shape": SHAPES, "cell": CELLS, "motion": MOVING}
SOLID = TEXTURES.index("solid")  # which captions leave out
Span = tuple[int, int]  # of letters in a caption


def _any(words: Iterable[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


OBJECT = re.compile(
    rf"(?:\b(?P<size>{_any(SIZES)}) )?(?:\b(?P<color>{_any(COLORS)}) )?(?:\b(?P<texture>{_any(TEXTURES[1:])}) )?"
    rf"\b(?P<shape>{_any(SHAPES)})\b(?: at the (?P<cell>{_any(CELLS)})\b| (?P<motion>{_any(MOVING)})\b)?"
)
PLACE = re.compile(rf"\b(?:{_any(PLACES)})\b")
LOOSE = re.compile(rf"\b(?:{_any(word for words in WORDS.values() for word in words)})\b")


class Reading(NamedTuple):
    """What a caption says.

    Attributes:
        objects: for each object the index of each attribute that is said of it, as in `world.scenes`.
        spans: likewise where the words stand.
        place: index to `PLACES`; None where none is named, or two.
        places: where places are named.
        loose: where words stand that describe no object.
    """

    objects: list[dict[str, int]]
    spans: list[dict[str, Span]]
    place: int | None
    places: list[Span]
    loose: list[Span]


def read(caption: str) -> Reading:
    """Read one dense caption or caption of motion; an object with no texture said is solid, as the language has it."""
    found = list(OBJECT.finditer(caption))
    spans = [{name: match.span(name) for name, word in match.groupdict().items() if word} for match in found]
    objects = [
        {"texture": SOLID} | {name: WORDS[name].index(caption[slice(*span)]) for name, span in said.items()}
        for said in spans
    ]
    named = list(PLACE.finditer(caption))
    places = {match.group() for match in named}
    owned = {span for said in spans for span in said.values()}
    loose = [match.span() for match in LOOSE.finditer(caption) if match.span() not in owned]
    place = PLACES.index(places.pop()) if len(places) == 1 else None
    return Reading(objects, spans, place, [match.span() for match in named], loose)


def parse(captions: Sequence[str]) -> dict[str, np.ndarray]:
    """What captions say, as the columns that a data set of the world has for its scenes.

    Returns:
        `place`, int64 (captions,); `size`, `color`, `texture`, `shape`, `cell` and `motion`, int64 (captions, objects);
        -1 where nothing is said. `loose`, int64 (captions,): number of words that describe no object.
    """
    readings = [read(caption) for caption in captions]
    width = max([MAX_OBJECTS, *(len(reading.objects) for reading in readings)])
    columns = {name: np.full((len(readings), width), -1) for name in WORDS}
    for row, reading in enumerate(readings):
        for slot, said in enumerate(reading.objects):
            for name, value in said.items():
                columns[name][row, slot] = value
    columns["place"] = np.array([-1 if reading.place is None else reading.place for reading in readings], np.int64)
    return columns | {"loose": np.array([len(reading.loose) for reading in readings], np.int64)}


def mark(caption: str, scene: Mapping[str, np.ndarray | np.integer]) -> list[tuple[str, bool | None]]:
    """A caption cut into pieces, each right or wrong about a scene; None where a piece says nothing of it.

    Args:
        caption: what was said.
        scene: `place` and the attributes of the objects (objects,), -1 where there is none; attributes that are not
            given are not judged.
    """
    reading = read(caption)
    names = [name for name in WORDS if name in scene]
    said = {name: np.array([[each.get(name, -1) for each in reading.objects]], np.int64) for name in names}
    partner = match_objects(said, {name: np.asarray(scene[name])[None] for name in names})[0]
    judged = dict.fromkeys(reading.loose, False)
    judged |= dict.fromkeys(reading.places, reading.place == int(scene["place"]))
    for number, spans in enumerate(reading.spans):
        for name in set(spans) & set(names):
            real = partner[number]
            judged[spans[name]] = bool(real >= 0 and scene[name][real] == reading.objects[number][name])
    pieces, done = [], 0
    for start, end in sorted(judged):
        pieces += [(caption[done:start], None), (caption[start:end], judged[start, end])]
        done = end
    return [piece for piece in [*pieces, (caption[done:], None)] if piece[0]]
