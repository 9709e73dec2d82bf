"""Answers to the questions of benchmarks: how they are read, and scores worked out by hand."""

import csv

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
        ("B", "B"), ("B.", "B"), ("It's B", "B"), ("I think (C)", "C"), ("[B]", "B"), ("**B**", "B"),
        ("B\nbecause", "B"), ("The correct option is: C.", "C"), ("(C) two cups", "C"), ("A cup", "A"),
        ("答案是B", None), ("D", None), ("A or B", None), ("Z", None), ("Z, a cup", None), ("", None),
        ("two CUPS", "C"), ("a cupboard", "B"), ("a red cup or two cups", None),
        ("a cup, or rather a saucer on a mat made of straw", None),
        ("B is what I see in all of these", None), ("The answer is **C**, as A and B are red", "C"),
        ("the answer is between them", "B"), ("answer: (b)", None),
    ],
)  # fmt: skip
def test_an_answer_names_an_option_by_letter_or_by_text(answer, letter):
    """VLMEvalKit at e8e78f0, `can_infer`, gave these letters, and the same as ours for 200,000 answers at random."""
    assert chosen(answer, OPTIONS) == letter


def test_a_text_of_an_option_may_be_a_part_of_a_word():
    yes_no, counts = {"A": "Yes", "B": "No"}, {"A": "1", "B": "10"}
    assert [chosen(text, yes_no) for text in ("no", "not known", "yesterday")] == ["B", "B", "A"]
    assert [chosen(text, counts) for text in ("10", "12", "1")] == [None, "A", "A"]


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ("Yes, it is.", "yes"), ("NO", "no"), ("no-one", "no"), ("nothing", None), ("yes and no", None),
        ("yes/no", None), ("**Yes**", None), ("yes: it is", None), ("well,yes, it is", None), ("1,000,yes", None),
    ],
)  # fmt: skip
def test_an_answer_says_yes_or_no_or_neither(answer, word):
    """VLMEvalKit at e8e78f0, `YOrN_Extraction`, likewise."""
    assert yes_or_no(answer) == word


def test_an_open_question_of_mmmu_is_one_between_its_answer_and_any_other():
    questions = [told("1", "7"), told("2", "red cup"), told("3", "blue"), pick("4", "C"), told("5", "C")]
    found = benchmarks.mmmu(questions, ["7", "It is a Red Cup.", "other answers", "C", "C"])
    assert found == {"accuracy_percent": 60, "accuracy_percent/x": 100, "unread_percent": 0}
    assert benchmarks.SCORES["mmmu"] is benchmarks.mmmu
    assert benchmarks.mmmu([told("1", "7")], ["yes"])["unread_percent"] == 100


def test_each_split_has_its_own_scores():
    rows = [("1", "A", "dev"), ("2", "B", "validation"), ("3", "A", "validation")]
    questions = [
        Question(index, "", answer, OPTIONS, {"category": "x", "split": split}) for index, answer, split in rows
    ]
    for score in (benchmarks.accuracy, benchmarks.mmmu, benchmarks.circular):
        found = score(questions, ["A", "B", "C"])
        assert found["dev/accuracy_percent"] == found["dev/accuracy_percent/x"] == 100
        assert found["validation/accuracy_percent"] == 50
        assert found["accuracy_percent"] == pytest.approx(200 / 3)
    assert "dev/accuracy_percent" not in benchmarks.accuracy(questions[:1], ["A"])


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


def test_a_file_of_answers_is_scored_by_the_table_of_its_questions(tmp_path):
    answers, table = tmp_path / "answers.tsv", tmp_path / "bench.tsv"
    table.write_text("index\tquestion\tanswer\tA\tB\n3\twhat?\tB\tcap\that\n4\twho?\tA\tJo\tMo\n")
    answers.write_text("index\tprediction\tmodel\n4\tIt is B\tmine\n3\tB. hat\tmine\n")
    assert benchmarks.score(answers, table, "scienceqa") == {"accuracy_percent": 50, "unread_percent": 0}
    with pytest.raises(ValueError, match="benchmark is 'mmbnch', expected one of mmbench, ccbench"):
        benchmarks.score(answers, table, "mmbnch")
    with pytest.raises(ValueError, match=r"no\.tsv cannot be read as a table"):
        benchmarks.score(tmp_path / "no.tsv", table, "mmbench")


def test_long_answers_are_read(tmp_path):
    answers, limit = tmp_path / "answers.tsv", csv.field_size_limit()
    answers.write_text(f"index\tprediction\n3\t{'B' * 200_000}\n")
    assert len(benchmarks.read_answers(answers, [pick("3", "B")])[0]) == 200_000
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", b"PK\x03\x04", r"a\.xlsx is a table of Excel, expected text with tabs: .*PRED_FORMAT=tsv"),
        ("a.csv", b"index,prediction\n3,B\n", r"a\.csv has commas between its columns, expected tabs"),
        ("a.tsv", b"index\tprediction\n3\tB\n3\tA\n", r"a\.tsv has the index 3 2 times"),
        ("a.tsv", b"index\tanswer\n3\tB\n", "has no column prediction; there are index, answer"),
        ("a.tsv", b"", "has no rows"),
        ("a.tsv", b"index\tprediction\n3\t\xfc\n", r"a\.tsv cannot be read as a table: .*Expected UTF-8 with tabs"),
    ],
)
def test_tables_of_answers_in_another_form_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        benchmarks.read_answers(tmp_path / name, [pick("3", "B")])


def test_as_many_answers_as_questions():
    with pytest.raises(ValueError, match="there are 1 questions and 2 answers"):
        benchmarks.accuracy([pick("1", "A")], ["A", "B"])
