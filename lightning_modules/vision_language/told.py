"""What texts say of the things in quadrants, and texts as arrays of bytes. Imports no torch.

A caption is read back into the attributes of the things that it names (`world.quadrants.described`), so that another
order or wording costs nothing, and a word that is missing counts as a wrong one.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from lightning_modules.datasets.world.quadrants import CELLS, THING, WORDS, described

PERCENT = 100
ENLARGED = 4  # times, so that small pictures can be looked at
SMALL = 64  # pixels a side of a picture that is enlarged
Things = Mapping[int, Mapping[str, int]]  # cell -> attributes of what is there


def encoded(texts: Iterable[str]) -> UInt8[np.ndarray, "texts bytes"]:
    """Texts as UTF-8 with zeros behind."""
    rows = [text.encode() for text in texts]
    longest = max([1, *map(len, rows)])
    return np.frombuffer(b"".join(row.ljust(longest, b"\0") for row in rows), np.uint8).reshape(-1, longest).copy()


def texts_of(stored: UInt8[np.ndarray, "texts bytes"]) -> list[str]:
    """The texts of `encoded`."""
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in stored]


def things(labels: Mapping[str, np.ndarray], row: int) -> dict[int, dict[str, int]]:
    """Attributes of what is in each cell of a picture.

    Args:
        labels: `cell` and the attributes of each thing, integers (rows, things), -1 where there is none.
        row: of the picture.
    """
    columns = zip(*(labels[name][row].tolist() for name in ("cell", *WORDS)), strict=True)
    return {cell: dict(zip(WORDS, values, strict=True)) for cell, *values in columns if cell >= 0}


def told_rightly(captions: Sequence[str], truths: Sequence[Things]) -> dict[str, float]:
    """How much of what captions could say is right, in percent; a word that is missing is a wrong one.

    Args:
        captions: one of each picture.
        truths: what is in each picture.

    Returns:
        Of each attribute the share of all things; `attributes`, their mean; `exact`, captions with nothing missing and
        nothing wrong.

    Raises:
        ValueError: there is nothing in the pictures.
    """
    if not any(truths):
        raise ValueError("there is nothing in any of the pictures, so that captions have nothing to name.")
    read = [described(caption) for caption in captions]
    found = {
        name: PERCENT * float(np.mean([
            said.get(cell, {}).get(name) == thing[name]
            for said, truth in zip(read, truths, strict=True) for cell, thing in truth.items()
        ]))
        for name in WORDS
    }  # fmt: skip
    exact = [said == truth for said, truth in zip(read, truths, strict=True)]
    return found | {"attributes": float(np.mean(list(found.values()))), "exact": PERCENT * float(np.mean(exact))}


def marked(caption: str, truth: Things) -> list[tuple[str, bool | None]]:
    """A caption in pieces: words that say an attribute are right or wrong, all others are not judged."""
    names, cells = {place: cell for cell, place in CELLS.items()}, list(CELLS)
    pieces, end = [], 0
    for number, match in enumerate(THING.finditer(caption)):
        cell = names[match[4]] if match[4] else cells[number] if number < len(cells) else None
        for group, name in enumerate(WORDS, start=1):
            if match[group]:
                right = WORDS[name].index(match[group]) == truth.get(cell, {}).get(name)
                pieces += [(caption[end : match.start(group)], None), (match[group], right)]
                end = match.end(group)
    pieces.append((caption[end:], None))
    return [piece for piece in pieces if piece[0]]


def enlarged(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """A picture that can be looked at."""
    return pixels.repeat(ENLARGED, 0).repeat(ENLARGED, 1) if max(pixels.shape[:2]) <= SMALL else pixels
