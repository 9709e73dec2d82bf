"""Handwritten digits bundled with scikit-learn: 1,797 grey images of 8 x 8, values 0 to 16. Needs no download.

They are the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak; UCI repository).
"""

from pathlib import Path

import numpy as np

from lightning_modules.datasets import storage
from lightning_modules.files import replace_folder

SHAPE = (8, 8, 1)


def prepare(folder: Path) -> None:
    """Writes the digits as the one split `all`: the source has no partition of its own.

    Values stay 0..16 (a pixel counts the dark dots of a 4 x 4 block), stored as uint8.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    columns = {
        "id": np.arange(len(digits.target)),
        "image": digits.images.astype(np.uint8).reshape(-1, *SHAPE),
        "label": digits.target.astype(np.int64),
    }
    with replace_folder(folder) as new:
        splits = {"all": storage.write(new, "all", columns, "raw", SHAPE)}
        storage.write_card(
            new,
            name="digits",
            splits=splits,
            codec="raw",
            shape=SHAPE,
            num_classes=10,
            source="sklearn.datasets.load_digits (UCI Optical Recognition of Handwritten Digits, CC BY 4.0)",
        )
