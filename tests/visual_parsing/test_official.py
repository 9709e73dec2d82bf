"""Official data sets give batches in the form of the world's."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules.datasets import captioned_pictures, mixture, nlvr2, snli_ve, storage, vqa2
from lightning_modules.datasets.download import MIRROR_VARIABLE
from lightning_modules.visual_parsing.official import FILL, OfficialPictures, framed, scaled

TRAIN = {"train": {"source": "train", "rows": None}}
VQA = {
    "splits": {
        "train": {"questions": "q.json", "annotations": "a.json", "images": "train2014", "rows": None},
        "val": {"questions": "vq.json", "annotations": "va.json", "images": "val2014", "rows": None},
    },
    "vocabulary": {"splits": ["train"], "occurrences": 9, "count": 4},
}  # fmt: skip
PAIRS = {"splits": {"train": {"file": "train.json", "images": "images/train", "rows": None}}}
SNLI = {"form": "snli", "splits": {"train": None}}
CAPTIONS = {"splits": {"train": None, "val": None}, "restval": False, "visual_genome": ["VG_100K"]}
FORMS = {
    "caption": (captioned_pictures, CAPTIONS),
    "question": (vqa2, VQA),
    "entailment": (snli_ve, SNLI),
    "pair": (nlvr2, PAIRS),
}


def prepared(folder, task, rows=8):
    """A stand-in of the task's data set, prepared."""
    module, config = FORMS[task]
    if not folder.exists():
        folder.mkdir()
        made = module.stand_in(folder, rows=rows, **config)
        module.prepare(folder / "prepared", **config | made.config)
    return folder / "prepared"


def data(place, form, rows=8, **changes):
    task = changes.get("task", form)
    folder = changes.get("folder") or prepared(place, form, rows)
    config = dict(
        folder=folder, seed=1, splits=TRAIN, task=task, part=None, tokenizer="world",
        text_length=8, batch_size=4, evaluation_batch_size=4, short=24, long=32,
    )  # fmt: skip
    return OfficialPictures(**config | changes)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: [])
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)


@pytest.mark.parametrize("task", FORMS)
def test_batches_have_the_form_of_their_task(tmp_path, task):
    made = data(tmp_path / task, task)
    batch = next(made.evaluation_batches("train"))
    each = (2,) if task == "pair" else ()
    assert batch["images"].shape == (4, *each, 3, 32, 32)
    assert batch["sizes"].tolist() == torch.tensor([24, 32]).expand(4, *each, 2).tolist()
    assert batch["token_ids"].shape == batch["attention_mask"].shape == (4, 8)
    extra = {"caption": set(), "question": {"targets", "kinds"}, "entailment": {"labels"}, "pair": {"labels", "groups"}}
    assert set(batch) == {"images", "sizes", "token_ids", "attention_mask", "rows"} | extra[task]


@pytest.mark.parametrize("task", FORMS)
def test_an_epoch_has_every_text_once(tmp_path, task):
    made = data(tmp_path / task, task)
    seen = torch.cat([batch["rows"] for batch in made.train_dataloader()])
    told = torch.cat([batch["rows"] for batch in made.evaluation_batches("train")])
    assert len(set(seen.tolist())) == len(seen) == len(told) // 4 * 4
    assert set(seen.tolist()) <= set(told.tolist())


def test_captions_take_turns(tmp_path):
    made = data(tmp_path / "caption", "caption", tokenizer="google-bert/bert-base-uncased")
    made.tokenizer = lambda texts, length: (np.array([[hash(text)] for text in texts]), np.ones((len(texts), 1), bool))
    source, items = made.items("train")
    first, again, next_ = (made.batch(source, items[:1], turn)["token_ids"].item() for turn in (0, 0, 1))
    assert first == again != next_


def test_targets_are_what_each_answer_counts(tmp_path):
    folder = prepared(tmp_path / "question", "question")
    made = data(tmp_path / "question", "question")
    assert len(made.answers) == 4
    rows = storage.read(folder, "train")
    batch = next(made.evaluation_batches("train"))
    given = [json.loads(people) for answers in rows["answers"] for people in answers][:4]
    assert [made.answers[number] for number in batch["targets"].argmax(1)] == [next(iter(people)) for people in given]
    assert batch["targets"].sum(1).tolist() == [1.0] * 4
    assert made._targets(['{"sort 1": 2, "Sort 2": 8}'])[0].max() == 1
    assert sorted(made._targets(['{"sort 1": 2, "sort 2": 8}'])[0].tolist())[2:] == pytest.approx([0.6, 1.0])


