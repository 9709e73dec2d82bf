"""Rows without pictures on disk: texts and sounds, in the same Parquet shards and with the same card as pictures.

The card says that there is no picture by the codec `none`. `read` takes a split as a whole, `streaming.RowGroups` some
rows of it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_modules import rehearsal
from lightning_modules.datasets import storage
from lightning_modules.datasets.columns import ContentDigest, to_numpy
from lightning_modules.datasets.storage import WAY_OUT, Split

CODEC = "none"  # of pictures that are not there
ROW_GROUP = 256
SHARD_BYTES = 256 * 2**20
Block = Mapping[str, Sequence | np.ndarray]


@dataclass
class _Shards:
    """What has been written of a split."""

    paths: list[Path]
    rows: int = 0


def write_blocks(
    folder: Path, split: str, blocks: Iterable[Block], schema: pa.Schema, *, row_group: int = ROW_GROUP,
    shard_bytes: int = SHARD_BYTES,
) -> Split:  # fmt: skip
    """Writes a split block by block; memory holds one block.

    Args:
        folder: where the shards go: the new one of `files.replace_folder`.
        split: name of the split.
        blocks: columns of the schema.
        schema: of strings, lists of strings, bytes, int64 and float.
        row_group: rows that are read and decoded together.
        shard_bytes: size of a shard, before compression.

    Raises:
        ValueError: there is no row.
    """
    digest, written = ContentDigest(), _Shards([])
    schema = schema.with_metadata({"codec": CODEC, "shape": "null"})
    writer, filled = None, 0
    for batch in _batches(blocks, schema):
        if writer is None:
            path = folder / f"{split}-{len(written.paths):05d}.partial"
            writer, filled = pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True), 0
            written.paths.append(path)
        writer.write_batch(batch, row_group_size=row_group)
        digest.update(batch)
        written.rows, filled = written.rows + len(batch), filled + batch.nbytes
        if filled >= shard_bytes:
            writer = writer.close()
    if writer is not None:
        writer.close()
    if not written.rows:
        raise ValueError(f"split {split!r} of {folder} has no rows, expected at least one: check its source.")
    for number, path in enumerate(written.paths):
        path.rename(path.with_name(f"{split}-{number:05d}-of-{len(written.paths):05d}.parquet"))
    return Split(written.rows, digest.hexdigest())


def _batches(blocks: Iterable[Block], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The blocks as batches; a rehearsal has the first rows only."""
    rows = 0
    for block in blocks:
        arrays = [pa.array(_plain(block[field.name]), field.type) for field in schema]
        batch = pa.record_batch(arrays, schema=schema).slice(0, rehearsal.left(rows))
        yield batch
        rows += len(batch)
        if rehearsal.left(rows) == 0:
            return


def _plain(values: Sequence | np.ndarray) -> Sequence:
    return values.tolist() if isinstance(values, np.ndarray) else values


def read(folder: Path, split: str) -> dict[str, np.ndarray]:
    """Reads a whole split into memory and checks it against the card.

    Returns:
        Every column by name, numbers as int64 or float32, everything else as objects.

    Raises:
        ValueError: the split is unknown, a shard is missing or damaged, or content and card disagree.
    """
    facts = storage.card(folder)
    if split not in facts["splits"]:
        raise ValueError(f"split {split!r} is not in {folder / 'card.json'}, expected one of {list(facts['splits'])}.")
    paths, digest = storage.shards(folder, split), ContentDigest()
    try:
        table = pa.concat_tables(pq.read_table(path, partitioning=None) for path in paths)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{paths[0]} or a shard beside it cannot be read ({error}). {WAY_OUT}") from error
    for batch in table.to_batches():
        digest.update(batch)
    expected = facts["splits"][split], facts["content_sha256"][split]
    if (table.num_rows, digest.hexdigest()) != expected:
        raise ValueError(
            f"{paths[0]} and the shards beside it hold {table.num_rows} rows, but not the content of the "
            f"{expected[0]} rows "
            f"that card.json expects: shards or card were altered. {WAY_OUT}"
        )
    return {name: to_numpy(table[name], None) for name in table.column_names}


def blocks_of(rows: Iterable[Mapping[str, object]], size: int = ROW_GROUP) -> Iterator[dict[str, list]]:
    """Rows, collected to blocks of columns."""
    rows = iter(rows)
    while block := list(islice(rows, size)):
        yield {name: [row[name] for row in block] for name in block[0]}


def write_card(
    folder: Path,
    *,
    name: str,
    splits: Mapping[str, Split],
    schema: pa.Schema,
    source: str,
    num_classes: int | None = None,
    **facts: object,
) -> None:
    """Writes `card.json` beside the shards.

    Args:
        folder: of the shards.
        name: of the data set.
        splits: what was written.
        schema: of all splits.
        source: where the rows come from.
        num_classes: of the column `label`, where there is one.
        facts: further facts of the data set.
    """
    card = {
        "name": name,
        "source": source,
        "num_classes": num_classes,
        "codec": CODEC,
        "image_shape": None,
        "columns": {field.name: str(field.type) for field in schema},
        "splits": {split: written.rows for split, written in splits.items()},
        "content_sha256": {split: written.sha256 for split, written in splits.items()},
        **facts,
    }
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
