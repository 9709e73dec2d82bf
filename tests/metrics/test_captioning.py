import importlib.util
import shutil

import pytest

from lightning_modules.metrics import captioning
from lightning_modules.metrics.captioning import bleu, rouge_l, score_captions

PUBLISHED = {"bleu_1": "0.550000", "bleu_2": "0.428174", "bleu_3": "0.284043", "bleu_4": "0.201143",
             "rouge_l": "0.522104", "cider_d": "1.242192"}  # fmt: skip


def test_published_values(nlg_eval):
    """As nlg-eval prints them for its example."""
    found = score_captions(*nlg_eval)
    assert {name: f"{value:.6f}" for name, value in found.scores.items()} == PUBLISHED
    assert found.not_computed == dict.fromkeys(("meteor", "spice"), "not asked for: it needs Java")


def test_meteor_is_the_official_program(nlg_eval):
    if shutil.which("java") is None or importlib.util.find_spec("pycocoevalcap") is None:
        pytest.skip("java or the package pycocoevalcap is not there")
    found = score_captions(*nlg_eval, java=True)
    assert f"{found.scores['meteor']:.6f}" == "0.295797"
    assert ("spice" in found.scores) != ("spice" in found.not_computed)


def test_what_needs_java_is_never_0_without_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = score_captions({1: "a dog", 2: "a cat"}, {1: ["a dog"], 2: ["the cat"]}, java=True)
    assert not {"meteor", "spice"} & set(found.scores)
    assert found.not_computed["meteor"] == "pycocoevalcap is not installed: pip install --no-deps pycocoevalcap"


def test_spice_is_not_computed_without_its_models_or_java(monkeypatch, tmp_path):
    (tmp_path / "pycocoevalcap").mkdir()
    (tmp_path / "pycocoevalcap/__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert captioning._why_not("meteor") == "there is no java on the path"
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/java")
    assert captioning._why_not("meteor") is None
    assert "the models of SPICE are not there" in captioning._why_not("spice")


def words(text):
    return text.split()


def test_bleu_by_hand():
    said = {1: words("the the the the"), 2: words("a cat sat")}
    known = {1: [words("the cat is here"), words("the the dog")], 2: [words("a cat sat down here now")]}
    # Clipped: 2 of 4 and 3 of 3; lengths 7 against 4 + 6, so exp(1 - 10/7).
    assert bleu(said, known)[0] == pytest.approx(5 / 7 * 2.718281828 ** (1 - 10 / 7), rel=1e-6)
    equally_close = {1: [words("a b"), words("a b c d")]}
    assert bleu({1: words("a b x")}, equally_close)[0] == pytest.approx(2 / 3)  # the shorter one: no penalty


def test_rouge_l_by_hand():
    known = {1: [words("a b c d"), words("x y")]}
    precision, recall = 2 / 3, 2 / 4
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert rouge_l({1: words("a z c")}, known)[0] == pytest.approx(expected)
    best_of_both = {1: [words("a b c d"), words("a")]}  # precision of the first, recall of the second
    assert rouge_l({1: words("a b")}, best_of_both)[0] == pytest.approx(1.0)
    assert rouge_l({1: words("q")}, known)[0] == rouge_l({1: []}, known)[0] == 0


def test_captions_and_references_are_of_the_same_images():
    known = {1: ["a dog"], 2: ["a cat"]}
    with pytest.raises(ValueError, match=r"no references for 1 \(3\) of the captioned images"):
        score_captions({1: "a dog", 2: "a cat", 3: "a cow"}, known)
    with pytest.raises(ValueError, match="1 of 2 images have no caption, 2 first"):
        score_captions({1: "a dog"}, known)
    with pytest.raises(ValueError, match="there are no references"):
        score_captions({}, {})
    with pytest.warns(UserWarning, match="CIDEr-D of a single image is 0"):
        found = score_captions({1: "a dog"}, {1: ["a dog"]})
    assert found.scores["cider_d"] == 0 and found.scores["bleu_1"] == pytest.approx(1)


def test_a_word_that_is_said_again_at_once_is_removed():
    for said, expected in {
        "a a red red ring.": "a red ring.",
        "on the then the the": "on the then the",  # the word ends where the other goes on
        "a t-shirt shirt": "a t-shirt",
        "a ring ring.": "a ring.",
        "a dog and a dog": "a dog and a dog",
        "A a man": "A a man",
    }.items():
        assert captioning.without_repeated_words(said) == expected
