"""Sentences of a world with habits: at each place the same few things are seen, which always look the same.

So a hidden word follows from the other words about its thing, and the place from the things, but only for who knows all
of them by heart: words that ask for memory. A row names a place and two of its things; its second sentence has two
more, with label 1 of the same place and with label 0 of another one.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from lightning_modules.datasets import tables
from lightning_modules.datasets.world.scenes import CHUNK, COLORS, PLACES, SHAPES, SIZES, TEXTURES, Stream
from lightning_modules.files import replace_folder
from lightning_modules.settings import Count

SCHEMA = pa.schema([("id", pa.int64()), ("text", pa.string()), ("second", pa.string()), ("label", pa.int64())])
TOLD = 2  # things in each of the two sentences
LOOKS = len(SIZES) * len(COLORS) * len(TEXTURES) * len(SHAPES)
SHOWN = 24  # rows of the sheet


def prepare(folder: Path, *, seed: int, sizes: Mapping[str, int], things: Count = 8) -> None:
    """Writes the sentences, and the first of them as `sheet.txt` to look at.

    Args:
        folder: where shards and card go.
        seed: of the habits and of the sentences.
        sizes: number of rows of each split.
        things: that are seen at each place.

    Raises:
        ValueError: there is no split or row, or so many things do not look different.
    """
    if not sizes or min(sizes.values()) < 1:
        raise ValueError(f"sizes ({dict(sizes)}) must give each split its number of rows, for example {{train: 4096}}.")
    if not 2 * TOLD <= things <= LOOKS // len(PLACES):
        raise ValueError(f"things ({things}) must be from {2 * TOLD} to {LOOKS // len(PLACES)} for each place.")
    with replace_folder(folder) as new:
        written = {
            split: tables.write_blocks(new, split, _blocks(seed, split, size, things), SCHEMA)
            for split, size in sizes.items()
        }
        source = f"drawn: the captioned world, seed {seed}"
        tables.write_card(new, name="world_habits", splits=written, schema=SCHEMA, source=source, num_classes=2)
        first = next(_blocks(seed, next(iter(sizes)), SHOWN, things))
        lines = zip(first["text"], first["second"], first["label"].tolist(), strict=True)
        (new / "sheet.txt").write_text("".join(f"{label}  {said}\n   {second}\n" for said, second, label in lines))


@cache
def phrases(seed: int, things: int) -> tuple[tuple[str, ...], ...]:
    """What is seen at each place, in words; no two things look the same."""
    drawn = Stream(seed, "habits/looks", 0).words("look", LOOKS).argsort(kind="stable")
    chosen = drawn[: len(PLACES) * things].reshape(len(PLACES), things)
    return tuple(tuple(_phrase(int(look)) for look in place) for place in chosen)


def _phrase(look: int) -> str:
    words = []
    for known in (SIZES, COLORS, TEXTURES, SHAPES):
        look, number = divmod(look, len(known))
        words.append(known[number])
    return " ".join(words)


def _blocks(seed: int, split: str, size: int, things: int) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, size, CHUNK):
        columns = chunk(Stream(seed, f"habits/{split}", start // CHUNK), phrases(seed, things))
        yield {name: values[: size - start] for name, values in columns.items()}


def chunk(stream: Stream, habits: tuple[tuple[str, ...], ...]) -> dict[str, np.ndarray]:
    """The columns of a chunk of rows."""
    things = len(habits[0])
    place, label = stream.balanced("place", len(PLACES)), stream.balanced("label", 2)
    other = (place + 1 + stream.integers("other", len(PLACES) - 1)) % len(PLACES)
    order = stream.words("order", CHUNK * things).reshape(CHUNK, things).argsort(axis=1, kind="stable")
    first, second = order[:, :TOLD], order[:, TOLD : 2 * TOLD]
    return {
        "id": stream.chunk * CHUNK + np.arange(CHUNK),
        "text": np.array([f"{PLACES[p]} {said}" for p, said in zip(place, _told(habits, place, first), strict=True)],
                         dtype=object),
        "second": np.array(_told(habits, np.where(label == 1, place, other), second), dtype=object),
        "label": label,
    }  # fmt: skip


def _told(
    habits: tuple[tuple[str, ...], ...], place: Int[np.ndarray, " rows"], things: Int[np.ndarray, "rows told"]
) -> list[str]:
    return [" ".join(habits[p][t] for t in row) for p, row in zip(place.tolist(), things.tolist(), strict=True)]
