"""Columns of a data set: numpy arrays as Arrow columns and back without copying pixels twice, and their digest.

| numpy | Arrow |
|---|---|
| integers, floats (rows,) | int64, float |
| integers, floats (rows, ...) | tensors of fixed shape |
| objects (rows,): str, or lists of str | string, list of string |
| pictures: uint8 (rows, ...), or bytes objects (rows,) when encoded | binary |
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

PICTURES = ("image", "video")


def infer_schema(columns: Mapping[str, np.ndarray]) -> pa.Schema:
    """The Arrow types of a data set's columns, from some of its rows."""
    return pa.schema([(name, _type(name, values)) for name, values in columns.items()])


def _type(name: str, values: np.ndarray) -> pa.DataType:
    if name in PICTURES:
        return pa.binary()
    if values.dtype == object:
        return pa.string() if isinstance(values[0], str) else pa.list_(pa.field("element", pa.string()))
    scalar = pa.float32() if values.dtype.kind == "f" else pa.int64()
    return scalar if values.ndim == 1 else pa.fixed_shape_tensor(scalar, values.shape[1:])


def picture(names: Sequence[str]) -> str:
    """Which of the columns holds the pictures."""
    return next(name for name in names if name in PICTURES)


def record_batch(
    columns: Mapping[str, np.ndarray], schema: pa.Schema, codec: str, shape: Sequence[int] | None
) -> pa.RecordBatch:
    """Rows in the types of a schema.

    Raises:
        ValueError: columns are missing, unknown or uneven, or pictures do not fit codec and shape.
    """
    if set(columns) != set(schema.names) or len({len(values) for values in columns.values()}) != 1:
        lengths = {name: len(values) for name, values in columns.items()}
        raise ValueError(f"columns have lengths {lengths}, expected {schema.names} of one length.")
    images = columns[picture(schema.names)]
    if codec == "raw" and (images.dtype != np.uint8 or images.shape[1:] != shape):
        raise ValueError(f"images are {images.dtype} {images.shape[1:]}, expected uint8 {shape} for codec 'raw'.")
    return pa.record_batch([_to_arrow(columns[field.name], field.type) for field in schema], schema=schema)


def _to_arrow(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    if isinstance(kind, pa.FixedShapeTensorType):
        values = np.ascontiguousarray(values, kind.value_type.to_pandas_dtype())
        return pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    if pa.types.is_binary(kind) and values.dtype == np.uint8:
        size = values[0].size if len(values) else 0
        offsets = np.arange(len(values) + 1, dtype=np.int32) * size
        pixels = np.ascontiguousarray(values).reshape(-1)
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(offsets), pa.py_buffer(pixels)])
    return pa.array(values.tolist(), kind) if values.dtype == object else pa.array(values, kind)


def to_numpy(column: pa.ChunkedArray, shape: Sequence[int] | None) -> np.ndarray:
    """A column as a writable array of its own, because Arrow's memory is read-only.

    Args:
        column: of any of the types above.
        shape: of the pictures, if this is a column of raw ones.
    """
    kind = column.type
    if pa.types.is_binary(kind) and shape is not None:
        return _pictures(column, shape)
    if isinstance(kind, pa.FixedShapeTensorType):
        return np.concatenate([chunk.to_numpy_ndarray() for chunk in column.chunks])
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return column.to_numpy().copy()
    return np.fromiter(column.to_pylist(), dtype=object, count=len(column))


def _pictures(column: pa.ChunkedArray, shape: Sequence[int]) -> np.ndarray:
    pixels, start = np.empty((len(column), *shape), np.uint8), 0
    for chunk in column.chunks:
        _, values = _lengths_and_bytes(chunk)
        pixels[start : start + len(chunk)] = np.frombuffer(values, np.uint8).reshape(len(chunk), *shape)
        start += len(chunk)
    return pixels


class ContentDigest:
    """SHA-256 over decoded columns: independent of Arrow's version and of how rows are cut into batches and shards."""

    def __init__(self) -> None:
        self._streams = defaultdict(hashlib.sha256)

    def update(self, batch: pa.RecordBatch) -> None:
        """Adds rows: numbers as little-endian int64 or float32; bytes, text and lists as their lengths and contents."""
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            self._update(name, column)

    def _update(self, name: str, column: pa.Array) -> None:
        kind = column.type
        if isinstance(kind, pa.FixedShapeTensorType):
            self._update(name, column.storage.flatten())
        elif pa.types.is_list(kind):
            self._streams[f"{name}/count"].update(column.value_lengths().to_numpy().astype("<i8"))
            self._update(name, column.flatten())
        elif pa.types.is_binary(kind) or pa.types.is_string(kind):
            lengths, values = _lengths_and_bytes(column)
            self._streams[f"{name}/length"].update(lengths.astype("<i8"))
            self._streams[f"{name}/bytes"].update(values)
        else:
            self._streams[name].update(column.to_numpy().astype("<f4" if pa.types.is_floating(kind) else "<i8"))

    def hexdigest(self) -> str:
        """The digest over the sorted names and digests of all streams."""
        lines = (f"{name} {stream.hexdigest()}\n" for name, stream in sorted(self._streams.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def _lengths_and_bytes(column: pa.Array) -> tuple[np.ndarray, memoryview]:
    """Of a column of bytes or text: the length of each value, and all of them in a row."""
    _, offsets, values = column.buffers()
    if not len(column):
        return np.empty(0, np.int64), memoryview(b"")
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    return np.diff(ends), memoryview(values)[ends[0] : ends[-1]] if values is not None else memoryview(b"")
