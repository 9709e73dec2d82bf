"""Accuracy of VQA 2.0 and consistency of NLVR2, held against what the official code gives."""

import numpy as np
import pytest

from lightning_modules.metrics.picture_questions import (
    CONTRACTIONS,
    consistency,
    credits_of,
    label,
    normalised,
)

# answer -> what `processDigitArticle(processPunctuation(answer))` of the official code makes of it (commit a013f00)
OFFICIAL = {
    "Yes": "yes",
    "the dog.": "dog",
    "two dogs": "2 dogs",
    "dont know": "don't know",
    "1,000": "1000",
    "black/white": "black white",
    "black / white": "black white",
    "t-shirt": "t shirt",
    "3.5": "3.5",
    "a.m.": "am",
    "none": "0",
    "What?!": "what",
    "somebody'd": "somebodyd",
}


@pytest.mark.parametrize("answer", OFFICIAL)
def test_answers_are_normalised_as_the_official_code_does(answer):
    assert normalised(answer) == OFFICIAL[answer]


def test_all_contractions_are_there():
    assert len(CONTRACTIONS) == 120
    assert CONTRACTIONS["whod've"] == CONTRACTIONS["who'dve"] == "who'd've"


@pytest.mark.parametrize(("times", "counts"), [(1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_an_answer_counts_as_a_third_of_the_others_who_give_it(times, counts):
    given = {"red": times, "blue": 10 - times} if times < 10 else {"red": 10}
    assert credits_of(given)["red"] == pytest.approx(counts)


def test_nothing_is_normalised_where_all_agree():
    assert credits_of({"Two.": 10}) == {"Two.": 1.0}
    assert credits_of({"Two.": 9, "3": 1}) == pytest.approx({"2": 1.0, "3": 0.3})


def test_answers_that_are_one_when_normalised_count_together():
    assert credits_of({"Two": 1, "2": 2, "three": 7}) == pytest.approx({"2": 0.9, "3": 1.0})


def test_vocabulary_has_no_commas():
    assert label("yes, a lot") == "yes lot"


def test_a_sentence_is_consistent_if_it_is_judged_rightly_of_every_pair():
    right, groups = np.array([True, True, True, False, True]), np.array([7, 7, 2, 2, 3])
    assert consistency(right, groups) == pytest.approx(100 * 2 / 3)


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(ValueError, match="has no answers"):
        credits_of({})
    with pytest.raises(ValueError, match="0 judgements of 0 sentences"):
        consistency(np.zeros(0, bool), np.zeros(0, int))
