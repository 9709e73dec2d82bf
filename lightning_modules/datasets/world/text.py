"""Languages of the captioned world: sentences about scenes, each a view that says exactly what it says.

Captions come in one language and three measures (dense, partial, of motion); the auxiliary language says the same with
other words and another grammar; subtitles are speech: they leave much out, and talk of other things too.
"""

from collections.abc import Iterator

from lightning_modules.datasets.world.scenes import (
    COLORS,
    COLUMNS,
    MAX_OBJECTS,
    PLACES,
    ROWS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scenes,
    Stream,
)

# The auxiliary language's word for each content word, interleaved so that any share of it has words of every kind.
TRANSLATION = {
    "red": "crimson", "circle": "disc", "meadow": "field", "green": "emerald", "square": "block", "striped": "lined",
    "blue": "azure", "triangle": "wedge", "desert": "dunes", "yellow": "golden", "diamond": "rhomb", "small": "little",
    "purple": "violet", "ring": "hoop", "sea": "water", "orange": "amber", "cross": "plus", "checkered": "chequy",
    "cyan": "teal", "bar": "plank", "snow": "ice", "pink": "rosy", "star": "spark", "banded": "barred", "large": "big",
    "night": "dark", "city": "street",
}  # fmt: skip
MOVING = ("at rest", "moving left", "moving right", "moving up", "moving down", "circling clockwise",
          "circling counterclockwise", "growing", "shrinking")  # fmt: skip
SPOKEN = ("stays there", "goes left", "goes right", "goes up", "drops down", "turns clockwise", "turns the other way",
          "gets bigger", "gets smaller")  # fmt: skip
FILLERS = ("okay so", "um", "you know", "right", "well", "now", "so", "alright")
CHAT = ("let me show you", "watch this", "here we go", "do not forget to subscribe", "as i said before", "look at that",
        "i really like this part")  # fmt: skip
# What the sentences below say between the words of the scene, the moving, the spoken and the chat.
GRAMMAR = "a an the and at in on of by near with there is scene background picture showing thing ,"


def vocabulary() -> list[str]:
    """Every word that a sentence of any of the languages can contain, and the comma, in alphabetical order."""
    scene = (*COLORS, *SHAPES, *TEXTURES, *SIZES, *PLACES, *ROWS, *COLUMNS)
    said = " ".join((*scene, *TRANSLATION.values(), *MOVING, *SPOKEN, *FILLERS, *CHAT, GRAMMAR))
    return sorted(set(said.split()))


def region_phrases(scenes: Scenes) -> list[list[str]]:
    """For each object of each scene a phrase that fits no other object of it: "large red striped circle"."""
    return [[" ".join(words) for words in objects] for objects, _ in _words(scenes)]


def dense_captions(scenes: Scenes, stream: Stream) -> list[str]:
    """All objects with all that can be seen of them, where they are, and the place."""
    return _captions(
        scenes, stream, [[f"at the {_position(cell)}" for cell in cells] for cells in scenes.cell.tolist()]
    )


def motion_captions(scenes: Scenes, stream: Stream) -> list[str]:
    """All objects of a clip with all that can be seen of them, how they move, and the place."""
    return _captions(scenes, stream, [[MOVING[motion] for motion in motions] for motions in scenes.motion.tolist()])


def class_captions(scenes: Scenes) -> list[str]:
    """The first object's colour, shape and motion, in one form: the same words for all scenes that agree in these."""
    looks = zip(*(getattr(scenes, name)[:, 0].tolist() for name in ("color", "shape", "motion")), strict=True)
    return [f"{_noun([COLORS[color], SHAPES[shape]])} {MOVING[motion]}" for color, shape, motion in looks]


def _captions(scenes: Scenes, stream: Stream, endings: list[list[str]]) -> list[str]:
    template = stream.integers("caption/template", 4)
    captions = []
    for number, (objects, place) in enumerate(_words(scenes)):
        body = " and ".join(f"{_noun(words)} {end}" for words, end in zip(objects, endings[number], strict=False))
        forms = (
            f"{body} in the {place}",
            f"in the {place} there is {body}",
            f"a {place} scene with {body}",
            f"{body} on a {place} background",
        )
        captions.append(forms[template[number]])
    return captions


