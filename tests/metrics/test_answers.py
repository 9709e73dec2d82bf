import numpy as np
import pytest

from lightning_modules.metrics.answers import accuracy, accuracy_of_choice, count_error, similarity_to_options


def test_an_answer_is_right_if_it_is_the_label_and_never_where_it_cannot_be_given():
    answers, labels = np.array([0, 2, -1, 1, 1]), np.array([0, 1, -1, 1, -1])
    assert accuracy(answers, labels) == {"accuracy_percent": 40.0}
    found = accuracy(answers, labels, np.array([0, 0, 2, -1, 2]), ["what", "who", "how"])
    assert found == {"accuracy_percent": 40.0, "accuracy_percent/what": 50.0, "accuracy_percent/how": 0.0}


def test_a_choice_is_right_if_no_other_option_scores_as_high():
    scores = np.array([[0.1, 0.9], [0.5, 0.5], [0.2, 0.1], [-1.0, -2.0]])
    assert accuracy_of_choice(scores, np.array([1, 0, 1, 0])) == {"accuracy_percent": 50.0}
    assert accuracy_of_choice(np.ones((3, 1)), np.zeros(3, np.int64)) == {"accuracy_percent": 100.0}


def test_a_video_is_compared_with_its_own_options_whatever_their_lengths():
    random = np.random.default_rng(0)
    videos, options = random.normal(size=(6, 4)), random.normal(size=(6, 5, 4))
    found = similarity_to_options(videos, options)
    for video, texts, row in zip(videos, options, found, strict=True):
        lengths = np.linalg.norm(video) * np.linalg.norm(texts, axis=1)
        assert np.allclose(row, texts @ video / lengths)
    assert np.allclose(found, similarity_to_options(3 * videos, options * np.arange(1, 6)[None, :, None]))
    options[np.arange(6), [0, 1, 2, 3, 4, 0]] = 5 * videos
    found = similarity_to_options(videos, options)
    assert accuracy_of_choice(found, np.array([0, 1, 2, 3, 4, 0])) == {"accuracy_percent": 100.0}


def test_counts_are_rounded_and_brought_between_one_and_ten():
    found = count_error(np.array([0.2, 2.4, 14.0, 4.6]), np.array([1, 2, 10, 3]))
    assert found == {"mean_squared_error": 1.0, "accuracy_percent": 75.0}


@pytest.mark.parametrize(("call", "told"), [
    (lambda: accuracy(np.zeros(0, int), np.zeros(0, int)), r"there are 0 answers and 0 labels, expected one of each"),
    (lambda: accuracy(np.zeros(2, int), np.zeros(3, int)), r"there are 2 answers and 3 labels"),
    (lambda: accuracy(np.zeros(2, int), np.zeros(2, int), np.zeros(1, int)), r"there are 2 answers and 1 kinds"),
    (lambda: accuracy(np.zeros(2, int), np.zeros(2, int), np.ones(2, int), ["what"]), r"the kind 1, but there"),
    (lambda: accuracy_of_choice(np.zeros((2, 5)), np.array([0, 5])), r"a label is 5, expected one of the 5 options"),
    (lambda: accuracy_of_choice(np.zeros((2, 5)), np.array([0, -1])), r"a label is -1, expected one of the 5 options"),
    (lambda: accuracy_of_choice(np.array([[0, 1], [0, np.nan]]), np.zeros(2, int)), r"scores of question 1 have NaN"),
    (lambda: similarity_to_options(np.zeros((1, 2)), np.ones((1, 3, 2))), r"a feature has the length 0"),
    (lambda: count_error(np.array([np.nan]), np.ones(1, int)), r"the prediction for question 0 is NaN"),
])  # fmt: skip
def test_what_cannot_be_judged_is_told(call, told):
    with pytest.raises(ValueError, match=told):
        call()
