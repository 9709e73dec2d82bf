"""The CLIP of our own: what it learns from, what it hands on, and what it refuses."""

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from lightning_modules import settings
from lightning_modules.datasets.tokenizers import world_tokenizer
from lightning_modules.spae import lexicon
from lightning_modules.spae.clip import clip_tokenizer, entropy, first_words, said, translation, words_nce
from stages.composing import compose


def module(**overrides):
    torch.manual_seed(0)
    config = compose("tiny", system="spae_clip", overrides={f"model.{key}": value for key, value in overrides.items()})
    built = settings.bind(config["system"]["model"], "model")()
    built.recipe = config["system"]["pretrain"]
    return built


@pytest.fixture
def data(prepared):
    config = compose("tiny", system="spae_clip", overrides={})["system"]["data"]
    return instantiate(config, folder=prepared("world_plain"), seed=0, _convert_="all")


def test_the_same_words_have_the_same_spelling_in_both_tokenizers():
    given, own = world_tokenizer(), clip_tokenizer()
    ids, _ = given(["a small red circle at the middle left in the meadow"], 16)
    again = translation(given, own)[torch.from_numpy(ids)]
    assert own.decode(again.numpy()) == given.decode(ids)
    assert own.end_id == len(own) - 1  # the place that CLIP reads is that of the highest id


def test_all_words_of_the_language_model_are_known():
    assert set(lexicon.WORDS) <= set(clip_tokenizer().backend.get_vocab())


def test_words_that_stand_in_any_caption_are_said():
    references = torch.tensor([[[1, 7, 0], [8, 0, 0]], [[9, 9, 9], [0, 0, 0]]])
    assert said(references, torch.tensor([7, 8, 9]), 10).tolist() == [[True, True, False], [False, False, True]]


def test_the_loss_of_words_is_least_where_all_that_fit_share_the_chance():
    fits = torch.tensor([[True, True, False], [False, True, False]])
    perfect = torch.where(fits, 30.0, -30.0)
    assert words_nce(perfect, fits).item() == pytest.approx(0, abs=1e-4)
    assert words_nce(-perfect, fits) > 10
    assert words_nce(torch.zeros(2, 3), fits) > 0
    assert entropy(torch.tensor([[0.5, 0.5, 0.0]])).item() == pytest.approx(np.log(2), rel=1e-5)


def test_first_words_count_as_many_as_fit():
    similarity = torch.tensor([[0.9, 0.8, 0.1], [0.1, 0.2, 0.3]])
    found = first_words(similarity, torch.tensor([[True, False, True], [False, False, True]]))
    assert found["best"].tolist() == [1, 1] and found["first"].tolist() == [0.5, 1]


def test_the_language_model_is_handed_on_as_it_was_given():
    upstream, built = module(), module()
    with torch.no_grad():
        upstream.language.network.embeddings.add_(1)
    built.start_from({name: x for name, x in upstream.export().items() if name.startswith("language.")})
    found = built.export()
    assert torch.equal(built.language.network.embeddings, upstream.language.network.embeddings)
    assert any(name.startswith("language.") for name in found) and any(name.startswith("clip.") for name in found)
    assert not any(name.startswith("language") for name, _ in built.named_parameters())


def test_an_arm_without_a_language_model_is_refused():
    with pytest.raises(ValueError, match=r"has no weights under language\.\*"):
        module().start_from({"clip.x": torch.zeros(1)})


def test_a_language_model_of_another_architecture_is_refused():
    weights = module(**{"language.hidden_size": 32}).export()
    with pytest.raises(ValueError, match="the language of `from` is of another architecture"):
        module().start_from(weights)


def test_too_few_ids_are_refused():
    with pytest.raises(ValueError, match="vocab_size is 100, but the words of the language model have"):
        module(**{"clip.text.vocab_size": 100})


def test_a_published_clip_is_refused():
    sizes = {"clip.vision": None, "clip.text": None, "clip.projection_dim": None}
    with pytest.raises(ValueError, match=r"clip\.hub is 'openai/clip', which reads other ids: set it to null"):
        module(**sizes, **{"clip.hub": "openai/clip"})


def test_data_that_cannot_be_learnt_from_are_refused(data, prepared):
    module().check_data(data)
    with pytest.raises(ValueError, match=r"pictures of 32 x 32 pixels, but clip\.vision\.image_size is 16"):
        module(**{"clip.vision.image_size": 16}).check_data(data)
    with pytest.raises(ValueError, match="text_length is 16, more than"):
        module(**{"clip.text.max_position_embeddings": 8}).check_data(data)
    clips = compose("tiny", system="magvit_tokenizer")["system"]["data"]
    with pytest.raises(ValueError, match="no pictures with captions of the captioned world"):
        module().check_data(instantiate(clips, folder=prepared("world_drifting"), seed=0, _convert_="all"))
