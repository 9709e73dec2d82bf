"""Still pictures with a thing in some of their quadrants, told shortly, told in other words, and asked about.

For language models that are to say what is where. One grammar: a picture of four things is told in reading order
("large red circle , small blue star , ..."), one of fewer says where each is ("large red circle at the top left").
`described` reads such a text back.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar

import numpy as np

from lightning_modules.datasets.world.drawing import render
from lightning_modules.datasets.world.scenes import (
    CHUNK,
    COLORS,
    FRAME,
    MAX_OBJECTS,
    PLACES,
    SHAPES,
    SIZES,
    UNIT,
    Scenes,
    Stream,
    at_rest,
    boxes,
    sample_scenes,
)

CELLS = {0: "top left", 2: "top right", 6: "bottom left", 8: "bottom right"}  # of the 3 x 3 grid, in reading order
RADIUS = np.array([9000, 14000])  # by size: 4.4 and 6.8 pixels of 32
JITTER = 1500  # of a centre: 0.7 pixels of 32; the largest thing stays within its quadrant
NUMBERS = ("zero", "one", "two", "three", "four")
OPENINGS, JOINTS = ("", "there is ", "picture of ", "showing "), (" , ", " and ")
WORDINGS = [words for words in product(OPENINGS, JOINTS) if words != ("", " , ")]  # which `short` may have
WORDS = {"size": SIZES, "color": COLORS, "shape": SHAPES}
ASKED = ("color", "shape", "size", "where", "count", "exists")  # kinds of questions
THING = re.compile(
    rf"(?:\b({'|'.join(SIZES)}) )?(?:\b({'|'.join(COLORS)}) )?\b({'|'.join(SHAPES)})\b"
    rf"(?: at the ({'|'.join(CELLS.values())})\b)?"
)


@dataclass(frozen=True, kw_only=True)
class Quadrants:
    """Pictures of one to four things, each in a quadrant of its own, in reading order.

    Columns: `image`; `caption`; `captions`, a list whose first is `caption`, the others in other words;
    `regions`, a phrase for each thing; `boxes`, float32 (4 objects, 4), as in `views.Images`; `color`, `shape`, `size`
    and `cell`, (4 objects,), -1 where there is no object; `questions` and `answers`, lists of one length.

    Args:
        image_size: side of the pictures in pixels.
        objects: fewest and most things, within 1 to 4.
        colors: number of colours in use; likewise `shapes` and `sizes`.
        captions: for each picture.
        questions: for each picture, of different kinds (`ASKED`).
    """

    name: ClassVar[str] = "quadrants"
    num_classes: ClassVar[int | None] = None
    row_group: ClassVar[int] = 256

    image_size: int
    objects: Sequence[int]
    colors: int
    shapes: int
    sizes: int
    captions: int
    questions: int

    def __post_init__(self):
        if not 1 <= self.objects[0] <= self.objects[1] <= MAX_OBJECTS:
            raise ValueError(f"objects ({self.objects[0]} to {self.objects[1]}) must be a range within 1 to 4.")
        for name, words in (("colors", COLORS), ("shapes", SHAPES), ("sizes", SIZES)):
            if not 1 <= getattr(self, name) <= len(words):
                raise ValueError(f"{name} ({getattr(self, name)}) must be between 1 and {len(words)}.")
        if self.colors * self.shapes <= MAX_OBJECTS:
            raise ValueError(f"colors ({self.colors}) times shapes ({self.shapes}) must be more than {MAX_OBJECTS}.")
        if not 1 <= self.captions <= 1 + len(WORDINGS):
            raise ValueError(f"captions ({self.captions}) must be between 1 and {1 + len(WORDINGS)}.")
        if not 1 <= self.questions <= len(ASKED):
            raise ValueError(f"questions ({self.questions}) must be between 1 and {len(ASKED)}.")

    def columns(self, stream: Stream) -> dict[str, np.ndarray]:
        """The columns of a chunk, without `id`."""
        scenes = self.scenes(stream)
        grain, track = np.zeros((CHUNK, self.image_size, self.image_size), np.uint8), at_rest(scenes)
        told = self.told(scenes, stream)
        questions, answers = self.asked(scenes, stream)
        return {
            "image": render(scenes, track, grain=grain, size=self.image_size)[:, 0],
            "caption": _objects([captions[0] for captions in told]),
            "captions": _objects(told),
            "regions": _objects([[phrase(thing) for thing in things] for things in _things(scenes)]),
            "boxes": boxes(scenes, track)[:, 0],
            **{name: np.where(scenes.exists, getattr(scenes, name), -1) for name in ("color", "shape", "size", "cell")},
            "questions": _objects(questions),
            "answers": _objects(answers),
        }

    def scenes(self, stream: Stream) -> Scenes:
        """Scenes by night, which differ in their things alone; things stand in reading order."""
        drawn = sample_scenes(stream, self.objects)
        look = _order(stream, "quadrants/look", self.colors * self.shapes)[:, :MAX_OBJECTS]
        color, shape = np.divmod(look, self.shapes)
        quadrant = _order(stream, "quadrants/cell", len(CELLS))
        quadrant = np.sort(np.where(drawn.exists, quadrant, quadrant + MAX_OBJECTS), axis=1) % MAX_OBJECTS
        size = drawn.size % self.sizes
        moved = [stream.between(f"quadrants/{axis}", -JITTER, JITTER, MAX_OBJECTS) for axis in "xy"]
        flat = np.zeros(CHUNK, np.int64)
        return replace(
            drawn,
            place=flat + PLACES.index("night"),
            light=flat + UNIT,
            horizon=flat + FRAME // 2,
            hills=flat,
            grain=flat,
            color=color,
            shape=shape,
            texture=np.zeros_like(color),
            size=size,
            cell=np.array(list(CELLS))[quadrant],
            radius=RADIUS[size],
            x=FRAME // 4 + FRAME // 2 * (quadrant % 2) + moved[0],
            y=FRAME // 4 + FRAME // 2 * (quadrant // 2) + moved[1],
        )

    def told(self, scenes: Scenes, stream: Stream) -> list[list[str]]:
        """For each scene its captions: the short one, then others that say where things are, in different words."""
        wordings = _order(stream, "quadrants/wording", len(WORDINGS))[:, : self.captions - 1].tolist()
        found = []
        for things, numbers in zip(_things(scenes), wordings, strict=True):
            said = [placed(thing) for thing in things]
            words = [WORDINGS[number] for number in numbers]
            found.append([short(things), *(opening + joint.join(said) for opening, joint in words)])
        return found

    def asked(self, scenes: Scenes, stream: Stream) -> tuple[list[list[str]], list[list[str]]]:
        """For each scene questions of different kinds, and their answers."""
        kinds = _order(stream, "quadrants/kinds", len(ASKED))[:, : self.questions]
        about = stream.integers("quadrants/about", scenes.count[:, None], self.questions)
        other = stream.integers("quadrants/other", 1 << 16, self.questions)
        found = []
        for row, things in enumerate(_things(scenes)):
            found.append([
                self._ask(ASKED[kind], things, things[number], int(word))
                for kind, number, word in zip(kinds[row], about[row], other[row], strict=True)
            ])  # fmt: skip
        return [[question for question, _ in row] for row in found], [[answer for _, answer in row] for row in found]

    def _ask(self, kind: str, things: list[dict[str, int]], one: dict[str, int], word: int) -> tuple[str, str]:
        """A question of a kind and its answer; `one` is what it asks about, and `word` a random number."""
        if kind in WORDS:
            return f"what {kind} is the thing at the {CELLS[one['cell']]} ?", WORDS[kind][one[kind]]
        if kind == "where":
            return f"where is the {_look(one)} ?", CELLS[one["cell"]]
        if kind == "count":
            size = word % self.sizes
            return f"how many {SIZES[size]} things are there ?", NUMBERS[sum(x["size"] == size for x in things)]
        if word % 2:
            return f"is there a {_look(one)} ?", "yes"
        there = {(x["color"], x["shape"]) for x in things}
        absent = [look for look in product(range(self.colors), range(self.shapes)) if look not in there]
        close = [look for look in absent if (look[0] == one["color"]) != (look[1] == one["shape"])] or absent
        color, shape = close[word // 2 % len(close)]
        return f"is there a {COLORS[color]} {SHAPES[shape]} ?", "no"


def phrase(thing: Mapping[str, int]) -> str:
    """What a thing looks like: "large red circle"."""
    return f"{SIZES[thing['size']]} {_look(thing)}"


def placed(thing: Mapping[str, int]) -> str:
    """What a thing looks like, and where it is."""
    return f"{phrase(thing)} at the {CELLS[thing['cell']]}"


def short(things: Sequence[Mapping[str, int]]) -> str:
    """The caption of a scene, things in reading order; four of them need not say where they are."""
    return " , ".join(map(phrase if len(things) == len(CELLS) else placed, things))


def described(caption: str) -> dict[int, dict[str, int]]:
    """What a caption says of each cell (a key of `CELLS`): indices of `size`, `color` and `shape`, as far as said.

    A thing without a place is in the cell of its number in reading order, and beyond the fourth nowhere. Of two things
    in one cell the first counts.
    """
    names, cells, found = {name: cell for cell, name in CELLS.items()}, list(CELLS), {}
    for number, (size, color, shape, place) in enumerate(THING.findall(caption)):
        if not place and number >= len(cells):
            continue
        said = {"size": size, "color": color, "shape": shape}
        attributes = {name: WORDS[name].index(word) for name, word in said.items() if word}
        found.setdefault(names[place] if place else cells[number], attributes)
    return found


def kind_asked(question: str) -> str:
    """Of which kind (`ASKED`) a question is.

    Raises:
        ValueError: of none.
    """
    words = question.split()
    found = {"what": words[1:2], "where": ["where"], "how": ["count"], "is": ["exists"]}.get(words[0] if words else "")
    if not found or found[0] not in ASKED:
        raise ValueError(f"{question!r} is no question about things in quadrants: it must be of {', '.join(ASKED)}.")
    return found[0]


def _look(thing: Mapping[str, int]) -> str:
    return f"{COLORS[thing['color']]} {SHAPES[thing['shape']]}"


def _things(scenes: Scenes) -> list[list[dict[str, int]]]:
    names = ("size", "color", "shape", "cell")
    columns = zip(*(getattr(scenes, name).tolist() for name in names), strict=True)
    return [
        [dict(zip(names, values, strict=True)) for values in zip(*row, strict=True)][:count]
        for row, count in zip(columns, scenes.count.tolist(), strict=True)
    ]


def _order(stream: Stream, purpose: str, count: int) -> np.ndarray:
    """A random order of `range(count)` for each scene."""
    return np.argsort(stream.words(purpose, CHUNK * count).reshape(CHUNK, count), kind="stable")


def _objects(values: list) -> np.ndarray:
    return np.fromiter(values, dtype=object, count=len(values))
