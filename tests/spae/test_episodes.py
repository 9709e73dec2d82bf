"""Few-shot tasks on pictures: drawn from scenes and digits, and read from the questions about mini-ImageNet."""

import numpy as np
import pytest
import torch

from lightning_modules.datasets import mini_imagenet
from lightning_modules.spae import lexicon
from lightning_modules.spae.episodes import DIGITS, NAMES, DigitEpisodes, MiniImageNetEpisodes, SceneEpisodes

TEST = {"test": {"source": "test", "rows": None}}
ALL = {"test": {"source": "all", "rows": None}}


@pytest.fixture
def scenes(prepared):
    def make(**changes):
        settings = {"seed": 0, "splits": TEST, "attribute": "color", "labels": "held_out", "count": 12}
        return SceneEpisodes(folder=prepared("world_plain"), **settings | changes)

    return make


def test_an_episode_has_as_many_pictures_of_each_class_and_a_fresh_query(scenes):
    data = scenes()
    for episode in data.episodes(2, 3):
        assert [episode.names.count(label) for label in episode.labels] == [3, 3]
        assert set(episode.labels) <= set(lexicon.HELD_OUT) and episode.answer in episode.labels
        *context, query = episode.keys
        assert len(set(context)) == 6 and query not in context
        colors = data.columns["class"][episode.keys]
        same = [name == episode.answer for name in episode.names]
        assert (colors[:-1] == colors[-1]).tolist() == same
        expected = data.columns["image"][query].transpose(2, 0, 1)
        np.testing.assert_array_equal(episode.pictures[-1].numpy(), expected)


def test_episodes_depend_on_the_seed_alone(scenes):
    def keys(data):
        return [episode.keys for episode in data.episodes(2, 1)]

    assert keys(scenes()) == keys(scenes()) != keys(scenes(seed=1))


def test_classes_may_have_the_names_of_the_captions(scenes):
    data = scenes(labels="names")
    names = [episode.answer for episode in data.episodes(2, 1)]
    assert set(names) <= set(NAMES["color"])
    assert data.named(5) == [NAMES["color"][number] for number in data.columns["class"][:5]]
    assert data.pictures(5).shape == (5, 3, 32, 32)


def test_classes_that_there_are_not_are_refused(scenes):
    with pytest.raises(ValueError, match="8 classes have more than 1 pictures each, expected 9"):
        next(scenes().episodes(9, 1))
    with pytest.raises(ValueError, match="expected test alone"):
        scenes(splits={"train": {"source": "train", "rows": None}})


def test_data_without_the_attribute_are_refused(prepared):
    data = SceneEpisodes(folder=prepared("digits"), seed=0, splits=ALL, attribute="color", labels="names", count=2)
    with pytest.raises(ValueError, match="expected raw pictures and 'color': name a data set of scenes"):
        next(data.episodes(2, 1))


def test_digits_are_called_by_their_words_and_scaled_to_the_size_of_the_tokenizer(prepared):
    data = DigitEpisodes(folder=prepared("digits"), seed=0, splits=ALL, image_size=32, count=3)
    assert data.pictures(4).shape == (4, 3, 32, 32) and len(set(data.named(100))) == 10
    for episode in data.episodes(2, 1):
        digits = data.columns["class"][episode.keys]
        assert [*episode.names, episode.answer] == [DIGITS[number] for number in digits]
        grey = episode.pictures.float()
        assert torch.equal(grey[:, 0], grey[:, 2]) and grey.std() > 0


def test_data_without_digits_are_refused(prepared):
    data = DigitEpisodes(folder=prepared("world_plain"), seed=0, splits=TEST, image_size=32, count=3)
    with pytest.raises(ValueError, match="expected raw pictures and labels from 0 to 9: name a data set of digits"):
        data.pictures(1)


def test_questions_about_mini_imagenet_are_read_with_their_pictures(tmp_path):
    settings = {"form": "frozen", "task": "real_name_mi", "questions": {"2_way_1_shot": None}, "cache": ""}
    stand_in = mini_imagenet.stand_in(tmp_path / "copy", rows=4, **settings)
    mini_imagenet.prepare(tmp_path / "data", **settings | stand_in.config)
    splits = {"test": {"source": mini_imagenet.PICTURES, "rows": None}}
    data = MiniImageNetEpisodes(folder=tmp_path / "data", seed=0, splits=splits, image_size=16, count=3)
    found = list(data.episodes(2, 1))
    assert len(found) == 3
    for episode in found:
        assert episode.pictures.shape == (3, 3, 16, 16) and len(episode.labels) == 2
        same = [torch.equal(each, episode.pictures[-1]) for each in episode.pictures[:-1]]
        assert [name == episode.answer for name in episode.names] == same  # the stand-in asks about the first picture
    assert data.pictures(2).shape == (2, 3, 16, 16) and data.named(2) == []
