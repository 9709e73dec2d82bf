"""Sentences of the captioned world whose scenes nobody draws: for networks that learn words without pictures.

A row is a caption, and a second sentence in the auxiliary language: with label 1 it tells the same scene in other
words, with label 0 another one.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from lightning_modules.datasets import tables
from lightning_modules.datasets.world import text
from lightning_modules.datasets.world.scenes import CHUNK, MAX_OBJECTS, Stream, sample_scenes
from lightning_modules.files import replace_folder

SCHEMA = pa.schema([("id", pa.int64()), ("text", pa.string()), ("second", pa.string()), ("label", pa.int64())])


def prepare(folder: Path, *, seed: int, sizes: Mapping[str, int], objects: Sequence[int]) -> None:
    """Writes the sentences, and the first of them as `sheet.txt` to look at.

    Args:
        folder: where shards and card go.
        seed: of the whole world; the scenes are those of no picture.
        sizes: number of rows of each split.
        objects: fewest and most objects of a scene, within 1 to 4.

    Raises:
        ValueError: there is no split or row, or no such number of objects.
    """
    if not sizes or min(sizes.values()) < 1:
        raise ValueError(f"sizes ({dict(sizes)}) must give each split its number of rows, for example {{train: 4096}}.")
    if len(objects) != 2 or not 1 <= objects[0] <= objects[1] <= MAX_OBJECTS:
        raise ValueError(f"objects ({list(objects)}) must be two numbers, a range within 1 to {MAX_OBJECTS}.")
    with replace_folder(folder) as new:
        written = {
            split: tables.write_blocks(new, split, _blocks(seed, split, size, objects), SCHEMA)
            for split, size in sizes.items()
        }
        source = f"drawn: the captioned world, seed {seed}"
        tables.write_card(new, name="world_captions", splits=written, schema=SCHEMA, source=source, num_classes=2)
        first = next(_blocks(seed, next(iter(sizes)), 24, objects))
        lines = zip(first["text"], first["second"], first["label"].tolist(), strict=True)
        (new / "sheet.txt").write_text("".join(f"{label}  {said}\n   {second}\n" for said, second, label in lines))


def _blocks(seed: int, split: str, size: int, objects: Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, size, CHUNK):
        columns = chunk(Stream(seed, f"captions/{split}", start // CHUNK), objects)
        yield {name: values[: size - start] for name, values in columns.items()}


def chunk(stream: Stream, objects: Sequence[int]) -> dict[str, np.ndarray]:
    """The columns of a chunk of rows."""
    scenes, label = sample_scenes(stream, objects), stream.balanced("label", 2)
    told = np.array(text.dense_captions(scenes, stream), dtype=object)
    again = np.array(text.auxiliary_captions(scenes, stream, 0.0), dtype=object)
    return {
        "id": stream.chunk * CHUNK + np.arange(CHUNK),
        "text": told,
        "second": np.where(label == 1, again, np.roll(again, 1)),
        "label": label,
    }