def partial_captions(scenes: Scenes, stream: Stream) -> list[str]:
    """One or two objects; size, texture and place are each said half of the time; never where an object is."""
    first = stream.integers("partial/first", scenes.count)
    both, says_place = stream.integers("partial/count", 2), stream.integers("partial/place", 2)
    says_size, says_texture = (stream.integers(f"partial/{name}", 2, MAX_OBJECTS) for name in ("size", "texture"))
    captions = []
    for number, (objects, place) in enumerate(_words(scenes)):
        chosen = [(first[number] + step) % len(objects) for step in range(min(1 + both[number], len(objects)))]
        phrases = []
        for index in chosen:
            size, color, *texture, shape = objects[index]
            said = [size] * says_size[number, index] + [color] + texture * says_texture[number, index] + [shape]
            phrases.append(_noun(said))
        captions.append(" and ".join(phrases) + (f" in the {place}" if says_place[number] else ""))
    return captions


def auxiliary_captions(scenes: Scenes, stream: Stream, shared_words: float) -> list[str]:
    """What can be seen of all objects, and mostly the place, in the auxiliary language.

    Args:
        scenes: what is described; motion and position are not.
        stream: of the chunk.
        shared_words: see `lexicon`.
    """
    words = lexicon(shared_words)
    template = stream.integers("auxiliary/template", 4)
    captions = []
    for number, (objects, place) in enumerate(_words(scenes)):
        body, place = ", ".join(" ".join(words[word] for word in object_) for object_ in objects), words[place]
        forms = f"picture of {body} by the {place}", f"{body} near {place}", f"{place} with {body}", f"showing {body}"
        captions.append(forms[template[number]])
    return captions


def subtitles(scenes: Scenes, stream: Stream, shared_words: float = 1.0) -> list[str]:
    """What a voice says over a clip: one object's motion, its colour and shape three times of four, and small talk.

    Args:
        scenes: what is spoken of.
        stream: of the chunk.
        shared_words: see `lexicon`; the voice has words of its own for the colours and shapes that are not shared.
    """
    words = lexicon(shared_words)
    spoken = stream.integers("subtitle/object", scenes.count)
    says_color, says_shape = (stream.integers(f"subtitle/{name}", 4) > 0 for name in ("color", "shape"))
    filler, chat = stream.integers("subtitle/filler", len(FILLERS)), stream.integers("subtitle/chat", len(CHAT))
    when = stream.integers("subtitle/when", 4)  # small talk comes before (0), after (1), or not at all
    captions = []
    for number, index in enumerate(spoken):
        color = [words[COLORS[scenes.color[number, index]]]] if says_color[number] else []
        shape = words[SHAPES[scenes.shape[number, index]]] if says_shape[number] else "thing"
        parts = [" ".join([FILLERS[filler[number]], "the", *color, shape, SPOKEN[scenes.motion[number, index]]])]
        if when[number] < 2:
            parts.insert(when[number], CHAT[chat[number]])
        captions.append(" ".join(parts))
    return captions


def lexicon(shared_words: float) -> dict[str, str]:
    """The auxiliary language's word for each content word, of which the share `shared_words` is the same word.

    Raises:
        ValueError: the share is not between 0 and 1.
    """
    if not 0 <= shared_words <= 1:
        raise ValueError(f"shared_words ({shared_words}) must be between 0 (no word in common) and 1 (all).")
    kept = list(TRANSLATION)[: round(shared_words * len(TRANSLATION))]
    return TRANSLATION | {word: word for word in kept}


def _words(scenes: Scenes) -> Iterator[tuple[list[list[str]], str]]:
    """For each scene the words of each object (size, colour, texture unless solid, shape), and that of the place."""
    looks = zip(*(getattr(scenes, name).tolist() for name in ("count", "size", "color", "texture", "shape", "place")),
                strict=True)  # fmt: skip
    for count, *objects, place in looks:
        described = [
            [SIZES[size], COLORS[color], *([TEXTURES[texture]] if texture else []), SHAPES[shape]]
            for size, color, texture, shape in list(zip(*objects, strict=True))[:count]
        ]
        yield described, PLACES[place]


def _noun(words: list[str]) -> str:
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def _position(cell: int) -> str:
    row, column = ROWS[cell // 3], COLUMNS[cell % 3]
    return "center" if (row, column) == ("middle", "center") else f"{row} {column}"
