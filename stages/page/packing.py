"""PNGs of the page, made smaller in a way that gives the same bytes on every machine.

What zlib writes depends on its version, so the PNGs in results are not compressed. For the page, deflate (RFC 1951) is
written here: with its fixed codes, and repeats of the pixel before as the only matches. Pictures with plain areas, and
enlarged ones, become many times smaller.
"""

import struct
import zlib
from base64 import b64encode
from functools import cache, lru_cache

import numpy as np

from stages.page.moving import SIGNATURE, chunks

DATA = {b"IDAT": 8, b"fdAT": 12}  # chunks with pixels, and where these begin: later frames have a number before
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by the colour type
SHORTEST, LONGEST = 3, 258  # matches
BLOCK = 0b011  # the last one, with fixed codes: three bits, the first one lowest
MOST_BITS = 18  # of a symbol: 8 for a length, 5 more, 5 for the distance


@lru_cache(maxsize=256)  # a gallery may show a picture in several rows
def packed(png: str) -> str:
    """A PNG with the same pixels, frames and further chunks, in base64; the given one if that is not larger."""
    given, new, number = list(chunks(png)), [], 0
    distance = SAMPLES[given[0][1][17]]
    while given:
        kind, chunk = given.pop(0)
        content = chunk[8:-4]
        if kind in DATA:
            data = chunk[DATA[kind] : -4]
            while given and given[0][0] == kind:
                data += given.pop(0)[1][DATA[kind] : -4]
            content = content[: DATA[kind] - 8] + deflated(zlib.decompress(data), distance)
        if kind in (b"fcTL", b"fdAT"):  # numbered in one sequence, and several chunks may have become one
            content, number = struct.pack(">I", number) + content[4:], number + 1
        new.append(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
    found = b64encode(SIGNATURE + b"".join(new)).decode()
    return found if len(found) < len(png) else png


def deflated(data: bytes, distance: int) -> bytes:
    """A zlib stream in which bytes that are equal to those `distance` (1 to 4) before are written as repeats."""
    given = np.frombuffer(data, np.uint8)
    equal = np.zeros(len(given), bool)
    equal[distance:] = given[distance:] == given[:-distance]
    ends = np.flatnonzero(np.diff(np.concatenate([[False], equal, [False]]).astype(np.int8)))
    starts, lengths = ends[::2], ends[1::2] - ends[::2]
    within, run = np.zeros(len(given), np.int64), np.zeros(len(given), np.int64)
    within[equal] = np.flatnonzero(equal) - np.repeat(starts, lengths)
    run[equal] = np.repeat(lengths, lengths)
    length = np.minimum(run - within // LONGEST * LONGEST, LONGEST)  # of the match that a byte belongs to
    matched = equal & (length >= SHORTEST)
    written = ~matched | (within % LONGEST == 0)
    literals, matches = _codes(distance)
    symbols = np.where(matched[written, None], matches[length[written]], literals[given[written]])
    bits = (symbols[:, :1] >> np.arange(MOST_BITS)) & 1
    stream = bits[np.arange(MOST_BITS) < symbols[:, 1:]]
    head, end = [BLOCK >> bit & 1 for bit in range(3)], [0] * 7
    block = np.packbits(np.concatenate([head, stream, end]).astype(np.uint8), bitorder="little")
    return b"\x78\x01" + block.tobytes() + struct.pack(">I", zlib.adler32(data))


@cache
def _codes(distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each literal, and of each length of a match: its bits, the first one lowest, and how many they are."""

    def turned(code: int, bits: int) -> int:
        return int(f"{code:0{bits}b}"[::-1], 2)

    literals = [(turned(0x30 + v, 8), 8) if v < 144 else (turned(0x190 + v - 144, 9), 9) for v in range(256)]
    matches = [(0, 0)] * SHORTEST
    for length in range(SHORTEST, LONGEST + 1):
        extra = max((length - 3).bit_length() - 3, 0)
        symbol, rest = 257 + 4 * extra + ((length - 3) >> extra), (length - 3) & ((1 << extra) - 1)
        if length == LONGEST:  # has a code of its own
            symbol, rest, extra = 285, 0, 0
        code, bits = (symbol - 256, 7) if symbol < 280 else (0xC0 + symbol - 280, 8)
        value = turned(code, bits) | rest << bits | turned(distance - 1, 5) << (bits + extra)
        matches.append((value, bits + extra + 5))
    return np.array(literals), np.array(matches)
