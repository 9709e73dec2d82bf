"""A prepared data set on disk: Parquet shards per split and `card.json`, which says what they must hold.

Shard bytes depend on the version of pyarrow and zstd, the decoded content does not: the card keeps a digest of the
content, and `read` refuses anything else.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_modules import rehearsal
from lightning_modules.datasets import pictures
from lightning_modules.datasets.columns import ContentDigest, picture, record_batch, to_numpy

Codec = Literal["raw", "jpeg", "png"]
Shape = tuple[int, ...]  # of a picture: H, W, C, or T, H, W, C of a clip

CLASSIFICATION = pa.schema([("id", pa.int64()), ("image", pa.binary()), ("label", pa.int64())])
ROW_GROUP = 256
SHARD_BYTES = 256 * 2**20
WAY_OUT = "Run `dvc checkout` to restore the data set, or `make repro` to make it again."


@dataclass(frozen=True)
class Split:
    """What was written for one split: its number of rows and the digest of its content."""

    rows: int
    sha256: str


def write(
    folder: Path, split: str, columns: Mapping[str, np.ndarray], codec: Codec, shape: Shape | None = None
) -> Split:
    """Writes a split that fits in memory; see `write_blocks`.

    Args:
        folder: where the shards go: a folder of `files.replace_folder`.
        split: name of the split.
        columns: `id` and `label` (rows,) of integers; `image` (rows, H, W, C) of uint8, or (rows,) of encoded bytes.
        codec: how an image is stored.
        shape: H, W, C of every image of codec `raw`; None where images differ.
    """
    rows = range(0, len(columns["id"]), ROW_GROUP)
    blocks = ({name: values[start : start + ROW_GROUP] for name, values in columns.items()} for start in rows)
    return write_blocks(folder, split, blocks, codec, shape)


def write_blocks(
    folder: Path,
    split: str,
    blocks: Iterable[Mapping[str, np.ndarray]],
    codec: Codec,
    shape: Shape | None = None,
    *,
    schema: pa.Schema = CLASSIFICATION,
    row_group: int = ROW_GROUP,
    shard_bytes: int = SHARD_BYTES,
) -> Split:
    """Writes a split block by block: memory holds one block, and a shard is closed once its images fill `shard_bytes`.

    Args:
        folder: where the shards go: the new one of `files.replace_folder`.
        split: name of the split.
        blocks: columns of the schema, in row groups of their own: a block should have a multiple of `row_group` rows.
        codec: how a picture is stored.
        shape: of every picture of codec `raw`; None where pictures differ.
        schema: the columns, with one of pictures: `image` or `video`. See `columns` for the types.
        row_group: rows that are read and decoded together.
        shard_bytes: size of a shard, before compression.

    Raises:
        ValueError: no rows, missing or uneven columns, or images that do not fit codec and shape.
    """
    digest, rows = ContentDigest(), 0
    schema = schema.with_metadata(_metadata(codec, shape))
    with _ShardWriter(folder, split, schema, row_group, shard_bytes) as shards:
        for block in blocks:
            batch = record_batch(block, schema, codec, shape).slice(0, rehearsal.left(rows))
            shards.write(batch)
            digest.update(batch)
            rows += batch.num_rows
            if rehearsal.left(rows) == 0:
                break
    if not rows:
        raise ValueError(f"split {split!r} of {folder} has no rows, expected at least one: check its source.")
    return Split(rows, digest.hexdigest())


def numbered_blocks(rows: Iterable[tuple[str, bytes, int]], max_broken: float = 0.0) -> Iterator[dict[str, np.ndarray]]:
    """Collects encoded images with their labels to blocks of one row group each, and numbers them from 0.

    Args:
        rows: name, content and label of image files.
        max_broken: largest share of them that cannot be decoded and are left out; see `pictures.sound`.
    """
    rows, start = pictures.sound(rows, max_broken), 0
    while block := list(islice(rows, ROW_GROUP)):
        _, images, labels = zip(*block, strict=True)
        ids = np.arange(start, start + len(block))
        yield {"id": ids, "image": np.array(images, dtype=object), "label": np.array(labels)}
        start += len(block)


def write_card(
    folder: Path,
    *,
    name: str,
    splits: Mapping[str, Split],
    codec: Codec,
    shape: Shape | None,
    num_classes: int | None,
    source: str,
    schema: pa.Schema = CLASSIFICATION,
) -> None:
    """Writes `card.json` beside the shards: what the data set is and what `read` will insist on."""
    facts = {
        "name": name,
        "source": source,
        "num_classes": num_classes,
        "codec": codec,
        "image_shape": shape,
        "columns": _types(schema),
        "splits": {split: written.rows for split, written in splits.items()},
        "content_sha256": {split: written.sha256 for split, written in splits.items()},
    }
    (folder / "card.json").write_text(json.dumps(facts, indent=2) + "\n")


def card(folder: Path) -> dict:
    """The facts of a prepared data set (`card.json`).

    Raises:
        ValueError: there is no card, so that `folder` is no prepared data set, or it cannot be read.
    """
    path = folder / "card.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing, expected beside the shards of a prepared data set. {WAY_OUT}")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): it was altered or cut. {WAY_OUT}") from error


def read(folder: Path, split: str) -> dict[str, np.ndarray]:
    """Reads a whole split into memory and checks it against the card.

    Returns:
        Every column by name. Classification has `id` and `label`, int64 (rows,), and `image`: uint8 (rows, H, W, C)
        for codec `raw`, else objects (rows,) of encoded bytes, to be opened with `pictures.decode`.

    Raises:
        ValueError: the split is unknown, a shard is missing or damaged, or content and card disagree.
    """
    facts = card(folder)
    if split not in facts["splits"]:
        raise ValueError(f"split {split!r} is not in {folder / 'card.json'}, expected one of {list(facts['splits'])}.")
    paths, expected = shards(folder, split), facts["content_sha256"][split]
    table = pa.concat_tables(_read_shard(path, facts, expected) for path in paths)
    found = _digest(table)
    if (table.num_rows, found) != (facts["splits"][split], expected):
        raise ValueError(
            f"{paths[0] if len(paths) == 1 else folder / f'{split}-*.parquet'} holds {table.num_rows} rows with sha256 "
            f"{found}, but card.json expects {facts['splits'][split]} rows with {expected}: shards or card were "
            f"altered. {WAY_OUT}"
        )
    shape = facts["image_shape"] if facts["codec"] == "raw" else None
    return {name: to_numpy(table[name], shape) for name in table.column_names}


def shards(folder: Path, split: str) -> list[Path]:
    """The shards of a split in order.

    Raises:
        ValueError: there is none, or one is missing: each file name says how many there must be.
    """
    found = sorted(folder.glob(f"{split}-?????-of-?????.parquet"))
    count = int(found[0].stem[-5:]) if found else 1
    expected = [folder / f"{split}-{index:05d}-of-{count:05d}.parquet" for index in range(count)]
    if found != expected:
        missing = [path.name for path in expected if path not in found]
        raise ValueError(
            f"{folder} has {len(found)} shards of split {split!r}, expected {count}: it misses {missing}. "
            "Copy them again, or run `dvc checkout` if the data set was prepared here."
        )
    return found


class _ShardWriter:
    """Writes batches one after another, into a new shard whenever the last one is full."""

    def __init__(self, folder: Path, split: str, schema: pa.Schema, row_group: int, shard_bytes: int) -> None:
        self._folder, self._split, self._schema = folder, split, schema
        self._row_group, self._shard_bytes = row_group, shard_bytes
        self._finished: list[Path] = []
        self._writer: pq.ParquetWriter | None = None
        self._filled = 0

    def __enter__(self) -> "_ShardWriter":
        return self

    def write(self, batch: pa.RecordBatch) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._folder / f"{self._split}-{len(self._finished):05d}.partial",
                self._schema,
                compression="zstd",
                use_dictionary=False,
                write_page_checksum=True,  # so that a damaged shard is named, not only its split
            )
        self._writer.write_batch(batch, row_group_size=self._row_group)
        self._filled += batch[picture(batch.schema.names)].nbytes
        if self._filled >= self._shard_bytes:
            self._finish_shard()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Closes the last shard and, unless something was raised, names all of them: a name carries their number."""
        if self._writer is not None:
            self._finish_shard()
        if kind is not None:
            return
        for index, path in enumerate(self._finished):
            path.rename(path.with_name(f"{self._split}-{index:05d}-of-{len(self._finished):05d}.parquet"))

    def _finish_shard(self) -> None:
        self._finished.append(Path(self._writer.where))
        self._writer.close()
        self._writer, self._filled = None, 0


def _metadata(codec: Codec, shape: Sequence[int] | None) -> dict[str, str]:
    return {"codec": codec, "shape": json.dumps(shape)}


def _types(schema: pa.Schema) -> dict[str, str]:
    return {field.name: str(field.type) for field in schema}


def _read_shard(path: Path, facts: dict, sha256: str) -> pa.Table:
    try:
        table = pq.read_table(path, partitioning=None, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{path} cannot be read ({error}), expected its part of the content with sha256 {sha256}. {WAY_OUT}"
        ) from error
    expected = facts["columns"], _metadata(facts["codec"], facts["image_shape"])
    found = _types(table.schema), {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    if found != expected:
        raise ValueError(f"{path} has the schema {found}, but card.json expects {expected}. {WAY_OUT}")
    return table


def _digest(table: pa.Table) -> str:
    digest = ContentDigest()
    for batch in table.to_batches():
        digest.update(batch)
    return digest.hexdigest()
