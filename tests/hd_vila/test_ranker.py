"""Sentences ranked for files of high resolution, and input that cannot be."""

import json

import pytest
import torch

from lightning_modules.datasets.video.drawn import encode
from lightning_modules.datasets.video.files import BrokenVideo
from lightning_modules.hd_vila.ranker import Ranker
from tests.hd_vila.test_module import module

SENTENCES = [
    "a red striped circle moving left",
    "a blue banded circle moving up",
    "a green checkered circle moving right",
]
RECORD = {"data": {"tokenizer": "world", "text_length": 8}}


@pytest.fixture
def ranker():
    return Ranker(module(), RECORD)


def test_sentences_are_ranked_by_similarity(ranker, tmp_path):
    encode(tmp_path / "clip.mp4", 9)
    ranked = ranker.rank(tmp_path / "clip.mp4", SENTENCES)
    assert sorted(sentence for sentence, _ in ranked) == sorted(SENTENCES)
    assert [similarity for _, similarity in ranked] == sorted((s for _, s in ranked), reverse=True)
    assert ranked == ranker.rank(tmp_path / "clip.mp4", SENTENCES[::-1])

    (tmp_path / "sentences.txt").write_text("\n".join(SENTENCES))
    assert ranker.begin([tmp_path / "clip.mp4", tmp_path / "sentences.txt"]) == [tmp_path / "clip.mp4"]
    answers = list(ranker.answer(tmp_path / "clip.mp4", top=2))
    assert [answer["sentence"] for answer in answers] == [sentence for sentence, _ in ranked[:2]]
    json.dumps(answers)


def test_input_that_cannot_be_ranked_is_refused(ranker, tmp_path):
    with pytest.raises(ValueError, match="got 1 videos or folders, 0 text files and 0 sentences"):
        ranker.begin([tmp_path / "clip.mp4"])
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="1 text files and 0 sentences"):
        ranker.begin([tmp_path / "clip.mp4", tmp_path / "empty.txt"])
    with pytest.raises(BrokenVideo, match=r"absent\.mp4"):
        ranker.rank(tmp_path / "absent.mp4", SENTENCES)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(BrokenVideo, match=r"text\.mp4"):
        ranker.rank(tmp_path / "text.mp4", SENTENCES)


@pytest.mark.parametrize("given", ["a red circle", []])
def test_what_is_no_list_of_sentences_is_refused(ranker, tmp_path, given):
    encode(tmp_path / "clip.mp4", 9)
    with pytest.raises(ValueError, match=r"sentences is .*, expected a list such as \['a red circle moving left'\]"):
        ranker.rank(tmp_path / "clip.mp4", given)


@pytest.mark.parametrize("silent", ["zebra quantum", " "])
def test_a_sentence_without_a_known_word_is_refused(ranker, tmp_path, silent):
    encode(tmp_path / "clip.mp4", 9)
    told = r"sentences has .*, of which the model knows no word; expected a text such as 'a red circle moving left'"
    with pytest.raises(ValueError, match=told):
        ranker.rank(tmp_path / "clip.mp4", [*SENTENCES, silent])
    (tmp_path / "sentences.txt").write_text("a red circle\nzebra quantum\n")
    with pytest.raises(ValueError, match=told):
        ranker.begin([tmp_path / "clip.mp4", tmp_path / "sentences.txt"])


def test_a_video_is_not_answered_before_the_sentences_are_known(ranker, tmp_path):
    encode(tmp_path / "clip.mp4", 9)
    with pytest.raises(ValueError, match=r"sentences is \[\], expected a list"):
        list(ranker.answer(tmp_path / "clip.mp4"))


def test_a_model_of_another_task_ranks_nothing():
    with torch.device("meta"), pytest.raises(ValueError, match="trained for 'choice'; sentences are ranked by one of"):
        Ranker(module(task="choice"), RECORD)
