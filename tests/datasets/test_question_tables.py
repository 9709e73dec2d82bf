"""Tables of benchmarks: questions as they are asked, and where their pictures are."""

import base64
import csv

import pytest

from lightning_modules.datasets import pictures, question_tables, storage
from lightning_modules.datasets.question_tables import Question, asked, read_questions, row_of


def write(folder, rows, names=("index", "image", "question", "hint", "A", "B", "answer")):
    path = folder / "bench.tsv"
    with path.open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerows([names, *rows])
    return path


def encoded(number):
    return base64.b64encode(pictures.drawn_jpeg(number)).decode()


def prepare(folder, **options):
    config = {"benchmark": "mmbench", "file": "bench.tsv", "cache": str(folder)} | options
    question_tables.prepare(folder / "new", **config)
    return storage.read(folder / "new", "test")


def test_tables_are_read_and_their_questions_asked(tmp_path):
    path = write(tmp_path, [("3", "A" * 200_000, "What?", "Look.", "cup", "hat", "B"),
                            ("4", "A", "Is it?", "", "", "", "Yes")])  # fmt: skip
    limit = csv.field_size_limit()
    first, second = read_questions(path)
    assert csv.field_size_limit() == limit, "other tables have theirs"
    assert first.options == {"A": "cup", "B": "hat"}
    assert second.options == {}
    assert asked(first, "mmbench").splitlines()[:4] == ["Look.", "What?", "A. cup", "B. hat"]
    assert asked(second, "mmmu").splitlines() == ["Is it?", "Answer the question directly."]


def test_questions_are_asked_as_llava_is_asked():
    """As `build_prompt` of VLMEvalKit's LLaVA at e8e78f0 has it, and for yes and no that of its tables."""
    letter, chinese = "Answer with the option's letter from the given choices directly.", "请直接回答选项字母。"
    assert asked(Question("1", "What?", "A", {"A": "cup"}), "ccbench") == f"What?\nA. cup\n{letter}"
    assert asked(Question("1", "这是什么？", "A", {"A": "cup"}), "ccbench") == f"这是什么？\nA. cup\n{chinese}"
    assert asked(Question("1", "What?", "A", {"A": "杯"}), "ccbench").endswith(chinese)
    assert asked(Question("1", "几个？", "7"), "mmmu") == "几个？\n请直接回答问题。"
    for benchmark in ("mme", "hallusionbench"):
        told = Question("1", "Is it red? Please answer yes or no.", "Yes", {}, {"hint": "Look."})
        assert asked(told, benchmark) == "Is it red? Please answer yes or no."


def test_a_picture_is_its_own_that_of_another_row_or_the_first_of_a_list(tmp_path):
    write(tmp_path, [
        ("0", encoded(1), "What?", "nan", "cup", "hat", "A"),
        ("1000000", "0", "What?", "", "hat", "cup", "B"),
        ("5", str([encoded(2), encoded(3)]), "Is it?", "", "", "", "Yes"),
    ])  # fmt: skip
    rows = prepare(tmp_path)
    assert list(rows["image"]) == [pictures.drawn_jpeg(number) for number in (1, 1, 2)]
    assert [each[0].splitlines()[0] for each in rows["questions"]] == ["What?", "What?", "Is it?"]
    assert [each[0] for each in rows["answers"]] == ["A", "B", "Yes"]
    question = Question("1000000", "What?", "B", {"A": "hat", "B": "cup"}, {"hint": ""})
    assert row_of(rows["table"][1]) == ("mmbench", question)
    assert len(prepare(tmp_path, limit=2)["image"]) == 2


@pytest.mark.parametrize("cell", ["", "?", "['", "[]", base64.b64encode(b"no picture").decode()])
def test_questions_without_a_picture_are_left_out_up_to_a_share(tmp_path, cell):
    write(tmp_path, [("0", encoded(1), "What?", "", "a", "b", "A"), ("1", cell, "What?", "", "a", "b", "A")])
    with pytest.raises(ValueError, match=r"question 1 in .*broken|broken.*question 1 in"):
        prepare(tmp_path)
    assert len(prepare(tmp_path, max_broken=0.6)["image"]) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no rows"),
        ("index\tquestion\n1\tWhat?\n", "has no column answer"),
        ("index\tquestion\tanswer\n1\tWhat?\tA\n1\tWho?\tB\n", "has the index 1 2 times: each question has one row"),
        ("index\tquestion\tanswer\n1\tWhat?\tA\n", "has no column image"),
    ],
)
def test_tables_of_another_form_are_refused(tmp_path, content, message):
    (tmp_path / "bench.tsv").write_text(content)
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path)
