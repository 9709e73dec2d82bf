"""Smaller PNGs of the page: the same pixels, and bytes that depend on no version of zlib."""

import hashlib
import struct
import zlib
from base64 import b64decode, b64encode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from lightning_modules.runs import Picture
from stages.page import packing
from stages.page.moving import SIGNATURE, chunks, still


def pixels_of(png):
    image = Image.open(BytesIO(b64decode(png)))
    frames = []
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        frames.append(np.asarray(image.convert("RGB")))
    return np.stack(frames)


def enlarged(seed, side=16, scale=8):
    small = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    return small.repeat(scale, 0).repeat(scale, 1)


@pytest.mark.parametrize("distance", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a",
        bytes(10_000),
        bytes(range(256)) * 3,
        *(b"xyz" + bytes(n) for n in (2, 3, 4, 257, 258, 259, 260, 261, 262, 516, 519)),
        np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes(),
        np.random.default_rng(1).integers(0, 2, 5000, np.uint8).repeat(5).tobytes(),
    ],
)
def test_what_is_deflated_is_read_by_zlib(data, distance):
    assert zlib.decompress(packing.deflated(data, distance)) == data


def test_every_length_of_a_match_has_its_code():
    for length in range(packing.SHORTEST, packing.LONGEST + 1):
        data = b"\x07" * (length + 1)
        stream = packing.deflated(data, 1)
        assert zlib.decompress(stream) == data
        assert len(stream) <= 2 + 5 + 4, "one literal, one match"


def test_an_enlarged_picture_becomes_many_times_smaller_and_keeps_its_pixels_and_its_bytes_are_fixed():
    picture = Picture.of(enlarged(0), "noise")
    small = packing.packed(picture.png)
    assert np.array_equal(pixels_of(small), pixels_of(picture.png))
    assert len(small) < len(picture.png) / 12
    assert hashlib.sha256(small.encode()).hexdigest()[:16] == "c51a88e7db60ae87"


def test_noise_stays_as_it_is():
    picture = Picture.of(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), "noise")
    assert packing.packed(picture.png) == picture.png


def test_a_clip_keeps_its_frames_also_if_a_frame_lies_in_several_chunks():
    frames = [Image.fromarray(enlarged(seed)) for seed in range(4)]
    file = BytesIO()
    frames[0].save(file, "PNG", compress_level=0, save_all=True, append_images=frames[1:], duration=100, loop=0)
    png = b64encode(file.getvalue()).decode()
    parts, number = [], 0
    for kind, chunk in chunks(png):
        content = chunk[8:-4]
        start, pieces = (4, 3) if kind == b"fdAT" else (0, 1)
        body = content[start:]
        for piece in range(pieces):
            part = body[len(body) * piece // pieces : len(body) * (piece + 1) // pieces]
            if kind in (b"fcTL", b"fdAT"):
                part, number = struct.pack(">I", number) + (part[4:] if kind == b"fcTL" else part), number + 1
            parts.append(struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part)))
    split = b64encode(SIGNATURE + b"".join(parts)).decode()
    expected = pixels_of(png)
    assert len(expected) == 4 and np.array_equal(pixels_of(split), expected)
    for given in (png, split):
        small = packing.packed(given)
        assert len(small) < len(png) / 12 and np.array_equal(pixels_of(small), expected)
    assert np.array_equal(pixels_of(still(small)), expected[:1])
