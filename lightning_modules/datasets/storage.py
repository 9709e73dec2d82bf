"""A prepared data set on disk: Parquet shards per split and `card.json`, which says what they must hold.

Shard bytes depend on the version of pyarrow and zstd, the decoded content does not: the card keeps a digest of the
content, and `read` refuses anything else.
"""

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Codec = Literal["raw", "jpeg", "png"]
Shape = tuple[int, int, int]

COLUMNS = pa.schema([("id", pa.int64()), ("image", pa.binary()), ("label", pa.int64())])
ROW_GROUP = 256
SHARD_BYTES = 256 * 2**20
WAY_OUT = "Run `dvc checkout` to restore the data set, or `dvc repro prepare` to make it again."


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
    shard_bytes: int = SHARD_BYTES,
) -> Split:
    """Writes a split block by block: memory holds one block, and a shard is closed once its images fill `shard_bytes`.

    A block has the columns of `write` and is one row group, so it should have 256 rows.

    Raises:
        ValueError: no rows, missing or uneven columns, or images that do not fit codec and shape.
    """
    digest, rows = ContentDigest(), 0
    with _ShardWriter(folder, split, COLUMNS.with_metadata(_metadata(codec, shape)), shard_bytes) as shards:
        for block in blocks:
            batch = _record_batch(block, codec, shape)
            shards.write(batch)
            digest.update(batch)
            rows += batch.num_rows
    if not rows:
        raise ValueError(f"split {split!r} of {folder} has no rows, expected at least one: check its source.")
    return Split(rows, digest.hexdigest())


def write_card(
    folder: Path,
    *,
    name: str,
    splits: Mapping[str, Split],
    codec: Codec,
    shape: Shape | None,
    num_classes: int,
    source: str,
) -> None:
    """Writes `card.json` beside the shards: what the data set is and what `read` will insist on."""
    facts = {
        "name": name,
        "source": source,
        "num_classes": num_classes,
        "codec": codec,
        "image_shape": shape,
        "columns": {field.name: str(field.type) for field in COLUMNS},
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
        `id` and `label`, int64 (rows,); `image`, uint8 (rows, H, W, C) for codec `raw`, else objects (rows,) of encoded
        bytes, to be opened with `decode`.

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
    return {
        "id": table["id"].to_numpy().copy(),  # copies, because Arrow's own memory is read-only
        "image": _images(table["image"], shape),
        "label": table["label"].to_numpy().copy(),
    }


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


def decode(image: bytes) -> np.ndarray:
    """Decodes a JPEG or PNG of any colour mode to RGB, uint8 (H, W, 3), range 0 to 255."""
    from PIL import Image

    with Image.open(io.BytesIO(image)) as opened:
        return np.array(opened.convert("RGB"))


class ContentDigest:
    """SHA-256 over decoded columns: independent of Arrow's version and of how rows are cut into batches and shards."""

    def __init__(self) -> None:
        self._streams = defaultdict(hashlib.sha256)

    def update(self, batch: pa.RecordBatch) -> None:
        """Adds rows: integers as little-endian int64; binary values as the stream of lengths and that of bytes."""
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if pa.types.is_binary(column.type):
                self._streams[f"{name}/length"].update(pc.binary_length(column).to_numpy().astype("<i8"))
                self._streams[f"{name}/bytes"].update(b"".join(column.to_pylist()))
            else:
                self._streams[name].update(column.to_numpy().astype("<i8"))

    def hexdigest(self) -> str:
        """The digest over the sorted names and digests of all streams."""
        lines = (f"{name} {stream.hexdigest()}\n" for name, stream in sorted(self._streams.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


class _ShardWriter:
    """Writes batches one after another, into a new shard whenever the last one is full."""

    def __init__(self, folder: Path, split: str, schema: pa.Schema, shard_bytes: int) -> None:
        self._folder, self._split, self._schema, self._shard_bytes = folder, split, schema, shard_bytes
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
        self._writer.write_batch(batch, row_group_size=ROW_GROUP)
        self._filled += batch["image"].nbytes
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


def _record_batch(columns: Mapping[str, np.ndarray], codec: Codec, shape: Shape | None) -> pa.RecordBatch:
    if set(columns) != set(COLUMNS.names) or len({len(values) for values in columns.values()}) != 1:
        lengths = {name: len(values) for name, values in columns.items()}
        raise ValueError(f"columns have lengths {lengths}, expected {COLUMNS.names} of one length.")
    images = columns["image"]
    if codec == "raw" and (images.dtype != np.uint8 or images.shape[1:] != shape):
        raise ValueError(f"images are {images.dtype} {images.shape[1:]}, expected uint8 {shape} for codec 'raw'.")
    values = [image.tobytes() for image in images] if codec == "raw" else list(images)
    return pa.record_batch([columns["id"], pa.array(values, pa.binary()), columns["label"]], schema=COLUMNS)


def _read_shard(path: Path, facts: dict, sha256: str) -> pa.Table:
    try:
        table = pq.read_table(path, partitioning=None, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{path} cannot be read ({error}), expected its part of the content with sha256 {sha256}. {WAY_OUT}"
        ) from error
    expected = COLUMNS.with_metadata(_metadata(facts["codec"], facts["image_shape"]))
    if not table.schema.equals(expected, check_metadata=True):
        raise ValueError(f"{path} has the schema\n{table.schema}\nbut card.json expects\n{expected}\n{WAY_OUT}")
    return table


def _digest(table: pa.Table) -> str:
    digest = ContentDigest()
    for batch in table.to_batches():
        digest.update(batch)
    return digest.hexdigest()


def _images(column: pa.ChunkedArray, shape: Sequence[int] | None) -> np.ndarray:
    values = column.to_pylist()
    if shape is None:
        return np.array(values, dtype=object)
    return np.frombuffer(bytearray().join(values), np.uint8).reshape(len(values), *shape)
