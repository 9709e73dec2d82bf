"""Sentences that ask for memory: what is seen where, and that nothing else tells it."""

from collections import Counter

import numpy as np
import pytest

from lightning_modules.datasets import tables
from lightning_modules.datasets.tokenizers import world_tokenizer
from lightning_modules.datasets.world.habits import phrases, prepare
from lightning_modules.datasets.world.scenes import PLACES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("habits") / "texts"
    prepare(folder, seed=19, sizes={"train": 600, "test": 300}, things=8)
    return folder


def things_of(text):
    words = text.split()
    return [" ".join(words[start : start + 4]) for start in range(0, len(words), 4)]


def test_places_have_their_own_things():
    known = phrases(19, 8)
    assert len(known) == len(PLACES)
    assert len({thing for place in known for thing in place}) == 8 * len(PLACES)
    assert phrases(19, 8) == known != phrases(20, 8)


def test_sentences_tell_things_of_the_place_and_the_label_whether_both_do(folder):
    rows, known = tables.read(folder, "train"), dict(zip(PLACES, phrases(19, 8), strict=True))
    for text, second, label in zip(rows["text"], rows["second"], rows["label"], strict=True):
        place, told = text.split(" ", 1)
        first, others = things_of(told), things_of(second)
        assert len(first) == len(others) == 2
        assert set(first) <= set(known[place])
        assert (set(others) <= set(known[place])) == label
        assert not set(first) & set(others)
    assert abs(np.mean(rows["label"]) - 0.5) < 0.05


def test_all_words_are_known_and_a_row_has_twenty_tokens(folder):
    rows, tokenizer = tables.read(folder, "test"), world_tokenizer()
    ids, there = tokenizer([f"{a} {b}" for a, b in zip(rows["text"], rows["second"], strict=True)], 30)
    assert (ids != tokenizer.unknown_id).all()
    assert set(there.sum(1)) == {19}  # and one more end token between two sentences


def test_control_no_single_word_tells_the_label(folder):
    """A network that knows no habits cannot tell whether both sentences are of one place."""
    rows = tables.read(folder, "train")
    votes: dict[str, Counter] = {}
    for second, label in zip(rows["second"], rows["label"].tolist(), strict=True):
        for word in second.split():
            votes.setdefault(word, Counter())[label] += 1
    shares = [count[1] / count.total() for count in votes.values() if count.total() > 50]
    assert max(abs(share - 0.5) for share in shares) < 0.15


def test_splits_differ_and_a_second_run_gives_the_same_bytes(folder, tmp_path):
    prepare(tmp_path / "again", seed=19, sizes={"train": 600, "test": 300}, things=8)
    assert (tmp_path / "again/sheet.txt").read_text() == (folder / "sheet.txt").read_text()
    again, first = (tables.read(at, "train") for at in (tmp_path / "again", folder))
    assert list(again["text"]) == list(first["text"])
    assert list(first["text"][:300]) != list(tables.read(folder, "test")["text"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"sizes": {}}, "must give each split its number of rows"), ({"things": 3}, r"things \(3\) must be from 4 to 85")],
)
def test_bad_settings_end_in_one_line(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "new", **({"seed": 1, "sizes": {"train": 4}, "things": 8} | settings))
