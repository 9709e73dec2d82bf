"""Data sets with parts: each as if it had been prepared alone."""

import json

import pytest

from lightning_modules import rehearsal, settings
from lightning_modules.datasets import digits, mixture, storage
from lightning_modules.datasets.download import MIRROR_VARIABLE, DataUnavailable
from lightning_modules.files import digest
from stages.composing import compose

DIGITS = {"_target_": "lightning_modules.datasets.digits.prepare"}
ROWS = 6


def test_a_part_is_as_if_it_had_been_prepared_alone(tmp_path):
    mixture.prepare(tmp_path / "new", parts={"one": DIGITS, "other": DIGITS})
    digits.prepare(tmp_path / "alone")
    assert storage.card(tmp_path / "new/one") == storage.card(tmp_path / "alone")
    card = storage.card(tmp_path / "new")
    assert card["splits"] == {"all": 1797} and card["name"] == "one_other"
    assert card["parts"] == {name: storage.card(tmp_path / "alone") for name in ("one", "other")}
    alone = storage.card(tmp_path / "alone")["content_sha256"]["all"]
    assert card["content_sha256"] == {"one/all": alone, "other/all": alone}


def test_a_training_depends_on_the_content_of_all_parts(tmp_path):
    """Its fingerprint is a digest over the card."""
    found = set()
    for name in ("one", "two"):
        mixture.prepare(tmp_path / name, parts={"digits": DIGITS})
        part = tmp_path / name / "card.json"
        card = json.loads(part.read_text())
        if name == "two":
            card["parts"]["digits"]["content_sha256"]["all"] = "other"
        found.add(digest(card))
    assert len(found) == 2


def test_of_a_split_the_smallest_part_counts():
    cards = {"a": {"splits": {"train": 9, "val": 5}}, "b": {"splits": {"train": {"rows": 7}, "test": {"rows": 8}}}}
    assert mixture.smallest(cards) == {"train": 7, "val": 5, "test": 8}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, r"parts is empty, expected at least one data set"),
        ({"a/b": DIGITS}, r"parts has the name 'a/b', expected letters, digits"),
        ({"a": {"sizes": {}}}, r"parts.a has no `_target_`, expected the `prepare` of a data set"),
        ({"a": DIGITS | {"size": 3}}, r"parts.a: unknown key 'size'"),
    ],
)
def test_what_cannot_be_a_part_is_one_line_and_nothing_is_written(tmp_path, parts, message):
    with pytest.raises(ValueError, match=message) as caught:
        mixture.prepare(tmp_path / "new", parts=parts)
    assert "\n" not in str(caught.value) and not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["imagenet_and_books", "pictures_videos_sounds"])
def test_mixtures_of_official_files_have_stand_ins_that_their_parts_read(tmp_path, monkeypatch, name):
    monkeypatch.setattr(rehearsal, "current", rehearsal.Rehearsal(rows=ROWS))
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    config = compose("paper", dataset=name)["dataset"]
    files = tmp_path / "files"
    files.mkdir()
    made = mixture.stand_in(files, rows=ROWS, parts=config["parts"])
    settings.bind(config | made.config, "conf")(tmp_path / "new")
    card = storage.card(tmp_path / "new")
    assert card["parts"].keys() == config["parts"].keys() and set(card["splits"]) == set(made.whole)
    assert all(count == ROWS for count in card["splits"].values()) and made.whole["train"] > 1000


def test_a_mixture_without_its_files_says_which_are_missing(tmp_path, monkeypatch):
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    config = compose("paper", dataset="imagenet_and_books")["dataset"]
    for part in config["parts"].values():
        part["cache"] = str(tmp_path / "none")
    with pytest.raises(DataUnavailable, match=r"imagenet: .* could not be had"):
        settings.bind(config, "conf")(tmp_path / "new")
    assert not (tmp_path / "new").exists()
