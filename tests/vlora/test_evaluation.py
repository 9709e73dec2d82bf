"""What is said about pictures is read back and compared with what is there; costs follow from tokens."""

import json
from hashlib import sha256

import numpy as np
import pytest
from safetensors.numpy import save_file

from lightning_modules.datasets.world.scenes import COLORS, SHAPES, SIZES
from lightning_modules.runs import Run
from lightning_modules.vision_language.told import marked
from lightning_modules.vlora.evaluation import evaluate

FACTS = {"visual_tokens": 16, "bridge_parameters": 10, "parameters": 20, "hidden_size": 8, "mlp_dim": 16, "layers": 2}
LARGE, SMALL = SIZES.index("large"), SIZES.index("small")
LABELS = {  # a large red circle at the top left, a small blue star at the bottom right; in the second row one thing
    "cell": [[0, 8, -1, -1], [2, -1, -1, -1]],
    "size": [[LARGE, SMALL, -1, -1], [SMALL, -1, -1, -1]],
    "color": [[COLORS.index("red"), COLORS.index("blue"), -1, -1], [COLORS.index("green"), -1, -1, -1]],
    "shape": [[SHAPES.index("circle"), SHAPES.index("star"), -1, -1], [SHAPES.index("square"), -1, -1, -1]],
}
TRUE = ["large red circle at the top left , small blue star at the bottom right", "small green square at the top right"]


def encoded(texts: list[str]) -> np.ndarray:
    """As predictions store them."""
    found = np.array([text.encode() for text in texts])
    return found.view(np.uint8).reshape(len(texts), -1)


def run(folder, written: list[str], *, world: bool = True) -> Run:
    """A run whose captions are `written`."""
    arrays = {
        "caption/true": encoded(TRUE), "caption/written": encoded(written), "caption/shuffled": encoded(TRUE[::-1]),
        "caption/tokens": np.array([13, 7]), "answer/row": np.array([0, 1]),
        "answer/question": encoded(["what color is the thing at the top left ?", "is there a green square ?"]),
        "answer/true": encoded(["red", "yes"]), "answer/written": encoded(["red", "no"]),
        "shown/images": np.zeros((2, 32, 32, 3), np.uint8),
    }  # fmt: skip
    if world:
        arrays |= {f"label/{name}": np.array(values) for name, values in LABELS.items()}
    folder = folder / "seed-0"
    folder.mkdir()
    save_file(arrays, folder / "predictions.safetensors")
    digest = sha256((folder / "predictions.safetensors").read_bytes()).hexdigest()
    (folder / "facts.json").write_text(
        json.dumps(FACTS | {"kv_dim": 8, "addition_macs": 100, "predictions_sha256": digest})
    )
    return Run(folder, 0)


def metrics(folder, written: list[str], **options) -> dict[str, float]:
    """Of one run, without the name of the data set."""
    found = evaluate([run(folder, written, **options)], "d").metrics[0]
    return {name.removeprefix("d/"): value for name, value in found.items()}


def test_all_right(tmp_path):
    found = metrics(tmp_path, TRUE)
    assert found["attributes_percent"] == found["exact_percent"] == 100
    assert found["shuffled_percent"] == 0
    assert found["picture_percent"] == 100


def test_missing_wrong_and_superfluous_things(tmp_path):
    found = metrics(tmp_path, ["large red circle at the top left", f"{TRUE[1]} , {TRUE[0]}"])
    assert found["attributes_percent"] == pytest.approx(200 / 3)
    assert found["exact_percent"] == 0


def test_an_attribute_counts_by_itself(tmp_path):
    found = metrics(tmp_path, [TRUE[0].replace("red", "pink"), TRUE[1]])
    assert found["color_percent"] == pytest.approx(200 / 3)
    assert found["size_percent"] == found["shape_percent"] == 100
    assert found["exact_percent"] == 50


def test_answers_and_costs(tmp_path):
    found = metrics(tmp_path, TRUE)
    assert found["answers_percent"] == 50
    assert found["answers/color_percent"] == 100
    assert found["answers/exists_percent"] == 0
    assert found["input_tokens"] == 26
    assert found["language_mmacs"] == pytest.approx((26 * 2 * (4 * 64 + 3 * 128) + 2 * 26**2 * 8 * 2 + 26 * 100) / 1e6)


def test_pictures_of_which_nothing_is_known(tmp_path):
    found = evaluate([run(tmp_path, ["a dog", ""], world=False)], "d")
    assert "attributes_percent" in found.not_computed
    assert found.metrics[0]["d/answers_percent"] == 50
    assert found.galleries[0].rows[1][1].text == [("(nothing)", None)]


def test_words_are_marked():
    found = marked("large pink circle , small", {0: {"size": LARGE, "color": 0, "shape": SHAPES.index("circle")}})
    assert found == [("large", True), (" ", None), ("pink", False), (" ", None), ("circle", True), (" , small", None)]


def test_no_run():
    with pytest.raises(ValueError, match="train the arm first"):
        evaluate([], "d")
