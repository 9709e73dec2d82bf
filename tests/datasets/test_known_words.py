"""Texts that say something to a model, and what is refused."""

import pytest

from lightning_modules.datasets.known_words import check_texts
from lightning_modules.datasets.tokenizers import world_tokenizer


def check(texts) -> None:
    check_texts(texts, world_tokenizer(), "sentences", "a red circle")


def test_one_known_word_is_enough():
    check(["a red circle", "the zebra"])
    check(("The RED",))


@pytest.mark.parametrize("given", ["a red circle", [], None, [3], (text for text in ["a red circle"])])
def test_what_is_no_list_of_texts_is_refused(given):
    with pytest.raises(ValueError, match=r"sentences is .*, expected a list such as \['a red circle'\]"):
        check(given)


@pytest.mark.parametrize("silent", ["", " ", "...", "zebra quantum", "[SEP]"])
def test_a_text_without_a_known_word_is_refused(silent):
    with pytest.raises(
        ValueError, match=r"sentences has .*, of which the model knows no word; expected a text such as"
    ):
        check(["a red circle", silent])
