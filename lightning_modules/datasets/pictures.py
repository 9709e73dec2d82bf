"""Picture files as a viewer shows them: any file that Pillow reads becomes 8 bits a channel, grey or RGB.

| file | is read as |
|---|---|
| orientation in EXIF | turned upright (the loaders of torchvision and TensorFlow ignore it) |
| transparent pixels, or a colour that stands for them | over white |
| 16 bits, grey | scaled to 8 bits: 65535 becomes 255 |
| 16 bits, colours | the upper 8 bits of each, as Pillow reads them; also of the colour that is transparent |
| palette, CMYK, YCbCr, 1 bit | converted by Pillow, without colour profiles |
| animated | its first frame |
| floating-point or 32-bit pixels | refused: the file does not say which value is white |
"""

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float32, UInt8

from lightning_modules.datasets.skipped import Skipped
from lightning_modules.files import read_array

if TYPE_CHECKING:
    from PIL.Image import Image

DRAWN = 16  # different pictures that `drawn_jpeg` gives
CHECKED = 256  # pictures that are held in memory while they are checked


class BrokenPicture(ValueError):
    """A picture file that cannot be decoded, or not without guessing."""


def read(source: Path | bytes, mode: Literal["L", "RGB"] = "RGB", size: tuple[int, int] | None = None) -> "Image":
    """A picture, upright, of 8 bits a channel; see the table above.

    Args:
        source: a file, or its content.
        mode: grey or RGB.
        size: width and height to bring it to, in pixels, without regard to its aspect ratio (bicubic, antialiased).

    Raises:
        BrokenPicture: it is not there, cut off, damaged or too large, or its pixels have no known range.
    """
    from PIL import Image, ImageOps

    name = source if isinstance(source, Path) else "the picture"
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            image = ImageOps.exif_transpose(_eight_bits(opened))
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            image = image.convert(mode)
    except _faults() as error:
        raise BrokenPicture(f"{name} cannot be read as a picture: {error}") from error
    return image.resize(size, Image.Resampling.BICUBIC) if size and image.size != size else image


def _eight_bits(image: "Image") -> "Image":
    """Grey of 16 bits scaled to 8, and a transparent colour of 16 bits; other pictures as they are.

    Raises:
        ValueError: pixels are 32-bit or floating-point numbers.
    """
    from PIL import Image

    transparent = image.info.get("transparency")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # Pillow scales PGM to 16 bits
        pixels = np.asarray(image)
        grey = Image.fromarray(np.round(pixels / 257).astype(np.uint8))
        if transparent is not None:
            grey.putalpha(Image.fromarray(np.where(pixels == transparent, 0, 255).astype(np.uint8)))
        grey.info["exif"] = image.getexif().tobytes()
        return grey
    if image.format == "PNG" and isinstance(transparent, tuple) and any(part.args == "RGB;16B" for part in image.tile):
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels have mode {image.mode}, without a known range; save it with 8 or 16 bits")
    return image


def stored(
    path: Path, shape: tuple[int, int, int], scale: int | float, share: float | None = None
) -> Float32[np.ndarray, "rows channels height width"]:
    """Pictures of a file as pixels in the form of a data set.

    Args:
        path: a picture, which is brought to this size and to grey or RGB; or an array (`.npy`) of pictures that have
            this form already: (rows, height, width) or (rows, height, width, channels).
        shape: channels, height and width.
        scale: what white is in the data set.
        share: side of the central square that a picture is cut to, as a share of its shorter edge; null to keep all.

    Raises:
        ValueError: the file is no picture or array, or the array's pictures have another shape.
    """
    from PIL import Image

    channels, height, width = shape
    if path.suffix == ".npy":
        images = read_array(path)
        images = images[..., None] if images.ndim == 3 else images
        if images.ndim != 4 or images.shape[1:] != (height, width, channels):
            expected = f"(rows, {height}, {width}, {channels})"
            raise ValueError(f"{path} holds an array of shape {images.shape}; the model expects {expected}")
        return images.transpose(0, 3, 1, 2).astype(np.float32)
    if share is None:
        image = read(path, "L" if channels == 1 else "RGB", (width, height))
    else:
        image = read(path, "L" if channels == 1 else "RGB")
        cut = share * min(image.size)
        box = tuple((side + sign * cut) / 2 for sign in (-1, 1) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    return np.asarray(image, np.float32).reshape(1, height, width, channels).transpose(0, 3, 1, 2) * (scale / 255)


def decode(content: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of an encoded picture, 0 to 255; see `read`."""
    return np.array(read(content))


def sound(rows: Iterable[tuple], max_broken: float) -> Iterator[tuple]:
    """Passes on the rows whose pictures can be decoded. Each is decoded once, a JPEG at an eighth of its size.

    Args:
        rows: of a file name, the file's content, and anything.
        max_broken: largest share of broken pictures, see `Skipped`.

    Raises:
        ValueError: more pictures are broken; the last one's name and fault.
    """
    rows, skipped = iter(rows), Skipped("pictures", max_broken)
    with ThreadPoolExecutor() as threads:
        while block := list(islice(rows, CHECKED)):
            for row, fault in zip(block, threads.map(_fault, block), strict=True):
                if fault is None:
                    skipped.read()
                    yield row
                else:
                    skipped.skip(BrokenPicture(f"{row[0]} cannot be read as a picture: {fault}"))


def _fault(row: tuple) -> Exception | None:
    """What is wrong with a picture."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(row[1])) as image:
            image.draft("RGB", (1, 1))
            image.load()
            _eight_bits(image)
    except _faults() as error:
        return error
    return None


def _faults() -> tuple[type[Exception], ...]:
    """What Pillow raises about a file that is broken."""
    from PIL import Image

    return OSError, SyntaxError, ValueError, Image.DecompressionBombError


def drawn_jpeg(number: int) -> bytes:
    """A picture file of the size and the weight of a photograph from the web (500 x 375), for stand-ins of data sets.

    Colours that blend into each other, with some grain. Numbers that are alike modulo `DRAWN` give the same picture.
    """
    return _drawn_jpeg(number % DRAWN)


@cache
def _drawn_jpeg(number: int) -> bytes:
    from PIL import Image

    random, file = np.random.default_rng(number), io.BytesIO()
    colours = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
    grain = random.normal(0, 12, (375, 500, 1))
    Image.fromarray((np.asarray(colours) + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=80)
    return file.getvalue()
