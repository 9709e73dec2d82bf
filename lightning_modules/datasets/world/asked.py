"""Pictures of three things and a cover: captions, questions, and statements that are true, false or neither.

A picture has a thing in three of its quadrants; a grey cover hides the fourth, so that nobody can say what is there.
Things are large: each spreads over its whole quadrant, so that a part of one tells the rest of it. Read `told` first:
all texts are views of the same three things.

Nothing follows from a text alone: answers, labels and truth are balanced for each form of a text. Nor from a picture
alone, which is asked five kinds of questions, and has a statement of each label.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lightning_modules.datasets import storage
from lightning_modules.datasets.columns import infer_schema
from lightning_modules.datasets.contact_sheet import write_contact_sheet
from lightning_modules.datasets.tokenizers import END, MASK, PAD, START, UNKNOWN, TextTokenizer
from lightning_modules.datasets.world.drawing import render
from lightning_modules.datasets.world.quadrants import CELLS, RADIUS, Quadrants
from lightning_modules.datasets.world.scenes import CHUNK, COLORS, SHAPES, Scenes, Stream, at_rest
from lightning_modules.files import replace_folder
from lightning_modules.settings import Count

THINGS = 3  # in each picture
COVER, HIDDEN = 128, "grey cover"  # its grey level, and what it is called
KINDS = ("color", "shape", "relation", "count", "yes_no")  # of questions, one of each about each picture
LABELS = ("contradiction", "neutral", "entailment")  # of statements, one of each about each picture
NUMBERS = ("zero", "one", "two", "three")
BESIDE, UPRIGHT = ("left of", "right of"), ("above", "below")  # of the earlier thing in reading order, of the later
# How often a number is asked for where it is possible: zero, one and two are then about as frequent. Three is possible
# in one picture of 35 only.
OFTEN = {0: 1, 1: 1, 2: 4, 3: 4}
ROW_GROUP = 256


class Thing(NamedTuple):
    """What is in a quadrant (0 to 3, in reading order): indices of `COLORS` and `SHAPES`."""

    quadrant: int
    color: int
    shape: int

    @property
    def look(self) -> str:
        """Such as "red circle"; no two things of a picture have the same."""
        return f"{COLORS[self.color]} {SHAPES[self.shape]}"


class Pair(NamedTuple):
    """Two things side by side, or one above the other, the earlier one in reading order first."""

    first: Thing
    second: Thing
    words: tuple[str, str]

    def told(self, turned: int) -> str:
        """How they are to each other, from the view of the first thing or, if `turned`, of the second."""
        one, other = (self.second, self.first) if turned else (self.first, self.second)
        return f"{one.look} {self.words[turned]} {other.look}"


def prepare(
    folder: Path, *, seed: int, sizes: Mapping[str, int], image_size: Count, colors: Count, shapes: Count
) -> None:
    """Draws the data set, with a contact sheet (`sheet.png`) of its first pictures to look at.

    Columns: `image`; `caption`; `captions`, a list of three (see `told`), the first of which is `caption`;
    `questions`, `answers` and `kinds`, lists of one length; `statements` with `labels` (indices of `LABELS`), (3,);
    `partner`, the id of another picture, and `pair_statement` about both, this one being left, with `pair_label` (1 if
    true); `color`, `shape` and `cell` of each thing, (3,); `covered`, the cell of the cover.

    Args:
        folder: where shards, card and sheet go.
        seed: of the whole world; the splits have scenes of their own by their names.
        sizes: number of pictures of each split, even.
        image_size: side of the pictures in pixels, even.
        colors: number of colours in use, at least 4: so every picture lacks one.
        shapes: likewise, at least 3.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check(sizes, image_size, colors, shapes)
    sample = chunk(Stream(seed, f"asked/{next(iter(sizes))}", 0), image_size, colors, shapes)
    schema, shape = infer_schema(sample), sample["image"].shape[1:]
    with replace_folder(folder) as new:
        written = {
            split: storage.write_blocks(
                new, split, _blocks(seed, split, size, image_size, colors, shapes), "raw", shape,
                schema=schema, row_group=ROW_GROUP,
            )
            for split, size in sizes.items()
        }  # fmt: skip
        storage.write_card(
            new, name="world_asked", splits=written, codec="raw", shape=shape, num_classes=None,
            source=f"drawn: the captioned world, seed {seed}", schema=schema,
        )  # fmt: skip
        write_contact_sheet(new / "sheet.png", sample)


