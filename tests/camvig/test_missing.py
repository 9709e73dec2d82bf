"""Measurements that are missing can be stored, and are missing again when they are read."""

import numpy as np

from lightning_modules.camvig.missing import filled, restored


def test_what_could_not_be_measured_is_stored_and_comes_back():
    measured = {"made/shifts": np.array([[1.0, np.nan], [0.0, -2.0]]), "asked/path": np.array([0.5])}
    stored = filled(measured)
    assert all(np.isfinite(values).all() for values in stored.values())
    again = restored(stored | {"labels": np.array([3])})
    assert list(again) == ["made/shifts", "asked/path", "labels"]
    for name, values in measured.items():
        np.testing.assert_array_equal(again[name], values)
