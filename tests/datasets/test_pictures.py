"""Every form of picture that users have, made here, and what must come out of it."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from lightning_modules.datasets import pictures
from lightning_modules.datasets.pictures import BrokenPicture

RAMP = np.arange(20, dtype=np.uint8).reshape(4, 5) * 13  # 0 to 247


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def grey(content: bytes) -> np.ndarray:
    return np.asarray(pictures.read(content, "L"))


@pytest.mark.parametrize(
    ("mode", "form"), [("RGB", "PNG"), ("L", "PNG"), ("P", "PNG"), ("1", "PNG"), ("CMYK", "JPEG"), ("L", "JPEG")]
)
def test_any_mode_becomes_rgb(mode, form):
    image = pictures.decode(encoded(Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode), form))
    assert (image.shape, image.dtype) == ((4, 5, 3), np.uint8)
    assert (image >= 254).all()


@pytest.mark.parametrize(("mode", "form"), [
    ("RGB", "PNG"), ("RGB", "JPEG"), ("RGB", "WEBP"), ("RGB", "BMP"), ("RGB", "AVIF"), ("P", "PNG"), ("P", "GIF"),
    ("P", "TIFF"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "TIFF"), ("RGBA", "PNG"), ("RGBA", "WEBP"),
])  # fmt: skip
def test_colours_are_kept(mode, form):
    colours = Image.new("RGB", (16, 16), (200, 40, 90))
    image = colours.quantize(4) if mode == "P" else colours.convert(mode)
    found = pictures.decode(encoded(image, form)).astype(int)
    assert np.abs(found - (200, 40, 90)).max() <= 6  # some are coded with losses


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_grey_of_16_bits_is_scaled_not_cut(form):
    wide = Image.fromarray(RAMP.astype(np.uint16) * 257)
    np.testing.assert_array_equal(grey(encoded(wide, form)), RAMP)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("bits", "form"), [(8, "PNG"), (16, "PNG"), (8, "TIFF"), (16, "TIFF"), (8, "WEBP"), (8, "JPEG")]
)
def test_pictures_are_turned_upright(orientation, bits, form):
    """Orientation k says how a camera had to be turned; the stored picture undoes it (EXIF 2.3, tag 0x0112)."""
    stored = {
        1: RAMP, 2: RAMP[:, ::-1], 3: RAMP[::-1, ::-1], 4: RAMP[::-1], 5: RAMP.T, 6: np.rot90(RAMP),
        7: RAMP[::-1, ::-1].T, 8: np.rot90(RAMP, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    values = stored.astype(np.uint16) * 257 if bits == 16 else np.ascontiguousarray(stored)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}.get(form, {})
    found = grey(encoded(Image.fromarray(values), form, exif=exif, **options))
    np.testing.assert_allclose(found.astype(int), RAMP, atol=6 if form == "JPEG" else 0)


@pytest.mark.parametrize("kind", [0, 2], ids=["grey", "colours"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("hidden", [0, 13 * 7])
def test_a_colour_that_stands_for_transparent_is_white(kind, bits, hidden):
    """PNG's tRNS, which Pillow reads and does not write at 16 bits: the file is put together here (PNG 1.2, 4.2.1)."""
    scale, form = (257, ">u2") if bits == 16 else (1, "u1")
    pixels = (np.repeat(RAMP[..., None], 3, -1) if kind else RAMP[..., None]).astype(np.uint16) * scale
    lines = b"".join(b"\0" + line.astype(form).tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", RAMP.shape[1], RAMP.shape[0], bits, kind, 0, 0, 0)
    colour = np.full(pixels.shape[-1], hidden * scale, ">u2").tobytes()
    content = b"\x89PNG\r\n\x1a\n"
    for name, part in ((b"IHDR", header), (b"tRNS", colour), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")):
        content += struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
    np.testing.assert_array_equal(grey(content), np.where(RAMP == hidden, 255, RAMP))


def test_what_is_transparent_is_white():
    digit = np.zeros((4, 5, 4), np.uint8)
    digit[1, 1:4, 3] = 255  # a black stroke on nothing
    expected = np.full((4, 5), 255)
    expected[1, 1:4] = 0
    np.testing.assert_array_equal(grey(encoded(Image.fromarray(digit))), expected)
    palette = Image.fromarray(RAMP).convert("P")
    assert (grey(encoded(palette, transparency=0)) == 255).any() and not (grey(encoded(palette)) == 255).any()


def test_an_animation_is_its_first_frame():
    frames = [Image.fromarray(np.full((4, 5), value, np.uint8)) for value in (40, 200)]
    for form in ("GIF", "PNG", "WEBP"):
        more = {"lossless": True} if form == "WEBP" else {}
        np.testing.assert_allclose(grey(encoded(frames[0], form, save_all=True, append_images=frames[1:], **more)), 40)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_without_a_known_range_are_refused(kind):
    with pytest.raises(BrokenPicture, match=r"its pixels have mode [FI], without a known range; save it with 8 or 16"):
        pictures.read(encoded(Image.fromarray(RAMP.astype(kind)), "TIFF"))


def broken() -> dict[str, bytes]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = {form: encoded(noise, form) for form in ("PNG", "JPEG")}
    cut = {f"cut.{form}": content[: len(content) // 2] for form, content in whole.items()}
    return cut | {"empty.png": b"", "._x.jpg": b"\0\5\x16\7\0\2", "page.png": b"<html>not found</html>"}


@pytest.mark.parametrize("name", broken())
def test_broken_pictures_are_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(broken()[name])
    with pytest.raises(BrokenPicture, match=rf"{name} cannot be read as a picture: "):
        pictures.read(path)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    with pytest.raises(BrokenPicture, match="decompression bomb"):
        pictures.decode(encoded(Image.fromarray(RAMP)))


def test_sound_pictures_pass_in_their_order_and_broken_ones_are_left_out_by_name(caplog):
    good = [(f"{number}.png", encoded(Image.fromarray(RAMP + number)), number) for number in range(5)]
    bad = [(name, content, -1) for name, content in broken().items()]
    bad.append(("float.tif", encoded(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), -1))
    mixed = [row for pair in zip(good, bad, strict=False) for row in pair] + bad[5:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(pictures.sound(iter(mixed), 0.06)) == good
    assert all(f"left out: {name} cannot be read as a picture" in caplog.text for name, _, _ in bad)
    with pytest.raises(ValueError, match=r"6 of 11 pictures are broken, more than max_broken \(0\.05\).*float\.tif"):
        list(pictures.sound(iter(mixed), 0.05))
