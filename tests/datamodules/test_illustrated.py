"""Pictures with prompts and answers: what is learnt is the answer, and padding changes nothing else."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules.datamodules.illustrated import (
    IGNORED,
    PURPOSES,
    WORLD_FORM,
    IllustratedBatches,
    IllustratedTexts,
    caption_prompt,
    picture_size,
    question_prompt,
    words_at,
)
from lightning_modules.datasets import conversations, pictures
from lightning_modules.datasets.splits import Portion, random_words
from lightning_modules.datasets.world import quadrants, views
from lightning_modules.vision_language.causal import make_causal

OPTIONS = {"objects": [1, 4], "colors": 8, "shapes": 8, "sizes": 2, "captions": 3, "questions": 2}
SETTINGS = {
    "seed": 50, "batch_size": 16, "evaluation_batch_size": 20, "length": 48, "questions": 0.5, "text_only": 0.25,
    "padding": "right", "form": WORLD_FORM,
    "splits": {"train": {"source": "train", "rows": None}, "val": {"source": "val", "rows": None}},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "world"
    views.prepare(folder, view="quadrants", seed=0, sizes={"train": 64, "val": 32}, image_size=16, options=OPTIONS,
                  workers=1)  # fmt: skip
    return folder


def texts(folder, **changes) -> IllustratedTexts:
    data = IllustratedTexts(folder=folder, **SETTINGS | changes)
    data.for_models(make_causal(hidden_size=8, layers=1, heads=2, kv_heads=1, mlp_dim=8, positions=64))
    return data


def decoded(data: IllustratedTexts, token_ids: torch.Tensor) -> str:
    return data.language.decode(token_ids.tolist())


def test_answers_alone_are_labels_and_say_what_the_picture_shows(folder):
    data = texts(folder)
    batch = next(data.evaluation_batches("val"))
    assert batch["images"].dtype == torch.uint8 and batch["images"].shape == (20, 3, 16, 16)
    assert batch["has_image"].all()
    for row in range(20):
        answer = decoded(data, batch["labels"][row][batch["labels"][row] != IGNORED])
        assert answer.endswith(" </s>")
        said = quadrants.described(answer)
        cells = batch["scene/cell"][row]
        assert set(said) == set(cells[cells >= 0].tolist())
    asked = next(data.evaluation_batches("val", "question"))
    whole = decoded(data, asked["token_ids"][0][asked["attention_mask"][0]])
    assert whole.startswith("<s> user : ") and "? assistant : " in whole
    prompt = question_prompt(data.language, data.columns["val"]["questions"][0][0])
    assert asked["token_ids"][0, asked["attention_mask"][0]][: len(prompt)].tolist() == prompt
    assert caption_prompt(data.language) == batch["token_ids"][0, :1].tolist()
    learnt = asked["labels"] != IGNORED
    assert torch.equal(asked["token_ids"][learnt], asked["labels"][learnt]) and (learnt.sum(1) < 5).all()


def test_a_region_has_its_phrase_and_its_box(folder):
    data = texts(folder)
    for choice in (0, 1):
        batch = next(data.evaluation_batches("val", "region", choice))
        for row in range(20):
            phrases = data.columns["val"]["regions"][row]
            number = choice % len(phrases)
            assert decoded(data, batch["labels"][row][batch["labels"][row] != IGNORED]) == f"{phrases[number]} </s>"
            assert torch.equal(batch["box"][row], batch["scene/boxes"][row, number])
    assert torch.equal(next(data.evaluation_batches("val"))["box"], torch.tensor([[0.0, 0, 1, 1]] * 20))
    mixed = IllustratedBatches(texts(folder, questions=0.25, regions=0.5), Portion())
    whole = torch.cat([(mixed[0, place]["box"] == torch.tensor([0.0, 0, 1, 1])).all(1) for place in range(4)])
    assert 0.3 < whole.float().mean() < 0.7


def test_padding_left_and_right_hold_the_same_texts(folder):
    left, right = (next(texts(folder, padding=side).evaluation_batches("val")) for side in ("left", "right"))
    assert left["attention_mask"][:, -1].all() and right["attention_mask"][:, 0].all()
    assert not left["attention_mask"].all()
    for name in ("token_ids", "labels"):
        assert torch.equal(left[name][left["attention_mask"]], right[name][right["attention_mask"]])


def test_batches_depend_on_their_place_and_shares_are_kept(folder):
    batches = IllustratedBatches(texts(folder), Portion())
    assert len(batches) == 4
    first, again, later = batches[0, 1], batches[0, 1], batches[1, 1]
    assert all(torch.equal(x, again[name]) for name, x in first.items())
    assert not torch.equal(first["rows"], later["rows"])
    seen = torch.cat([batches[epoch, place]["has_image"] for epoch in range(4) for place in range(4)])
    assert 0.6 < seen.float().mean() < 0.9
    blind = next(batch for batch in (batches[0, place] for place in range(4)) if not batch["has_image"].all())
    assert not blind["images"][~blind["has_image"]].any() and blind["images"][blind["has_image"]].any()


def test_two_processes_see_together_what_one_sees(folder):
    whole = IllustratedBatches(texts(folder), Portion())[0, 2]["rows"]
    parts = [IllustratedBatches(texts(folder), Portion(rank, 2))[0, 2]["rows"] for rank in (0, 1)]
    assert torch.equal(torch.cat(parts), whole)


def test_a_long_text_is_cut(folder):
    batch = next(texts(folder, length=6).evaluation_batches("val"))
    assert batch["token_ids"].shape == (20, 6)


WHO = ("human", "gpt")
SAID = [
    [("what shape ?", "red circle"), ("what color ?", "red"), ("how many things are there ?", "one")],
    [("what shape ?", "blue star")],
]


@pytest.fixture(scope="module")
def mix(tmp_path_factory):
    """Conversations in LLaVA's form: 600 with a picture, whose three answers or one take turns, and 20 without."""
    folder = tmp_path_factory.mktemp("mix")
    (folder / "pictures").mkdir()
    for number in range(pictures.DRAWN):
        (folder / f"pictures/{number}.jpg").write_bytes(pictures.drawn_jpeg(number))
    entries = []
    for number in range(620):
        turns = [{"from": who, "value": text} for turn in SAID[number % 2] for who, text in zip(WHO, turn, strict=True)]
        image = {"image": f"{number % pictures.DRAWN}.jpg"} if number < 600 else {}
        entries.append({"id": str(number), "conversations": turns} | image)
    (folder / "mix.json").write_text(json.dumps(entries))
    conversations.prepare(folder / "new", form="llava", file="mix.json", images="pictures", count=620, limit=None,
                          cache=str(folder))  # fmt: skip
    return folder / "new"