def _check(sizes: Mapping[str, int], image_size: int, colors: int, shapes: int) -> None:
    if not sizes or any(size < 2 or size % 2 for size in sizes.values()):
        raise ValueError(
            f"sizes ({dict(sizes)}) must give each split an even number of pictures, for example {{train: 4096}}: "
            "statements are about two of them."
        )
    if image_size < 16 or image_size % 2:
        raise ValueError(f"image_size ({image_size}) must be an even number of at least 16 pixels.")
    for name, value, least, words in (("colors", colors, THINGS + 1, COLORS), ("shapes", shapes, 3, SHAPES)):
        if not least <= value <= len(words):
            raise ValueError(f"{name} ({value}) must be between {least} and {len(words)}.")


def _blocks(
    seed: int, split: str, size: int, image_size: int, colors: int, shapes: int
) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, size, CHUNK):
        columns = chunk(Stream(seed, f"asked/{split}", start // CHUNK), image_size, colors, shapes)
        yield {name: values[: size - start] for name, values in columns.items()}


def chunk(stream: Stream, image_size: int, colors: int, shapes: int) -> dict[str, np.ndarray]:
    """The columns of a chunk of pictures; see `prepare`."""
    scenes = drawn(stream, colors, shapes)
    rows = things(scenes)
    covered = np.array([_covered(row) for row in rows])
    words = {name: stream.integers(name, 1 << 16, 8) for name in ("told", "asked", "stated", "compared")}
    asked = [questions(row, word, colors) for row, word in zip(rows, words["asked"].tolist(), strict=True)]
    stated = [statements(row, word, colors, shapes) for row, word in zip(rows, words["stated"].tolist(), strict=True)]
    partner = np.arange(CHUNK) ^ 1
    both = [compared(row, rows[other], word, colors)
            for row, other, word in zip(rows, partner, words["compared"].tolist(), strict=True)]  # fmt: skip
    captions = [told(row, word) for row, word in zip(rows, words["told"].tolist(), strict=True)]
    return {
        "id": stream.chunk * CHUNK + np.arange(CHUNK),
        "image": pictures(scenes, covered, image_size),
        "caption": _objects([said[0] for said in captions]),
        "captions": _objects(captions),
        "questions": _objects([[question for question, _ in row] for row in asked]),
        "answers": _objects([[answer for _, answer in row] for row in asked]),
        "kinds": _objects([list(KINDS) for _ in asked]),
        "statements": _objects([[statement for statement, _ in row] for row in stated]),
        "labels": np.array([[label for _, label in row] for row in stated]),
        "partner": stream.chunk * CHUNK + partner,
        "pair_statement": _objects([statement for statement, _ in both]),
        "pair_label": np.array([label for _, label in both]),
        **{name: getattr(scenes, name)[:, :THINGS] for name in ("color", "shape", "cell")},
        "covered": np.array(list(CELLS))[covered],
    }


def drawn(stream: Stream, colors: int, shapes: int) -> Scenes:
    """Scenes by night of three large things, in reading order."""
    few = Quadrants(
        image_size=16, objects=(THINGS, THINGS), colors=colors, shapes=shapes, sizes=1, captions=1, questions=1
    )
    scenes = few.scenes(stream)
    large = np.ones_like(scenes.size)
    return replace(scenes, size=large, radius=RADIUS[large])


def things(scenes: Scenes) -> list[list[Thing]]:
    """Those of each scene, in reading order."""
    quadrant = {cell: number for number, cell in enumerate(CELLS)}
    columns = (getattr(scenes, name)[:, :THINGS].tolist() for name in ("cell", "color", "shape"))
    return [
        [Thing(quadrant[cell], color, shape) for cell, color, shape in zip(*row, strict=True)]
        for row in zip(*columns, strict=True)
    ]


def pictures(scenes: Scenes, covered: Int[np.ndarray, " rows"], size: int) -> UInt8[np.ndarray, "rows size size 3"]:
    """The scenes with a cover over one quadrant of each."""
    grain = np.zeros((len(scenes), size, size), np.uint8)
    found = render(scenes, at_rest(scenes), grain=grain, size=size)[:, 0]
    half = size // 2
    for quadrant in range(len(CELLS)):
        top, left = half * (quadrant // 2), half * (quadrant % 2)
        found[covered == quadrant, top : top + half, left : left + half] = COVER
    return found


def told(row: list[Thing], words: list[int]) -> list[str]:
    """Three captions: all quadrants in reading order, both pairs of neighbours, and two things at their places.

    "red circle , grey cover , blue square , ...", "red circle above blue square , ...", and "red circle at the top left
    , ...".
    """
    at = {thing.quadrant: thing.look for thing in row}
    listed = [at.get(quadrant, HIDDEN) for quadrant in range(len(CELLS))]
    related = [pair.told(words[0] >> place & 1) for place, pair in enumerate(neighbours(row))]
    left = words[1] % THINGS  # the thing that is not told
    placed = [f"{thing.look} at the {_place(thing)}" for number, thing in enumerate(row) if number != left]
    turned = [related[::-1] if words[0] & 4 else related, placed[::-1] if words[0] & 8 else placed]
    return [" , ".join(said) for said in (listed, *turned)]


def neighbours(row: list[Thing]) -> list[Pair]:
    """The two pairs of things that are side by side or one above the other: one of each."""
    at = {thing.quadrant: thing for thing in row}
    corner = 3 - _covered(row)  # the thing that is next to both others
    found = []
    for step, words in ((1, BESIDE), (2, UPRIGHT)):
        first, second = sorted((corner, corner ^ step))
        found.append(Pair(at[first], at[second], words))
    return found


def questions(row: list[Thing], words: list[int], colors: int) -> list[tuple[str, str]]:
    """A question of each of `KINDS`, with its answer."""
    one, other = row[words[0] % THINGS], row[words[1] % THINGS]
    pair, turned = neighbours(row)[words[2] % 2], words[2] >> 1 & 1
    known, asked = (pair.first, pair.second) if turned else (pair.second, pair.first)
    return [
        (f"what color is the thing at the {_place(one)} ?", COLORS[one.color]),
        (f"what shape is the thing at the {_place(other)} ?", SHAPES[other.shape]),
        (f"what color is the thing {pair.words[turned]} the {known.look} ?", COLORS[asked.color]),
        _counted(row, words[3], words[4], colors),
        _checked(row, pair, words[5], words[6], words[7], colors),
    ]


def _counted(row: list[Thing], word: int, which: int, colors: int) -> tuple[str, str]:
    counts = [sum(thing.color == color for thing in row) for color in range(colors)]
    possible = [count for count in sorted(set(counts)) for _ in range(OFTEN[count])]
    count = possible[word % len(possible)]
    alike = [color for color in range(colors) if counts[color] == count]
    return f"how many {COLORS[alike[which % len(alike)]]} things are there ?", NUMBERS[count]


def _checked(row: list[Thing], pair: Pair, form: int, truth: int, which: int, colors: int) -> tuple[str, str]:
    """Whether something is so: of a colour at a place, or of a relation; as often yes as no."""
    answer = ("no", "yes")[truth & 1]
    if form & 1:
        thing = row[which % THINGS]
        color = thing.color if truth & 1 else (thing.color + 1 + which // THINGS % (colors - 1)) % colors
        return f"is the thing at the {_place(thing)} {COLORS[color]} ?", answer
    turned = which & 1
    one, other = (pair.second, pair.first) if turned else (pair.first, pair.second)
    words = pair.words[turned] if truth & 1 else pair.words[1 - turned]
    return f"is the {one.look} {words} the {other.look} ?", answer


def statements(row: list[Thing], words: list[int], colors: int, shapes: int) -> list[tuple[str, int]]:
    """A statement of each of `LABELS`, with its index: of what is not there, what is hidden, and what is there.

    False ones tell of a thing that is elsewhere in the picture, or change the colour or the shape.
    """
    there, wrong = row[words[0] % THINGS], row[words[1] % THINGS]
    color, shape = wrong.color, wrong.shape
    if words[2] & 1:
        other = row[(row.index(wrong) + 1 + (words[2] >> 1) % (THINGS - 1)) % THINGS]
        color, shape = other.color, other.shape
    elif words[2] & 2:
        color = (color + 1 + words[3] % (colors - 1)) % colors
    else:
        shape = (shape + 1 + words[3] % (shapes - 1)) % shapes
    hidden = Thing(_covered(row), words[4] % colors, words[5] % shapes)
    return [(f"{thing.look} at the {_place(thing)}", label)
            for label, thing in enumerate((Thing(wrong.quadrant, color, shape), hidden, there))]  # fmt: skip


def compared(row: list[Thing], other: list[Thing], words: list[int], colors: int) -> tuple[str, int]:
    """A statement about two pictures, `row` being left, and 1 if it is true, 0 if not.

    Form and truth are drawn one after the other. A form is only taken where it can be true and false, so that it tells
    nothing.
    """
    label, which = words[0] & 1, words[1]
    left, right = ({color: sum(x.color == color for x in each) for color in range(colors)} for each in (row, other))
    unequal = [color for color in left if left[color] != right[color]]
    shared = [color for color in left if left[color] and right[color]]
    single = [color for color in left if bool(left[color]) != bool(right[color])]
    if shared and (words[2] & 1 or not unequal):
        chosen = shared if label else single or [color for color in left if not left[color]]
        return f"both pictures have a {COLORS[chosen[which % len(chosen)]]} thing", label
    color = unequal[which % len(unequal)]
    more = (left[color] > right[color]) == bool(label)
    return f"more {COLORS[color]} things in the {'left' if more else 'right'} picture", label


def _covered(row: list[Thing]) -> int:
    """The quadrant without a thing."""
    return 6 - sum(thing.quadrant for thing in row)


def _place(thing: Thing) -> str:
    return list(CELLS.values())[thing.quadrant]


def _objects(values: list) -> np.ndarray:
    return np.fromiter(values, dtype=object, count=len(values))


def answers() -> list[str]:
    """All answers that a question may have."""
    return [*COLORS, *SHAPES, *NUMBERS, "yes", "no"]


@cache
def vocabulary() -> list[str]:
    """All words of these texts, in alphabetical order."""
    sentences = [
        "what color is the thing at the", "what shape", "how many things are there", "both pictures have a thing",
        "more things in the left right picture", HIDDEN,
        *CELLS.values(), *BESIDE, *UPRIGHT, *answers(),
    ]  # fmt: skip
    return sorted({word for sentence in sentences for word in sentence.split()} | {",", "?"})


def asked_tokenizer() -> TextTokenizer:
    """The words of `vocabulary`, one id each: [PAD] is 0, [CLS] 1, [MASK] 2, [UNK] 3, and [SEP] last."""
    tokens = [PAD, START, MASK, UNKNOWN, *vocabulary(), END]
    backend = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token=UNKNOWN))
    backend.add_special_tokens([PAD, START, MASK, UNKNOWN, END])
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing((END, len(tokens) - 1), (START, 1))
    backend.decoder = decoders.WordPiece(cleanup=True)
    return TextTokenizer(backend, pad=PAD, start=START, end=END, unknown=UNKNOWN, mask=MASK)
