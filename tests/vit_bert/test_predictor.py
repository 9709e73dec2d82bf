"""Classes of pictures and words of sentences, of files that a user has."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules.datasets.tokenizers import world_tokenizer
from lightning_modules.vit_bert.predictor import Answers
from tests.vit_bert.small import TEXTS, module


@pytest.fixture
def answers(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/card.json").write_text(json.dumps({"num_classes": 5}))
    network = module(texts=TEXTS | {"words": len(world_tokenizer())})
    tasks = {"images": {"part": "images", "data": {}}, "texts": {"part": "texts", "data": {}}}
    found = Answers(network, {"data": {"tasks": tasks}, "dataset": "unused"})
    found.classes = [f"class {number}" for number in range(5)]
    return found


def test_a_picture_has_classes_with_probabilities(answers, tmp_path):
    Image.fromarray(np.full((20, 30, 3), 80, np.uint8)).save(tmp_path / "mine.png")
    found = list(answers.answer(tmp_path / "mine.png", top=5))
    assert [row["rank"] for row in found] == [1, 2, 3, 4, 5]
    assert sum(row["probability"] for row in found) == pytest.approx(1, abs=1e-4)
    expected = answers.module(torch.full((1, 3, 8, 8), 80.0))[0].argmax().item()
    assert found[0]["class"] == f"class {expected}"


def test_every_mask_of_every_line_gets_words(answers, tmp_path):
    (tmp_path / "mine.txt").write_text("a [MASK] circle\n\nlarge [MASK] star\tsmall [MASK]\n")
    found = list(answers.answer(tmp_path / "mine.txt", top=2))
    assert [(row["line"], row["mask"], row["rank"]) for row in found] == [
        (1, 1, 1), (1, 1, 2), (2, 1, 1), (2, 1, 2), (2, 2, 1), (2, 2, 2),
    ]  # fmt: skip
    assert len(answers.fill("a [MASK] circle")[0]) == len(world_tokenizer())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a red circle", r"'a red circle' has no \[MASK\]"),
        ("[MASK] " * 20, "has 22 tokens, expected at most 12"),
        ("[MASK]\ta\tb", "has 3 sentences between tabulators, expected one or two"),
    ],
)
def test_sentences_that_cannot_be_filled_end_in_one_line(answers, text, message):
    with pytest.raises(ValueError, match=message):
        answers.fill(text)


def test_files_that_cannot_be_read_end_in_one_line(answers, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "other.txt").write_bytes(b"\xff\xfe\x00x")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for name, message in (("empty.txt", "has no lines"), ("other.txt", "cannot be read as text"),
                          ("missing.txt", "cannot be read as text"), ("broken.png", "cannot be read")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            list(answers.answer(tmp_path / name))


def test_what_was_not_learnt_is_refused(answers):
    answers.record["data"]["trained"] = ["images"]
    with pytest.raises(ValueError, match="the network has learnt images, not texts"):
        answers.fill("a [MASK]")