def instructions(mix, turn="user : {} assistant :", **changes):
    splits = {"train": {"source": "train", "rows": None}, "val": {"source": "train", "rows": 60}}
    form = WORLD_FORM | ({"turn": turn} if turn else {})
    return texts(mix, image_size=32, questions=1.0, text_only=0.0, form=form, splits=splits, **changes)


def test_all_answers_of_a_conversation_are_learnt_in_one_text(mix):
    data = instructions(mix)
    batch = next(data.evaluation_batches("val"))
    for row, ids, labels in zip(batch["rows"].tolist(), batch["token_ids"], batch["labels"], strict=True):
        said = list(zip(data.columns["val"]["questions"][row], data.columns["val"]["answers"][row], strict=True))
        assert decoded(data, labels[labels != IGNORED]) == " ".join(f"{answer} </s>" for _, answer in said)
        turns = " ".join(f"user : {question} assistant : {answer} </s>" for question, answer in said)
        assert decoded(data, ids[: len(data.language.encode(turns)) + 1]) == f"<s> {turns}"
    learnt = (batch["labels"] != IGNORED).sum(1)
    assert set(learnt.tolist()) == {7, 3}, "each answer, and the end token of each"
    alone = next(instructions(mix, turn=None).evaluation_batches("val"))
    assert (alone["labels"] != IGNORED).sum(1).max() == 3, "the first answer alone"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.slow
def test_conversations_without_a_picture_are_learnt_and_not_judged(mix, streamed):
    data = instructions(mix, streamed=streamed)
    loader = data.train_dataloader()
    loader.num_workers = 0
    loader.sampler.set_epoch(0)
    batches = list(loader)
    seen = {
        int(row): bool(has) for batch in batches for row, has in zip(batch["rows"], batch["has_image"], strict=True)
    }
    stored = data._groups[np.arange(620)]["image"] if streamed else data.columns["train"]["images"]
    assert all(has == (len(stored[row]) > 0) for row, has in seen.items())
    assert 0 < sum(not has for has in seen.values()) <= 20
    assert all(not batch["images"][~batch["has_image"]].any() for batch in batches)
    assert all(len(image) for image in data.columns["val"]["images"])


@pytest.mark.slow
def test_streamed_rows_are_seen_once_an_epoch_in_another_order_and_none_that_is_judged(mix):
    data = instructions(mix, streamed=True)
    assert data.columns.keys() == {"val"}, "those of train are never in memory together"
    loader = data.train_dataloader()
    loader.num_workers = 0
    orders = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        orders.append(torch.cat([batch["rows"] for batch in loader]).tolist())
    assert len(orders[0]) == len(set(orders[0])) == len(loader) * 16 == 560
    assert orders[0] != orders[1] and not set(orders[0]) & set(data.rows["val"][1].tolist())


def test_words_of_a_few_rows_are_those_of_all():
    rows = np.array([0, 3, 4, 1001])
    for purpose in PURPOSES:
        assert np.array_equal(words_at(rows, 7, purpose, 2), random_words(1002, 7, purpose, 0, 2)[rows])


@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_the_size_of_a_picture_is_in_its_header(orientation):
    opened, exif = io.BytesIO(), Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new("RGB", (20, 10)).save(opened, "JPEG", exif=exif)
    assert picture_size(opened.getvalue()) == pictures.decode(opened.getvalue()).shape[1::-1]


@pytest.mark.parametrize(
    ("name", "text"), [("question", "user :"), ("question", "{} {}"), ("turn", "{x} {}"), ("caption", "describe {}")]
)
def test_a_form_without_a_place_for_the_question_is_refused(folder, name, text):
    with pytest.raises(ValueError, match=rf"data\.form\.{name} is .*expected a text"):
        texts(folder, form=WORLD_FORM | {name: text})


def test_what_does_not_fit_is_refused(folder):
    with pytest.raises(ValueError, match="image_size"):
        texts(folder, image_size=32).columns  # noqa: B018
    with pytest.raises(ValueError, match="call `for_models`"):
        next(IllustratedTexts(folder=folder, **SETTINGS).evaluation_batches("val"))
    with pytest.raises(ValueError, match="expected some of train"):
        texts(folder, splits={"odd": {"source": "train", "rows": None}})
    judged = texts(folder, splits={"test": {"source": "val", "rows": None}})
    assert len(next(judged.evaluation_batches("test"))["rows"]) == 20
    with pytest.raises(ValueError, match="there is no split 'train'"):
        judged.train_dataloader()
    with pytest.raises(ValueError, match="more than 1"):
        texts(folder, regions=0.75)
