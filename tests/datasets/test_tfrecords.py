"""TFRecords: checksums, messages and damage. The checksums of RFC 3720 (B.4) and a record that TensorFlow wrote."""

import numpy as np
import pytest

from lightning_modules.datasets import tfrecords
from lightning_modules.datasets.tfrecords import DamagedRecord

NAMED = {"0/image_aux1/encoded": [b"\x00\xff", b""], "action": [1.5, -2.0], "step": [3, -4, 1 << 40], "é": [b"x"]}


@pytest.mark.parametrize(("content", "expected"), [
    (b"", 0), (b"a", 0xC1D04330), (b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E), (bytes(range(31, -1, -1)), 0x113FDB5C),
])  # fmt: skip
def test_crc32c_is_that_of_the_standard(content, expected):
    assert tfrecords.crc32c(content) == expected


@pytest.mark.parametrize("length", [3, 4, 5, 8191, 8192, 8193, 8704, 20001])
def test_a_long_content_has_the_checksum_that_its_bytes_give_one_by_one(length):
    content = np.random.default_rng(length).integers(0, 256, length, np.uint8).tobytes()
    table, register = tfrecords._table().tolist(), 0xFFFFFFFF
    for byte in content:
        register = table[(register ^ byte) & 255] ^ register >> 8
    assert tfrecords.crc32c(content) == register ^ 0xFFFFFFFF


def test_what_is_written_is_read_again(tmp_path):
    path = tfrecords.write(tmp_path / "some.tfrecords", [tfrecords.example(NAMED), b"", b"other"])
    places = list(tfrecords.places(path))
    assert [tfrecords.read(path, *place) for place in places] == [tfrecords.example(NAMED), b"", b"other"]
    assert tfrecords.features(tfrecords.read(path, *places[0])) == NAMED


def test_a_message_that_protobuf_would_write_otherwise_is_read_alike():
    """Numbers one by one instead of packed, an unknown field, and the feature lists of a sequence example."""
    entry = b"\x0a\x01i" + b"\x12\x06\x1a\x04\x08\x03\x08\x04"  # i: 3, 4
    other = b"\x0a\x01f" + b"\x12\x07\x12\x05\x0d\x00\x00\xc0\x3f"  # f: 1.5
    context = b"".join(b"\x0a" + bytes([len(each)]) + each for each in (entry, other))
    message = b"\x18\x01" + b"\x0a" + bytes([len(context)]) + context + b"\x12\x02\x0a\x00"
    assert tfrecords.features(message) == {"i": [3, 4], "f": [1.5]}


@pytest.mark.parametrize(("at", "message"), [
    (2, "the checksum of a record's length is wrong"), (9, "the checksum of a record's length is wrong"),
])  # fmt: skip
def test_an_altered_length_is_found_when_records_are_listed(tmp_path, at, message):
    path = tfrecords.write(tmp_path / "some.tfrecords", [b"one", b"two"])
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedRecord, match=message):
        list(tfrecords.places(path))


@pytest.mark.parametrize("at", [12, 14, 15, 18])
def test_altered_content_is_found_when_it_is_read(tmp_path, at):
    path = tfrecords.write(tmp_path / "some.tfrecords", [b"one"])
    [place] = tfrecords.places(path)
    content = bytearray(path.read_bytes())
    content[at] ^= 0x80
    path.write_bytes(content)
    with pytest.raises(DamagedRecord, match="the checksum of the record at byte 12 is wrong"):
        tfrecords.read(path, *place)


def test_files_that_were_cut_off_and_other_files_are_refused(tmp_path):
    path = tfrecords.write(tmp_path / "some.tfrecords", [b"one", b"two"])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedRecord, match="was cut off: the record at byte 19 goes beyond its end"):
        list(tfrecords.places(path))
    path.write_bytes(b"text")
    with pytest.raises(DamagedRecord, match="was cut off, or is no TFRecord file"):
        list(tfrecords.places(path))
    with pytest.raises(DamagedRecord, match="cannot be read"):
        tfrecords.read(tmp_path / "none", 12, 3)
    with pytest.raises(DamagedRecord, match=r"is no tf.train.Example"):
        tfrecords.features(b"\x0a\x7f")
