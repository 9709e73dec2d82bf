"""Columns whose rows are lists, texts or bytes of any length."""

from collections.abc import Iterable
from typing import Any

import numpy as np


def objects(values: Iterable[Any]) -> np.ndarray:
    """One object for each value, also where all are lists of one length, which numpy would make an array of."""
    values = list(values)
    return np.fromiter(values, dtype=object, count=len(values))