def test_questions_without_answers_can_be_answered_but_not_learnt(tmp_path):
    config = VQA | {"splits": VQA["splits"] | {"val": VQA["splits"]["val"] | {"annotations": None}}}
    (tmp_path / "copy").mkdir()
    made = vqa2.stand_in(tmp_path / "copy", rows=8, **config)
    vqa2.prepare(tmp_path / "new", **config | made.config)
    splits = TRAIN | {"test": {"source": "val", "rows": None}}
    known = data(tmp_path, "question", folder=tmp_path / "new", splits=splits)
    batches = list(known.evaluation_batches("test"))
    assert torch.cat([batch["rows"] for batch in batches]).tolist() == list(range(8)), "ids of questions"
    assert {int(kind) for batch in batches for kind in batch["kinds"]} == {-1}
    assert not any(batch["targets"].any() for batch in batches)
    for wrong in ({"train": {"source": "val", "rows": None}}, TRAIN | {"val": {"source": "val", "rows": None}}):
        known = data(tmp_path, "question", folder=tmp_path / "new", splits=wrong)
        with pytest.raises(ValueError, match=r"data\.splits\.(train|val) has questions of .* without answers"):
            next(known.evaluation_batches("val")) if "val" in wrong else known.train_dataloader()


def test_pairs_show_the_left_picture_first(tmp_path):
    made = data(tmp_path / "pair", "pair")
    rows = storage.read(tmp_path / "pair/prepared", "train")
    batch = next(made.evaluation_batches("train"))
    assert batch["labels"].tolist() == [1, 0, 1, 0]
    for place, row in ((0, 0), (2, 2)):  # two sentences for each pair
        for side in (0, 1):
            shown = framed([scaled(np.array(_opened(rows["image"][row + side])), 24, 32)], 32)[0][0]
            assert torch.equal(batch["images"][place, side], shown)


def _opened(content):
    return Image.open(io.BytesIO(content)).convert("RGB")


def test_a_pair_that_a_rehearsal_cuts_is_left_out(tmp_path, monkeypatch):
    from lightning_modules import rehearsal

    monkeypatch.setattr(rehearsal, "current", rehearsal.Rehearsal(rows=5))
    made = data(tmp_path / "pair", "pair")
    assert len(storage.read(tmp_path / "pair/prepared", "train")["id"]) == 5
    assert len(torch.cat([batch["rows"] for batch in made.evaluation_batches("train")])) == 4


def test_held_out_pictures_take_all_their_texts_along(tmp_path):
    splits = {"train": {"source": "train", "rows": None}, "val": {"source": "train", "rows": 2}}
    made = data(tmp_path / "entailment", "entailment", splits=splits)
    (source, train), (_, val) = made.items("train"), made.items("val")
    assert (len(train), len(val)) == (18, 6)
    assert not set(source.unit[train]) & set(source.unit[val])


def test_retrieval_has_five_captions_of_each_picture(tmp_path):
    made = data(tmp_path / "caption", "caption", splits=TRAIN | {"val": {"source": "val", "rows": None}})
    known = made.retrieval("val")
    assert known["picture_of"].tolist() == [place for place in range(8) for _ in range(5)]
    assert known["token_ids"].shape == (40, 8)
    assert known["images"](np.array([2, 0])).shape == (2, 3, 32, 32)
    assert known["sizes"](np.array([2, 0])).tolist() == [[24, 32]] * 2
    with pytest.raises(ValueError, match="only the task caption"):
        data(tmp_path / "pair", "pair").retrieval("train")


def test_a_part_of_a_mixture_is_read(tmp_path):
    parts = {}
    for name, (module, config) in {"snli_ve": (snli_ve, SNLI), "nlvr2": (nlvr2, PAIRS)}.items():
        (tmp_path / name).mkdir()
        made = module.stand_in(tmp_path / name, rows=4, **config)
        parts[name] = {"_target_": f"lightning_modules.datasets.{name}.prepare", **config, **made.config}
    mixture.prepare(tmp_path / "both", parts=parts)
    made = data(tmp_path / "none", "entailment", folder=tmp_path / "both", part="snli_ve")
    assert next(made.evaluation_batches("train"))["labels"].tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("size", "expected"), [((48, 64), (24, 32)), ((64, 48), (32, 24)), ((10, 100), (3, 32)), ((8, 8), (24, 24))]
)
def test_pictures_keep_their_aspect_ratio_within_the_square(size, expected):
    assert scaled(np.zeros((*size, 3), np.uint8), 24, 32).shape[:2] == expected


def test_the_rest_of_the_square_has_the_mean_colour():
    frames, sizes = framed([np.zeros((2, 4, 3), np.uint8)], 4)
    assert sizes.tolist() == [[2, 4]]
    assert frames[0, :, 3, 0].tolist() == list(FILL)
    assert not frames[0, :, :2].any()


def test_a_further_source_is_judged_whole_and_never_learnt_from(tmp_path):
    made = data(tmp_path / "caption", "caption", also=["val"])
    assert torch.cat([batch["rows"] for batch in made.evaluation_batches("val")]).tolist() == list(range(8))
    assert "val" not in made.rows
    splits = TRAIN | {"val": {"source": "val", "rows": 2}}
    with pytest.raises(ValueError, match=r"data\.also has val, of which data\.splits takes rows"):
        data(tmp_path / "caption", "caption", splits=splits, also=["val"])


def test_settings_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"long is 16 and data\.short 24"):
        data(tmp_path / "pair", "pair", long=16)
    with pytest.raises(ValueError, match="the task question needs questions, answers, kinds"):
        next(data(tmp_path / "pair", "pair", task="question").evaluation_batches("train"))
    with pytest.raises(ValueError, match=r"there is no split 'test' in data\.splits"):
        data(tmp_path / "pair", "pair").items("test")
