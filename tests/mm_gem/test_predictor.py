"""On a stand-in that embeds the mean colour and tells the brightest channel."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from lightning_modules.datasets.squares import on_square, square
from lightning_modules.mm_gem.boxes import check_box, read_boxes
from lightning_modules.mm_gem.predictor import Describer
from lightning_modules.vision_language.towers import make_tower

SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 32,
         "patch_size": 4}  # fmt: skip
COLOURS = ("red", "green", "blue")


class Colours:
    fit, losses = "squash", {"embedding": 1.0, "generation": 1.0}

    def embed_pictures(self, images, boxes=None):
        height, width = images.shape[-2:]
        left, top, right, bottom = (0, 0, 1, 1) if boxes is None else boxes[0].tolist()
        shown = images[..., round(top * height) : round(bottom * height), round(left * width) : round(right * width)]
        return normalize(shown.float().mean((-2, -1)), dim=-1)

    def embed_texts(self, texts):
        return normalize(torch.tensor([[float(name in text) for name in COLOURS] for text in texts]) + 1e-3, dim=-1)

    def caption(self, images, boxes=None):
        return [COLOURS[number] for number in self.embed_pictures(images, boxes).argmax(-1)]


@pytest.fixture
def picture(tmp_path):
    pixels = np.zeros((10, 40, 3), np.uint8)
    pixels[:, :30, 0], pixels[:, 30:, 2] = 200, 200
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    return tmp_path / "mine.png"


def written(path, text):
    path.write_text(text)
    return path


def answers(*inputs, top=3):
    describer = Describer(Colours())
    (asked,) = describer.begin(list(inputs))
    return list(describer.answer(asked, top))


def test_a_picture_is_told(picture):
    assert answers(picture) == [{"caption": "red"}]


def test_texts_are_ranked(picture, tmp_path):
    found = answers(picture, written(tmp_path / "mine.txt", "a blue one\n\na red one\na green one\n"), top=2)
    assert [(each["rank"], each["text"]) for each in found] == [(1, "a red one"), (2, "a blue one")]
    assert found[0]["similarity"] > found[1]["similarity"]
    json.dumps(found)


def test_regions_are_told_and_compared(picture, tmp_path):
    table = written(tmp_path / "mine.csv", "0,0,20,10\n30, 2, 40, 9\n")
    found = answers(picture, table)
    assert [(each["row"], each["caption"]) for each in found] == [(0, "red"), (1, "blue")]
    assert found[1]["box"] == [30, 2, 40, 9]
    texts = written(tmp_path / "mine.txt", "red\nblue\n")
    assert [(each["row"], each["text"]) for each in answers(picture, table, texts, top=1)] == [(0, "red"), (1, "blue")]


@pytest.mark.parametrize(
    ("fit", "size", "box", "expected"),
    [
        ("squash", (40, 10), (10, 2, 20, 8), [0.25, 0.2, 0.5, 0.8]),
        ("pad", (40, 10), (10, 2, 20, 8), [0.25, 0.425, 0.5, 0.575]),  # below a bar of 15 pixels
        ("pad", (20, 40), (10, 2, 20, 8), [0.5, 0.05, 0.75, 0.2]),
        ("crop", (30, 10), (10, 2, 20, 8), [0, 0.2, 1, 0.8]),
        ("crop", (20, 40), (10, 5, 20, 12), [0.5, 0, 1, 0.1]),
    ],
)
def test_a_box_is_where_the_tower_sees_it(fit, size, box, expected):
    np.testing.assert_allclose(on_square(box, size, fit), expected, atol=1e-6)
    tower = make_tower(sizes=SMALL, fit=fit)
    white = torch.zeros(1, 3, *size[::-1])
    white[..., box[1] : box[3], box[0] : box[2]] = 1
    seen = tower.squared(white)
    if fit != "squash":
        left, top, right, bottom = np.round(np.array(expected) * seen.shape[-1]).astype(int)
        assert seen[..., top:bottom, left:right].min() == 1
        assert seen.eq(1).sum() == 3 * (right - left) * (bottom - top)
        side = seen.shape[-1]  # stored pictures of a data set become the same squares
        stored = square((white[0] * 255).byte().permute(1, 2, 0).numpy(), side, fit)
        np.testing.assert_allclose(stored / 255, seen[0].permute(1, 2, 0), atol=1 / 255)


@pytest.mark.parametrize(("objective", "told"), [("embedding", "to embed: leave"), ("generation", "to write: give")])
def test_what_a_model_was_not_trained_for_is_refused(picture, tmp_path, objective, told):
    describer, texts = Describer(Colours()), written(tmp_path / "mine.txt", "red\n")
    describer.module.losses = Colours.losses | {objective: 0.0}
    with pytest.raises(ValueError, match=f"was not trained {told}.*such as mm_gem"):
        describer.begin([picture, texts] if objective == "embedding" else [picture])
    with pytest.raises(ValueError, match=f"was not trained {told}"):
        describer.rank(picture, ["red"]) if objective == "embedding" else describer.caption(picture)


def test_texts_are_embedded_once_and_one_that_is_too_long_is_named(picture, tmp_path):
    class Counted(Colours):
        asked = 0

        def embed_texts(self, texts):
            self.asked += 1
            if any(len(text) > 20 for text in texts):
                raise ValueError("too long")
            return super().embed_texts(texts)

    describer = Describer(Counted())
    describer.begin([picture, written(tmp_path / "mine.txt", "red\nblue\n")])
    assert list(describer.answer(picture)) == list(describer.answer(picture)) and describer.module.asked == 1
    with pytest.raises(ValueError, match=r"text 2, 'a very large red circle .*': too long"):
        describer.begin(
            [picture, written(tmp_path / "long.txt", "red\na very large red circle of a rather rare sort\n")]
        )


def test_boxes_that_are_none_are_named_after_the_answers_about_the_others(picture, tmp_path):
    describer, found = Describer(Colours()), []
    table = written(tmp_path / "MINE.CSV", "0,0,20,10\n40,0,50,10\n20,10,0,0\n30,2,40,9\n")
    assert describer.begin([picture, table]) == [picture]
    with pytest.raises(ValueError, match=r"mine\.png, row 1: .* has no part .*; row 2: the box .* has no area"):
        found.extend(describer.answer(picture))
    assert [(each["row"], each["caption"]) for each in found] == [(0, "red"), (3, "blue")]
    with pytest.raises(ValueError, match=r"^\S*no\.png cannot be read as a picture"):
        list(describer.answer(written(tmp_path / "no.png", "no picture")))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((20, 0, 10, 5), r"the box \[20, 0, 10, 5\] has no area: expected left, top, right and bottom"),
        ((0, 5, 10, 5), "has no area"),
        ((0, 0, 10), r"the box is \(0, 0, 10\), expected four numbers"),
        ((0, 0, 10, float("nan")), "expected four numbers"),
    ],
)
def test_what_is_no_box_is_refused(picture, box, message):
    with pytest.raises(ValueError, match=message):
        Describer(Colours()).caption(picture, box)
    for odd in ("0,0,9,9", 7, ["0", None, 1, 2]):
        with pytest.raises(ValueError, match="expected four numbers"):
            check_box(odd)


def test_texts_are_a_list_of_texts(picture):
    with pytest.raises(ValueError, match="texts are 'red', expected a list of texts"):
        Describer(Colours()).rank(picture, "red")


def test_a_text_file_may_be_named_in_capitals(picture, tmp_path):
    assert answers(picture, written(tmp_path / "MINE.TXT", "red\nblue\n"), top=1)[0]["text"] == "red"


def test_what_cannot_be_answered_is_refused(picture, tmp_path):
    describer = Describer(Colours())
    with pytest.raises(ValueError, match="got 2 tables of boxes, expected one"):
        describer.begin([picture, tmp_path / "a.csv", tmp_path / "b.csv"])
    with pytest.raises(ValueError, match="there is no picture among the inputs"):
        describer.begin([written(tmp_path / "a.csv", "0,0,1,1")])
    with pytest.raises(ValueError, match="got 1 pictures or folders, 1 text files and 0 texts; expected pictures"):
        describer.begin([picture, written(tmp_path / "empty.txt", "\n")])
    for text, message in [("", "has no boxes"), ("1,2,3", "line 1 of .* is '1,2,3', expected four numbers"),
                          ("0,0,5,5\n1,2,nan,4", "line 2 of .*expected four numbers")]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_boxes(written(tmp_path / "a.csv", text))
    with pytest.raises(ValueError, match="has no part in a picture of 40 x 10 pixels"):
        describer.caption(picture, (40, 0, 50, 10))
    with pytest.raises(ValueError, match="outside the middle square"):
        on_square((0, 0, 10, 10), (40, 10), "crop")
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        describer.caption(written(tmp_path / "no.png", "no picture"))
