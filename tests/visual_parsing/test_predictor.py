"""Answers about a user's pictures."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules.datasets.world.asked import answers as asked_answers
from lightning_modules.files import write_json
from lightning_modules.visual_parsing import predictor
from lightning_modules.visual_parsing.predictor import Answers, Captions
from tests.visual_parsing import small

DATA = {"tokenizer": "asked", "text_length": 14}
MODEL = {"visual": small.VISUAL}


@pytest.fixture
def pictures(tmp_path):
    draw = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(draw.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / name)
    return [tmp_path / "a.png", tmp_path / "b.png"]


def texts(tmp_path, *lines):
    (tmp_path / "texts.txt").write_text("\n".join(lines))
    return tmp_path / "texts.txt"


def captions(**changes):
    return Captions(small.module(**changes).eval(), {"model": MODEL, "data": DATA})


def answers(*tasks):
    outputs = {"question": len(asked_answers()), "entailment": 3, "pair": 2}
    facts = {"model": MODEL, "data": DATA, "answers": asked_answers()}
    return Answers({task: (small.answering(task, outputs[task]).eval(), facts) for task in tasks or outputs})


def test_texts_are_ranked_by_how_surely_they_belong_to_a_picture(pictures, tmp_path):
    model, said = captions(), ["red circle above blue square", "blue square"]
    assert model.begin([*pictures, texts(tmp_path, *said)]) == pictures
    lines = list(model.answer(pictures[0], top=2))
    assert [line["rank"] for line in lines] == [1, 2]
    assert {line["text"] for line in lines} == set(said)
    assert lines[0]["matches"] >= lines[1]["matches"]
    many = model.rank(pictures[0], said * 40)  # more than are read at a time
    assert [share for _, share in many] == pytest.approx(
        [lines[0]["matches"]] * 40 + [lines[1]["matches"]] * 40, abs=1e-5
    )
    alone = {text: model.rank(pictures[0], [text])[0][1] for text in said}
    assert {line["text"]: line["matches"] for line in lines} == pytest.approx(alone, abs=1e-5)
    assert model.flow(pictures[0], said[0]).shape == (2,)


def test_questions_and_statements_are_told_apart_by_their_end(pictures, tmp_path):
    model = answers()
    model.begin([*pictures, texts(tmp_path, "what color is the thing?", "red circle at the top left")])
    first, second = (list(model.answer(path, top=2)) for path in pictures)
    assert [line["rank"] for line in first if "question" in line] == [1, 2]
    (judged,) = [line for line in first if "label" in line]
    assert judged["label"] in ("contradiction", "neutral", "entailment") and 1 / 3 <= judged["probability"] <= 1
    assert not [line for line in first if "true" in line]
    (both,) = [line for line in second if "true" in line]
    assert both["pictures"] == "a.png b.png"
    assert both["true"] == pytest.approx(model.compare(*pictures, "red circle at the top left"), abs=1e-5)


def test_a_folder_of_two_pictures_is_a_pair(pictures, tmp_path):
    folder = tmp_path / "both"
    folder.mkdir()
    moved = [path.rename(folder / path.name) for path in pictures]
    model = answers("pair")
    assert model.begin([folder, texts(tmp_path, "red circle at the top left")]) == [folder]
    assert not list(model.answer(moved[0]))
    (both,) = model.answer(moved[1])
    assert both["pictures"] == "a.png b.png"
    Image.new("RGB", (8, 8)).save(folder / "c.png")
    with pytest.raises(ValueError, match="but not statements about a picture"):
        model.begin([folder, tmp_path / "texts.txt"])


def test_statements_that_only_the_model_of_pairs_can_read_are_judged_of_both(pictures, tmp_path):
    made = {task: (small.answering(task, outputs).eval(), {"model": MODEL, "data": DATA | {"text_length": length}})
            for task, outputs, length in (("entailment", 3, 6), ("pair", 2, 14))}  # fmt: skip
    model = Answers(made)
    model.begin([*pictures, texts(tmp_path, "red circle at the top left", "red circle")])
    assert [line["statement"] for line in model.answer(pictures[0])] == ["red circle"]
    told = [line["statement"] for line in model.answer(pictures[1]) if "true" in line]
    assert told == ["red circle at the top left", "red circle"]
    with pytest.raises(ValueError, match="takes 8 tokens, more than the 6 of the model"):
        model.begin([pictures[0], tmp_path / "texts.txt"])


def test_answers_are_those_of_the_network(pictures):
    model = answers("question")
    found = model.ask(pictures[0], "how many red things are there?")
    assert {answer for answer, _ in found} == set(asked_answers())
    shown = np.array(Image.open(pictures[0]).resize((32, 32), Image.Resampling.BICUBIC))
    ids, there = model.readings["question"].tokenizer(["how many red things are there ?"], 14)
    batch = {"images": torch.from_numpy(shown).permute(2, 0, 1)[None], "token_ids": torch.from_numpy(ids),
             "attention_mask": torch.from_numpy(there)}  # fmt: skip
    with torch.inference_mode():
        scores = model.modules["question"].logits(batch)[0].sigmoid()
    assert found[0] == (asked_answers()[int(scores.argmax())], pytest.approx(float(scores.max()), abs=1e-5))


def test_pictures_of_official_data_keep_their_aspect_ratio(pictures):
    model = answers("entailment")
    visual = {**small.VISUAL, "windows": "several"}
    module = small.answering("entailment", 3, visual=visual).eval()
    facts = {"model": {"visual": visual}, "data": DATA | {"short": 24, "long": 32}}
    model = Answers({"entailment": (module, facts)})
    assert model.readings["entailment"].pictures(pictures)["sizes"].tolist() == [[24, 30]] * 2
    assert sum(model.judge(pictures[0], "red circle").values()) == pytest.approx(1, abs=1e-5)


def test_the_network_of_each_protocol_is_loaded(pictures, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    from lightning_modules.files import sha256

    monkeypatch.setattr(predictor, "ROOT", tmp_path)
    module = small.answering("pair", 2).eval()
    block = {
        "_target_": "lightning_modules.visual_parsing.answering.Answering", **small.PARTS, "task": "pair", "outputs": 2
    }  # fmt: skip
    place = tmp_path / "runs/visual_parsing/pairs/seed-3"
    place.mkdir(parents=True)
    save_file({name: x.contiguous() for name, x in module.export().items()}, place / "weights.safetensors")
    write_json(place / "facts.json", {
        "task": "pair", "model": block, "data": DATA, "weights_sha256": sha256(place / "weights.safetensors")
    })  # fmt: skip
    (tmp_path / predictor.FILE).write_text(json.dumps({"pairs": "runs/visual_parsing/pairs/seed-3"}))
    loaded = predictor.load_answers(tmp_path)
    expected = Answers({"pair": (module, {"model": MODEL, "data": DATA})}).compare(*pictures, "red circle")
    assert loaded.compare(*pictures, "red circle") == pytest.approx(expected, rel=1e-5)
    (tmp_path / predictor.FILE).write_text(json.dumps({"pairs": "runs/none/seed-0"}))
    with pytest.raises(ValueError, match=r"has no trained network, of which .*answering\.json speaks"):
        predictor.load_answers(tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["grünes Haus"], "'grünes Haus' has no word that the model knows"),
        (["red " * 20], "takes 22 tokens, more than the 14 of the model"),
    ],
)
def test_texts_that_cannot_be_read_are_refused(pictures, tmp_path, lines, message):
    for model in (captions(), answers()):
        with pytest.raises(ValueError, match=message):
            model.begin([*pictures, texts(tmp_path, *lines)])


def test_what_the_model_has_not_learnt_is_refused(pictures, tmp_path):
    with pytest.raises(ValueError, match=r"has learnt statements about two pictures, but not questions.*-questions"):
        answers("pair").begin([*pictures, texts(tmp_path, "how many?")])
    with pytest.raises(ValueError, match=r"has learnt questions.*, but not statements about a picture"):
        answers("question").begin([pictures[0], texts(tmp_path, "red circle")])
    with pytest.raises(ValueError, match="has not learnt what belongs together"):
        captions(losses={"words": 1.0, "matching": 0.0, "features": 1.0}).begin([*pictures, texts(tmp_path, "red")])


def test_pictures_without_texts_are_refused(pictures, tmp_path):
    for model in (captions(), answers()):
        with pytest.raises(ValueError, match="0 text files"):
            model.begin(pictures)
    model = captions()
    (tmp_path / "cut.png").write_bytes(pictures[0].read_bytes()[:60])
    model.begin([tmp_path / "cut.png", texts(tmp_path, "red circle")])
    with pytest.raises(ValueError, match=r"cut\.png cannot be read as a picture"):
        list(model.answer(tmp_path / "cut.png"))
