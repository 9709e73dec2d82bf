"""Answers to the questions of benchmarks: how they are read, and scores worked out by hand."""

import pytest

from lightning_modules.datasets.question_tables import Question
from lightning_modules.vlora import benchmarks
from lightning_modules.vlora.benchmarks import chosen, yes_or_no

OPTIONS = {"A": "a red cup", "B": "a cup", "C": "two cups"}


def pick(index, answer, category="x", options=OPTIONS):
    return Question(index, "What is it?", answer, options, {"category": category})


def told(index, answer, **more):
    return Question(index, "Is it?", answer, {}, more)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), ("B.", "B"), ("(C) two cups", "C"), ("The answer is A", "A"), ("answer: (b)", "B"), ("A cup", "B"),
        ("It is a red cup.", "A"), ("two cups", "C"), ("D", None), ("a red cup or two cups", None), ("", None),
        ("The answer is a cup", "B"), ("the option is b.", "B"), ("the answer is c", "C"), ("a cupboard", None),
    ],
)  # fmt: skip
def test_an_answer_names_an_option_by_letter_or_by_text(answer, letter):
    assert chosen(answer, OPTIONS) == letter


def test_options_are_whole_words():
    yes_no, counts = {"A": "Yes", "B": "No"}, {"A": "1", "B": "10"}
    assert [chosen(text, yes_no) for text in ("no", "not known", "yesterday")] == ["B", None, None]
    assert [chosen(text, counts) for text in ("there are 10", "12", "1")] == ["B", None, "A"]


def test_an_answer_says_yes_or_no_or_neither():
    assert [yes_or_no(text) for text in ("Yes, it is.", "NO", "nothing", "yes and no")] == ["yes", "no", None, None]


def test_a_question_counts_once_and_only_if_it_is_right_in_each_order():
    questions = [pick("1", "A"), pick("1000001", "B"), pick("2", "C", "y"), pick("1000002", "A", "y")]
    found = benchmarks.circular(questions, ["A", "B", "C", "nothing"])
    assert found == {"accuracy_percent": 50, "accuracy_percent/x": 100, "accuracy_percent/y": 0,
                     "plain_percent": 100, "unread_percent": 25}  # fmt: skip
    assert benchmarks.accuracy(questions, ["A", "B", "C", "nothing"])["accuracy_percent"] == 75
    with pytest.raises(ValueError, match="index 'a' is no number"):
        benchmarks.circular([pick("a", "A")], ["A"])


def test_mme_adds_right_answers_and_pictures_with_both_right():
    names = [("color", "1"), ("color", "1"), ("color", "2"), ("color", "2"), ("code_reasoning", "3")]
    questions = [told(f"{n}", "Yes", category=part, image_path=path) for n, (part, path) in enumerate(names)]
    questions.append(told("5", "No", category="code_reasoning", image_path="3"))
    found = benchmarks.mme(questions, ["yes", "Yes.", "yes", "no", "yes", "no"])
    assert (found["color"], found["perception"], found["cognition"]) == (75 + 50, 125, 200)
    with pytest.raises(ValueError, match="1 pictures have not two questions, '3' first"):
        benchmarks.mme(questions[:-1], ["yes"] * 5)
    with pytest.raises(ValueError, match="category 'smell', expected a part of MME"):
        benchmarks.mme([told("0", "Yes", category="smell")], ["yes"])


def test_hallusionbench_asks_for_whole_figures_and_whole_questions():
    numbers = [(figure, number) for figure in (0, 1) for number in (0, 1)]
    questions = [told(f"h_VD_map_0_{figure}_{number}", "Yes", **{"l2-category": "map"}) for figure, number in numbers]
    found = benchmarks.hallusion(questions, ["yes", "yes", "yes", "no"])
    assert (found["aAcc"], found["fAcc"], found["qAcc"], found["overall"]) == (75, 50, 50, pytest.approx(175 / 3))
    with pytest.raises(ValueError, match="the index is '7' and l2-category None"):
        benchmarks.hallusion([told("7", "1")], ["yes"])


def test_answers_are_found_by_their_index(tmp_path):
    answers, questions = tmp_path / "answers.tsv", [pick("3", "B"), told("4", "Yes")]
    answers.write_text("index\tprediction\n4\tNo\n3\tB. hat\n")
    assert benchmarks.read_answers(answers, questions) == ["B. hat", "No"]
    answers.write_text("index\tprediction\n4\tNo\n")
    with pytest.raises(ValueError, match="no answer to 1 questions, 3 first"):
        benchmarks.read_answers(answers, questions)


def test_as_many_answers_as_questions():
    with pytest.raises(ValueError, match="there are 1 questions and 2 answers"):
        benchmarks.accuracy([pick("1", "A")], ["A", "B"])
