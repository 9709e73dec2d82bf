"""Measurements that are missing in some places, as arrays that can be stored: predictions hold finite numbers alone."""

from collections.abc import Mapping

import numpy as np

Arrays = dict[str, np.ndarray]
SEEN = "/seen"  # ends the name of a mask


def filled(measured: Mapping[str, np.ndarray]) -> Arrays:
    """Each array with 0 in place of NaN, and `<name>/seen`, which is false there."""
    found: Arrays = {}
    for name, values in measured.items():
        seen = ~np.isnan(values)
        found |= {name: np.where(seen, values, 0), name + SEEN: seen}
    return found


def restored(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """What `filled` was given, with NaN again; arrays without a mask are as they are."""
    masks = {name for name in arrays if name.endswith(SEEN)}
    return {
        name: np.where(arrays[name + SEEN], values, np.nan) if name + SEEN in masks else values
        for name, values in arrays.items()
        if name not in masks
    }
