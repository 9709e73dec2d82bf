"""Animated PNGs on the page: the still that takes the place of one for readers who want no motion."""

import struct
from base64 import b64decode, b64encode

SIGNATURE = b"\x89PNG\r\n\x1a\n"
OF_THE_ANIMATION = (b"acTL", b"fcTL", b"fdAT")


def still(png: str) -> str | None:
    """The first frame of an animated PNG, itself a PNG, both in base64; None if it does not move."""
    content = b64decode(png)
    kept, at, moves = [SIGNATURE], len(SIGNATURE), False
    while at < len(content):
        (length,), kind = struct.unpack(">I", content[at : at + 4]), content[at + 4 : at + 8]
        chunk, at = content[at : at + 12 + length], at + 12 + length  # length, kind, content, checksum
        moves |= kind == b"acTL"
        if kind not in OF_THE_ANIMATION:
            kept.append(chunk)
    return b64encode(b"".join(kept)).decode() if moves else None
