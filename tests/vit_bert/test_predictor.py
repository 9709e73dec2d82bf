"""Classes of pictures and words of sentences, of files that a user has."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lightning_modules.datasets.tokenizers import world_tokenizer
from lightning_modules.files import sha256, write_json
from lightning_modules.vit_bert import predictor
from lightning_modules.vit_bert.finetuning import FineTuneImages, FineTuneTexts
from lightning_modules.vit_bert.predictor import Answers, Tuned, load_tuned
from tests.vit_bert.small import ENCODER, IMAGES, PIXELS, TEXTS, module

COMMON = {"encoder": ENCODER, "modality_embedding": False, "deviation": 0.2}
WORDS = TEXTS | {"words": len(world_tokenizer())}


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
        ("zebra [MASK] quux", "'zebra .MASK. quux' has no word that the model knows"),
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


@pytest.fixture
def lay(tmp_path, monkeypatch):
    """`lay(network, **facts)` lays down a fine-tuned network and the results that speak of it: their folder."""
    monkeypatch.setattr(predictor, "ROOT", tmp_path)

    def laid(network, **facts):
        rows = tmp_path / "data/runs/tiny/rows/finetune/arm"
        place = rows / "protocol/seed-3"
        place.mkdir(parents=True)
        save_file({name: x.contiguous() for name, x in network.export().items()}, place / "weights.safetensors")
        write_json(place / "facts.json", facts | {"weights_sha256": sha256(place / "weights.safetensors")})
        model = COMMON | {"images": IMAGES, "texts": WORDS, "preprocess": PIXELS}
        tasks = {"images": {"part": "digits", "data": {}}, "texts": {"part": "texts", "data": {}}}
        write_json(rows / "built.json", {"model": model, "data": {"tasks": tasks}})
        folder = tmp_path / "results"
        folder.mkdir()
        write_json(folder / "tuned.json", {"dataset": "world", "run": place.relative_to(tmp_path).as_posix()})
        return folder

    return laid


def pictured(classes=3):
    torch.manual_seed(1)
    return FineTuneImages(images=IMAGES | {"classes": classes}, preprocess=PIXELS, **COMMON).eval()


def worded(outputs=2, task=None):
    torch.manual_seed(1)
    return FineTuneTexts(texts=WORDS, outputs=outputs, task=task, **COMMON).eval()


@pytest.mark.parametrize("part", ["", "digits"])
def test_a_network_that_was_fine_tuned_on_pictures_says_its_own_classes(lay, tmp_path, part):
    network = pictured()
    folder = lay(network)
    card = tmp_path / "data/datasets/world/tiny" / part
    card.mkdir(parents=True)
    (card / "card.json").write_text(json.dumps({"num_classes": 3, "classes": ["hill", "sea", "sky"]}))
    Image.fromarray(np.full((20, 30, 3), 80, np.uint8)).save(tmp_path / "mine.png")
    found = list(load_tuned(folder).answer(tmp_path / "mine.png", top=3))
    shares = network(torch.full((1, 3, 8, 8), 80.0))[0].softmax(0)
    assert [row["rank"] for row in found] == [1, 2, 3]
    assert found[0]["class"] == ["hill", "sea", "sky"][int(shares.argmax())]
    assert found[0]["probability"] == pytest.approx(shares.max().item(), abs=1e-5)


def test_classes_without_names_are_numbers(lay, tmp_path):
    Image.fromarray(np.full((8, 8), 80, np.uint8)).save(tmp_path / "mine.png")
    assert {name for name, _ in load_tuned(lay(pictured())).classify(tmp_path / "mine.png")} == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("task", "outputs", "line", "labels"),
    [
        (None, 2, "a red circle\ta star", {"does not follow", "follows"}),
        ("mnli", 3, "a red circle\ta star", {"entailment", "neutral", "contradiction"}),
        ("sst2", 2, "a red circle", {"0", "1"}),
    ],
)
def test_a_network_that_was_fine_tuned_on_sentences_says_labels(lay, tmp_path, task, outputs, line, labels):
    network = worded(outputs, task)
    model = load_tuned(lay(network, task=task))
    (tmp_path / "mine.txt").write_text(f"{line}\n\n{line}\n")
    found = list(model.answer(tmp_path / "mine.txt", top=5))
    assert [row["line"] for row in found] == [1] * outputs + [2] * outputs
    assert {row["label"] for row in found} == labels
    ids, there = world_tokenizer()([line.replace("\t", " ")], 9)
    if "\t" not in line:
        expected = network(torch.from_numpy(ids), torch.from_numpy(there))[0].softmax(0)
        assert found[0]["label"] == str(int(expected.argmax()))
        assert found[0]["probability"] == pytest.approx(expected.max().item(), abs=1e-5)


def test_scores_are_said_as_they_are(lay, tmp_path):
    model = load_tuned(lay(worded(1, "stsb"), task="stsb"))
    (tmp_path / "mine.txt").write_text("a red circle\ta star\n")
    (row,) = model.answer(tmp_path / "mine.txt")
    assert row == {"line": 1, "score": pytest.approx(model.judge("a red circle\ta star"), abs=1e-5)}


@pytest.mark.parametrize(
    ("pairs", "text", "message"),
    [
        (True, "a red circle", "has 1 sentences, expected 2: write both on one line, with a tabulator"),
        (False, "a star\ta circle", "has 2 sentences, expected 1: write one on each line"),
        (False, "zebra quux", "has no word that the model knows"),
        (False, "a red circle " * 5, "has 17 tokens, expected at most 12"),
    ],
)
def test_sentences_that_cannot_be_judged_end_in_one_line(pairs, text, message):
    with pytest.raises(ValueError, match=message):
        Tuned(worded(), {}, ("no", "yes"), pairs=pairs).judge(text)


def test_the_other_modality_is_refused_by_a_fine_tuned_network(tmp_path):
    (tmp_path / "mine.txt").write_text("a red circle\n")
    with pytest.raises(ValueError, match="the network was fine-tuned on pictures and reads no sentences"):
        list(Tuned(pictured(), {}, "abc", pairs=False).answer(tmp_path / "mine.txt"))
    with pytest.raises(ValueError, match=r"mine.png is no text file, but the network was fine-tuned on sentences"):
        list(Tuned(worded(), {}, ("no", "yes"), pairs=False).answer(tmp_path / "mine.png"))


def test_a_fine_tuned_network_that_is_gone_is_named(lay):
    folder = lay(pictured())
    write_json(folder / "tuned.json", {"dataset": "world", "run": "data/runs/tiny/rows/finetune/gone/protocol/seed-0"})
    with pytest.raises(ValueError, match=r"gone/protocol/seed-0 has no trained network, of which .*tuned.json speaks"):
        load_tuned(folder)
