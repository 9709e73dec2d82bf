"""Pictures that are asked about: texts say what is drawn, and neither a text nor a picture alone tells an answer."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from lightning_modules.datasets import storage
from lightning_modules.datasets.columns import ContentDigest, infer_schema, record_batch
from lightning_modules.datasets.world import asked
from lightning_modules.datasets.world.drawing import RGB
from lightning_modules.datasets.world.scenes import CHUNK, COLORS, SHAPES, Stream

GOLDEN = "5aff68543fafc430b307d7bbb98ace2206c0590fcc5697bada30f1654892fd54"
OPTIONS = {"image_size": 32, "colors": 4, "shapes": 4}
CELLS = {0: "top left", 2: "top right", 6: "bottom left", 8: "bottom right"}


@pytest.fixture(scope="module")
def rows():
    """Four chunks."""
    chunks = [asked.chunk(Stream(3, "asked/train", number), **OPTIONS) for number in range(4)]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def looks(rows, row):
    """What is in each cell of a picture: "red circle"."""
    columns = (rows[name][row].tolist() for name in ("cell", "color", "shape"))
    return {cell: f"{COLORS[color]} {SHAPES[shape]}" for cell, color, shape in zip(*columns, strict=True)}


def holds(said, there):
    """Whether "red circle left of blue square" is so."""
    words = next(words for words in ("left of", "right of", "above", "below") if f" {words} " in said)
    first, second = said.split(f" {words} ")
    at = {look: divmod(cell, 3) for cell, look in there.items()}
    (row, column), (other_row, other_column) = at[first], at[second]
    return {
        "left of": row == other_row and column < other_column,
        "right of": row == other_row and column > other_column,
        "above": column == other_column and row < other_row,
        "below": column == other_column and row > other_row,
    }[words]


def test_bytes_are_those_of_every_machine():
    columns = asked.chunk(Stream(0, "asked/train", 0), **OPTIONS)
    digest = ContentDigest()
    digest.update(record_batch(columns, infer_schema(columns), "raw", (32, 32, 3)))
    assert digest.hexdigest() == GOLDEN


def test_captions_are_true_of_their_picture_and_not_of_another(rows):
    for row in range(CHUNK):
        there = looks(rows, row)
        listed, related, placed = rows["captions"][row]
        assert rows["caption"][row] == listed == " , ".join(there.get(cell, asked.HIDDEN) for cell in CELLS)
        assert all(holds(said, there) for said in related.split(" , "))
        looks_at = dict(said.split(" at the ")[::-1] for said in placed.split(" , "))
        assert looks_at.items() <= {CELLS[cell]: look for cell, look in there.items()}.items() and len(looks_at) == 2
        assert {look for look in there.values() if look in related} == set(there.values()), "all things are told"
    wrong = sum(set(looks(rows, row).values()) == set(looks(rows, row - 1).values()) for row in range(CHUNK))
    assert wrong < CHUNK // 20


def test_things_spread_over_their_quadrants_and_the_cover_hides_one(rows):
    for row in range(64):
        image, there = rows["image"][row].astype(int), looks(rows, row)
        for cell in CELLS:
            top, left = 16 * (cell // 6), 16 * (cell % 3 // 2)
            part = image[top : top + 16, left : left + 16]
            if cell == rows["covered"][row]:
                assert (part == asked.COVER).all() and cell not in there
                continue
            color = RGB[COLORS.index(there[cell].split()[0])]
            painted = np.abs(part - color).max(-1) < 30
            tokens = painted.reshape(2, 8, 2, 8).any((1, 3))
            assert tokens.all(), "a part of the thing is in each of its four tokens"


def test_answers_follow_from_the_picture(rows):
    for row in range(CHUNK):
        there = looks(rows, row)
        place = {name: there.get(cell) for cell, name in CELLS.items()}
        for question, answer, kind in zip(
            *(rows[name][row] for name in ("questions", "answers", "kinds")), strict=True
        ):
            words = question.split()
            if kind in ("color", "shape"):
                look = place[" ".join(words[-3:-1])]
                assert answer == look.split()[kind == "shape"]
            elif kind == "relation":
                known = " ".join(words[-3:-1])
                relation = question.removeprefix("what color is the thing ").partition(" the ")[0]
                (found,) = (
                    look for look in there.values() if look != known and holds(f"{look} {relation} {known}", there)
                )
                assert answer == found.split()[0]
            elif kind == "count":
                assert asked.NUMBERS.index(answer) == sum(look.split()[0] == words[2] for look in there.values())
            elif " at the " in question:
                assert (answer == "yes") == (place[" ".join(words[-4:-2])].split()[0] == words[-2])
            else:
                said = question.removeprefix("is the ").removesuffix(" ?").replace(" the ", " ")
                assert (answer == "yes") == holds(said, there)


def test_statements_are_false_undecidable_or_true(rows):
    for row in range(CHUNK):
        there, covered = looks(rows, row), CELLS[rows["covered"][row]]
        for statement, label in zip(rows["statements"][row], rows["labels"][row], strict=True):
            look, place = statement.split(" at the ")
            true = there.get({name: cell for cell, name in CELLS.items()}[place]) == look
            assert asked.LABELS[label] == ("neutral" if place == covered else "entailment" if true else "contradiction")


def test_what_is_said_of_two_pictures_is_true_or_not(rows):
    for row in range(CHUNK):
        other = int(rows["partner"][row])
        assert other != row and rows["partner"][other] == row
        words = rows["pair_statement"][row].split()
        color = COLORS.index(words[1] if words[0] == "more" else words[4])
        left, right = ((rows["color"][number] == color).sum() for number in (row, other))
        if words[0] == "both":
            true = left > 0 and right > 0
        else:
            true = left > right if words[-2] == "left" else right > left
        assert true == rows["pair_label"][row]


@pytest.mark.parametrize("colors", [4, 8])
def test_each_form_about_two_pictures_is_true_as_often_as_not(colors):
    """All pairs of pictures with every draw of the truth: the coin alone decides it, whatever the pictures are."""
    scenes = asked.things(asked.drawn(Stream(1, "asked/train", 0), colors, 4))
    for left, right in zip(scenes[::2], scenes[1::2], strict=True):
        for form in (0, 1):
            (said, no), (other, yes) = (asked.compared(left, right, [truth, 5, form], colors) for truth in (0, 1))
            assert (no, yes) == (0, 1) and said.split()[0] == other.split()[0]


def test_numbers_that_are_asked_for_are_about_as_frequent_but_for_three(rows):
    number = asked.KINDS.index("count")
    shares = {word: np.mean([said[number] == word for said in rows["answers"]]) for word in asked.NUMBERS}
    assert all(0.28 < shares[word] < 0.38 for word in ("zero", "one", "two")) and 0 < shares["three"] < 0.05


def told_by(keys, values):
    """How often the most frequent value of a key is right, learnt from one half of the rows and judged on the other."""
    half = len(keys) // 2
    seen = defaultdict(Counter)
    for key, value in zip(keys[:half], values[:half], strict=True):
        seen[key][value] += 1
    known = [(key, value) for key, value in zip(keys[half:], values[half:], strict=True) if key in seen]
    return np.mean([seen[key].most_common(1)[0][0] == value for key, value in known])


@pytest.mark.parametrize(
    ("kind", "most"), [("color", 0.35), ("shape", 0.35), ("relation", 0.4), ("count", 0.45), ("yes_no", 0.57)]
)
def test_a_question_alone_does_not_tell_its_answer(rows, kind, most):
    number = asked.KINDS.index(kind)
    questions, answers = ([said[number] for said in rows[name]] for name in ("questions", "answers"))
    if kind in ("relation", "yes_no"):  # the wordings are many: what a text could tell are its form and its colour
        questions = [" ".join(word for word in question.split() if word not in SHAPES) for question in questions]
    assert told_by(questions, answers) < most


def test_a_statement_alone_does_not_tell_its_label(rows):
    statements = [said for row in rows["statements"] for said in row]
    assert told_by(statements, rows["labels"].flatten().tolist()) < 0.42, "a third by chance"
    assert told_by(rows["pair_statement"].tolist(), rows["pair_label"].tolist()) < 0.57, "a half by chance"


def test_a_picture_alone_does_not_tell_what_is_asked(rows):
    """Whoever knows all of a picture but not the question: the best single answer to its five questions."""
    best = [Counter(answers).most_common(1)[0][1] / len(answers) for answers in rows["answers"]]
    assert np.mean(best) < 0.35
    assert (np.sort(rows["labels"], axis=1) == [0, 1, 2]).all(), "each picture has a statement of each label"


def test_all_words_are_known(rows):
    tokenizer = asked.asked_tokenizer()
    texts = [*(said for name in ("captions", "questions", "statements") for row in rows[name] for said in row),
             *rows["pair_statement"]]  # fmt: skip
    token_ids, _ = tokenizer(texts, 15)
    assert not (token_ids == tokenizer.unknown_id).any()
    assert (token_ids[:, -1] != tokenizer.unknown_id).all()
    assert max(len(tokenizer.backend.encode(said).ids) for said in texts) <= 15
    assert {answer for row in rows["answers"] for answer in row} <= set(asked.answers())


def test_prepared(tmp_path):
    asked.prepare(tmp_path / "asked", seed=3, sizes={"train": 300, "val": 4}, **OPTIONS)
    found = storage.read(tmp_path / "asked", "train")
    assert len(found["id"]) == 300 and found["image"].shape[1:] == (32, 32, 3)
    assert set(found["partner"]) == set(range(300))
    assert (tmp_path / "asked/sheet.png").is_file()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sizes": {"train": 3}}, "even number"), ({"sizes": {}}, "even number"), ({"image_size": 17}, "image_size"),
        ({"colors": 3}, "colors.*between 4 and 8"), ({"shapes": 9}, "shapes"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn(tmp_path, change, told):
    with pytest.raises(ValueError, match=told):
        asked.prepare(tmp_path / "asked", **{"seed": 0, "sizes": {"train": 4}, **OPTIONS} | change)
