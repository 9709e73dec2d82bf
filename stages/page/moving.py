"""Animated PNGs on the page: the still that takes the place of one for readers who want no motion, and their sound."""

import struct
from base64 import b64decode, b64encode
from collections.abc import Container, Iterable, Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
OF_THE_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
SOUND = b"soUd"  # a chunk of our own with a WAV file, which programs that do not know it pass over


def still(png: str) -> str | None:
    """The first frame of an animated PNG, itself a PNG, both in base64; None if it does not move."""
    parts = list(chunks(png))
    if all(kind != b"acTL" for kind, _ in parts):
        return None
    return _without(parts, OF_THE_ANIMATION)


def sound(png: str) -> str | None:
    """The WAV file in a PNG, both in base64; None if it has none."""
    found = [chunk[8:-4] for kind, chunk in chunks(png) if kind == SOUND]
    return b64encode(found[0]).decode() if found else None


def silent(png: str) -> str:
    """A PNG without the sound in it, both in base64."""
    parts = list(chunks(png))
    return _without(parts, (SOUND,)) if any(kind == SOUND for kind, _ in parts) else png


def _without(parts: Iterable[tuple[bytes, bytes]], kinds: Container[bytes]) -> str:
    return b64encode(SIGNATURE + b"".join(chunk for kind, chunk in parts if kind not in kinds)).decode()


def chunks(png: str) -> Iterator[tuple[bytes, bytes]]:
    """Kind and bytes of each chunk: length, kind, content, checksum."""
    content = b64decode(png)
    at = len(SIGNATURE)
    while at < len(content):
        (length,), kind = struct.unpack(">I", content[at : at + 4]), content[at + 4 : at + 8]
        chunk, at = content[at : at + 12 + length], at + 12 + length
        yield kind, chunk
