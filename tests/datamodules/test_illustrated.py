"""Pictures with prompts and answers: what is learnt is the answer, and padding changes nothing else."""

import pytest
import torch

from lightning_modules.datamodules.illustrated import (
    IGNORED,
    WORLD_FORM,
    IllustratedBatches,
    IllustratedTexts,
    caption_prompt,
    question_prompt,
)
from lightning_modules.datasets.splits import Portion
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


def test_what_does_not_fit_is_refused(folder):
    with pytest.raises(ValueError, match="image_size"):
        texts(folder, image_size=32).columns  # noqa: B018
    with pytest.raises(ValueError, match="call `for_models`"):
        next(IllustratedTexts(folder=folder, **SETTINGS).evaluation_batches("val"))
    with pytest.raises(ValueError, match="expected train"):
        texts(folder, splits={"odd": {"source": "train", "rows": None}})
    with pytest.raises(ValueError, match="more than 1"):
        texts(folder, regions=0.75)
