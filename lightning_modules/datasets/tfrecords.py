"""TFRecord files and the examples in them, read and written without TensorFlow.

A record is its length (8 bytes), the checksum of these (4), its content, and the checksum of that (4), little-endian; a
checksum is a masked CRC-32C (tensorflow/core/lib/io/record_writer.h). The content is a `tf.train.Example`, or a
`tf.train.SequenceExample`, whose `context` has the same place in the message as the features of an example.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt32

POLYNOMIAL = 0x82F63B78  # of CRC-32C, reversed
MASK = 0xA282EAD8
PARTS = 512  # a long content is cut into so many parts, which are gone through side by side
HEAD, FOOT = struct.Struct("<QI"), struct.Struct("<I")
Value = list[bytes] | list[float] | list[int]


class DamagedRecord(ValueError):
    """A record that was cut off or altered."""


def places(path: Path) -> Iterator[tuple[int, int]]:
    """Where the content of each record begins, and its length in bytes; the contents themselves are not read.

    Raises:
        DamagedRecord: a length was altered, or the last record was cut off.
    """
    end = path.stat().st_size
    with path.open("rb") as file:
        at = 0
        while at < end:
            file.seek(at)
            length = _length(path, file.read(HEAD.size))
            if at + HEAD.size + length + FOOT.size > end:
                raise DamagedRecord(f"{path} was cut off: the record at byte {at} goes beyond its end")
            yield at + HEAD.size, length
            at += HEAD.size + length + FOOT.size


def _length(path: Path, head: bytes) -> int:
    if len(head) < HEAD.size:
        raise DamagedRecord(f"{path} was cut off, or is no TFRecord file")
    length, check = HEAD.unpack(head)
    if masked(head[:8]) != check:
        raise DamagedRecord(f"{path} is damaged or no TFRecord file: the checksum of a record's length is wrong")
    return length


def read(path: Path, at: int, length: int) -> bytes:
    """The content of the record at one of `places`.

    Raises:
        DamagedRecord: it is not there, or is not what was written.
    """
    try:
        with path.open("rb") as file:
            file.seek(at)
            content, foot = file.read(length), file.read(FOOT.size)
    except OSError as error:
        raise DamagedRecord(f"{path} cannot be read: {error}") from error
    if len(content) < length or len(foot) < FOOT.size or FOOT.unpack(foot)[0] != masked(content):
        raise DamagedRecord(f"{path} is damaged: the checksum of the record at byte {at} is wrong")
    return content


def write(path: Path, contents: Iterable[bytes]) -> Path:
    """Writes records, for tests and stand-ins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for content in contents:
            length = struct.pack("<Q", len(content))
            file.write(length + FOOT.pack(masked(length)) + content + FOOT.pack(masked(content)))
    return path


# Checksums


def masked(content: bytes) -> int:
    """The CRC-32C of a content as records store it: rotated, and with a constant added."""
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF


def crc32c(content: bytes) -> int:
    """CRC-32C (Castagnoli) of a content.

    The register is a linear function of the bytes. So a long content is cut into equal parts, whose registers are
    computed side by side, and those of the parts before are moved on by what a part of zeros does to each bit.
    """
    table, parts = _table(), PARTS if len(content) > 16 * PARTS else 1
    bits = np.left_shift(np.uint32(1), np.arange(32, dtype=np.uint32))
    data = np.frombuffer(content, np.uint8).astype(np.uint32)
    padded = np.concatenate([np.zeros(-len(data) % parts, np.uint32), data])  # zeros before the first do nothing
    first = slice(len(padded) - len(data), len(padded) - len(data) + 4)
    if len(data) < 4:  # too short to take in the register's initial ones
        register = 0xFFFFFFFF
        for byte in content:
            register = int(table[(register ^ byte) & 255]) ^ register >> 8
        return register ^ 0xFFFFFFFF
    padded[first] ^= 255
    columns = np.concatenate([padded.reshape(parts, -1), np.zeros((32, len(padded) // parts), np.uint32)]).T
    registers = np.concatenate([np.zeros(parts, np.uint32), bits])
    for column in np.ascontiguousarray(columns):
        registers = table[(registers ^ column) & 255] ^ registers >> 8
    found, moved = np.uint32(0), registers[parts:]
    for register in registers[:parts]:
        found = np.bitwise_xor.reduce(moved[(found & bits) > 0], initial=0) ^ register
    return int(found) ^ 0xFFFFFFFF


@cache
def _table() -> UInt32[np.ndarray, " 256"]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(POLYNOMIAL), table >> 1)
    return table


# Messages


def features(content: bytes) -> dict[str, Value]:
    """The features of an example, or of the context of a sequence example, by their names.

    Raises:
        DamagedRecord: it is no such message.
    """
    found: dict[str, Value] = {}
    try:
        for number, message in _fields(memoryview(content)):
            for entry in (entry for _, entry in _fields(message)) if number == 1 else ():
                named = dict(_fields(entry))
                found[bytes(named[1]).decode()] = _value(named[2])
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise DamagedRecord(f"a record is no tf.train.Example ({error!r})") from error
    return found


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Numbers and values of a message's fields: bytes, or an integer."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
        else:
            size, at = _varint(message, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = message[at : at + size], at + size
            if len(value) < size:
                raise ValueError("it was cut off")
        yield key >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def _value(feature: memoryview) -> Value:
    """Bytes (1), floats (2) or integers (3) of a feature; numbers may be packed or not."""
    values: Value = []
    for kind, message in _fields(feature):
        for _, value in _fields(message):
            if kind == 1:
                values.append(bytes(value))
            elif kind == 2:
                values += struct.unpack(f"<{len(value) // 4}f", value)
            elif isinstance(value, int):
                values.append(_signed(value))
            else:
                at = 0
                while at < len(value):
                    number, at = _varint(value, at)
                    values.append(_signed(number))
    return values


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def example(named: Mapping[str, Value]) -> bytes:
    """An example with these features, for tests and stand-ins; an empty list is one of bytes."""
    entries = [_field(1, _field(1, name.encode()) + _field(2, _feature(values))) for name, values in named.items()]
    return _field(1, b"".join(entries))


def _feature(values: Value) -> bytes:
    if values and isinstance(values[0], float):
        return _field(2, _field(1, struct.pack(f"<{len(values)}f", *values)))
    if values and isinstance(values[0], int):
        return _field(3, _field(1, b"".join(_bytes(value & (1 << 64) - 1) for value in values)))
    return _field(1, b"".join(_field(1, value) for value in values))


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _bytes(len(content)) + content


def _bytes(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])
