"""Captions of a user's pictures, and answers to questions about them."""

import pytest
import torch
from PIL import Image

from lightning_modules.vlora.predictor import Teller


class Parrot(torch.nn.Module):
    """Says what it was asked and what size the picture has."""

    def prompt(self, question=None):
        return [0] if question is None else [len(question)]

    def answers(self, images, prompts):
        assert images.dtype == torch.uint8
        return [f"{prompt[0]} {tuple(image.shape)}" for image, prompt in zip(images, prompts, strict=True)]


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (6, 4), "red").save(tmp_path / "mine.png")
    return tmp_path / "mine.png"


def test_pictures_are_captioned_and_questions_of_a_text_file_answered(tmp_path, picture):
    teller = Teller(Parrot())
    assert teller.begin([picture]) == [picture]
    assert list(teller.answer(picture)) == [{"caption": "0 (3, 4, 6)"}]
    (tmp_path / "questions.txt").write_text("what?\n\nwhere ?\n")
    assert teller.begin([picture, tmp_path / "questions.txt"]) == [picture]
    assert [line["answer"] for line in teller.answer(picture)] == ["5 (3, 4, 6)", "7 (3, 4, 6)"]
    assert teller.ask(picture, "who") == "3 (3, 4, 6)"
    (tmp_path / "QUESTIONS.TXT").write_text("when?\n")
    assert teller.begin([picture, tmp_path / "QUESTIONS.TXT"]) == [picture]
    assert [line["question"] for line in teller.answer(picture)] == ["when?"]


def test_a_question_that_is_too_long_is_named_after_the_answers_to_the_others(tmp_path, picture):
    class Short(Parrot):
        def answers(self, images, prompts):
            if prompts[0][0] > 20:
                raise ValueError("too long")
            return super().answers(images, prompts)

    teller, found = Teller(Short()), []
    (tmp_path / "questions.txt").write_text("what is this thing here ?\nwhat ?\n")
    teller.begin([picture, tmp_path / "questions.txt"])
    with pytest.raises(ValueError, match="the question 'what is this thing here \\?': too long"):
        found.extend(teller.answer(picture))
    assert found == [{"row": 1, "question": "what ?", "answer": "6 (3, 4, 6)"}]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"^\S*broken\.png cannot be read as a picture"):
        list(teller.answer(tmp_path / "broken.png"))


def test_inputs_that_cannot_be_answered_are_refused(tmp_path, picture):
    (tmp_path / "questions.txt").write_text("what?")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"got 0 pictures or folders, 1 text files and 1 questions; expected pictures"):
        Teller(Parrot()).begin([tmp_path / "questions.txt"])
    with pytest.raises(ValueError, match="there is no picture"):
        Teller(Parrot()).begin([])
    with pytest.raises(ValueError, match="chooses from nothing"):
        Teller(Parrot()).begin([picture], among=tmp_path)
    with pytest.raises(ValueError, match=r"broken\.png"):
        list(Teller(Parrot()).answer(tmp_path / "broken.png"))
