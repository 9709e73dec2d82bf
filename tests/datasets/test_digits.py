import numpy as np
import pytest
from sklearn.datasets import load_digits

from lightning_modules.datasets import digits, storage

GOLDEN = "27b8e983410c76c2fd0fc1537dd0ac60a1f5cc8e32e583c91905f6d8fc16e75d"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets") / "digits"
    digits.prepare(folder)
    return folder


def test_digits_equal_their_source(prepared):
    columns, source = storage.read(prepared, "all"), load_digits()
    np.testing.assert_array_equal(columns["image"][..., 0], source.images)
    np.testing.assert_array_equal(columns["label"], source.target)
    np.testing.assert_array_equal(columns["id"], np.arange(1797))
    assert columns["image"].max() == 16


def test_digits_card(prepared):
    card = storage.card(prepared)
    assert card["content_sha256"] == {"all": GOLDEN}
    assert card["splits"] == {"all": 1797}
    assert (card["num_classes"], card["image_shape"], card["codec"]) == (10, [8, 8, 1], "raw")
