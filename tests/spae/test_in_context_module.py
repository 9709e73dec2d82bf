"""The arm that reads and writes pictures with a frozen language model, from its configuration to its metrics."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from pytorch_lightning import LightningDataModule

from lightning_modules.runs import Run
from lightning_modules.spae import in_context_evaluation, language_evaluation
from stages.composing import compose

SMALL = {
    "model.classifying.layers": [1, 2, 3],
    "model.classifying.ways": [2],
    "model.classifying.settings": [
        {"shots": 1, "repeats": 0, "induced": False},
        {"shots": 3, "repeats": 1, "induced": True},
        {"shots": 5, "repeats": 5, "induced": True},  # 60 pairs of 21 words are longer than the positions
    ],
    "model.writing.tasks": ["inpainting"],
    "model.writing.pictures": 3,
    "model.writing.pairs": 2,
    "model.texts.episodes": 6,
    "data.count": 4,
}


def built(system, **overrides):
    torch.manual_seed(0)
    return instantiate(compose("tiny", system=system, overrides=overrides)["system"]["model"], _convert_="all").eval()


@pytest.fixture(scope="module")
def spae():
    return built("spae")


@pytest.fixture(scope="module")
def module(spae):
    found = built("spae_in_context", **SMALL)
    found.start_from(spae.export())
    return found


@pytest.fixture
def data(prepared):
    block = compose("tiny", system="spae_in_context", overrides=SMALL)["system"]["data"]
    return instantiate(block, folder=prepared("world_plain"), seed=0, _convert_="all")


def test_it_takes_the_tokenizer_and_the_language_model_of_its_arm(spae, module):
    weights = spae.export()
    assert torch.equal(module.language.embeddings, weights["language.model.embed_tokens.weight"])
    for name, x in module.tokenizer.state_dict().items():
        assert torch.equal(x, weights[f"tokenizer.{name}"])
    other = built("spae_in_context", **SMALL)
    other.load_export(module.export())
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(other(pictures), module(pictures))
    assert module(pictures).shape == (2, sum(module.tokenizer.pyramid.tokens))


def test_weights_of_another_arm_are_refused(module):
    with pytest.raises(ValueError, match="the tokenizer of the arm named by `from`"):
        module.start_from({"language.x": torch.zeros(1)})


def test_tasks_and_an_arm_to_start_from_are_needed(module, data):
    module.check_data(data)
    with pytest.raises(ValueError, match="data are LightningDataModule, expected few-shot tasks"):
        module.check_data(LightningDataModule())
    with pytest.raises(ValueError, match="the tokenizer has no weights: name the arm"):
        built("spae_in_context", **SMALL).check_data(data)


def test_words_of_no_table_cannot_be_drawn(module):
    with pytest.raises(ValueError, match="only words of the table"):
        module.drawn([torch.tensor([[0]])])


def test_nothing_of_it_is_trained(module):
    assert not [name for name, p in module.named_parameters() if p.requires_grad]


def test_predictions_have_each_setting_that_fits_and_become_metrics(module, data):
    found = module.predictions(data, torch.device("cpu"))
    names = {name.rpartition("/")[0] for name in found if name.startswith("few_shot/")}
    fitting = {1: 3, 2: 3, 3: 2}  # settings for each number of layers
    settings = ["2_way_1_shot_0_repeats", "2_way_3_shot_1_repeats_induced", "2_way_5_shot_5_repeats_induced"]
    assert names == {
        f"few_shot/{layers}_layers/{setting}" for layers, count in fitting.items() for setting in settings[:count]
    }
    assert all(len(x) == 4 for name, x in found.items() if name.startswith("few_shot/"))
    again = module.predictions(data, torch.device("cpu"))
    assert all(torch.equal(x, again[name]) for name, x in found.items())
    assert found["shown/inpainting/denoised"].dtype == torch.uint8

    class Finished(Run):
        facts = module.facts()

        def predictions(self):
            return {name: x.numpy() for name, x in found.items()}

    result = in_context_evaluation.evaluate([Finished(Path(), 0)], "world", layers=3, needed=None)
    assert {"world/2_way/mean_percent", "world/inpainting/copied/token_percent"} <= result.metrics[0].keys()
    too_long = "3_layers/2_way_5_shot_5_repeats_induced"
    assert result.not_computed == {too_long: in_context_evaluation.TOO_LONG}  # left out of the means, and said so
    assert [each.id for each in result.galleries] == ["written", "names"] and {
        figure.id for figure in result.figures
    } == {"few_shot", "text"}
    gated = in_context_evaluation.evaluate([Finished(Path(), 0)], "world", needed=0.99)
    assert "does not learn in context" in gated.not_computed["pictures"]
    assert not [name for name in gated.metrics[0] if "/text/" not in name]
    texts = language_evaluation.evaluate([Finished(Path(), 0)], "world")
    assert texts.metrics[0]["world/text/2_way/chance_percent"] == 50


def test_questions_whose_classes_have_one_name_are_left_out_and_counted(module, data, monkeypatch):
    episodes = list(data.episodes(2, 1))
    alike = [each._replace(names=["Crane", "crane"], answer="crane") for each in episodes[:3]]
    monkeypatch.setattr(type(data), "episodes", lambda *_: iter([*alike, *episodes]))
    monkeypatch.setattr(
        module, "classifying", module.classifying | {"settings": SMALL["model.classifying.settings"][:1]}
    )
    found = {name: x.numpy() for name, x in module._classified(data, 2).items()}
    assert len(found["few_shot/1_layers/2_way_1_shot_0_repeats/masked"]) == len(episodes)
    scores = in_context_evaluation.classified(found, 1)
    assert scores["2_way_1_shot/left_out"] == 3 and scores["2_way/mean_percent"] >= 0


def test_predictions_are_made_on_the_device_that_is_asked_for(module, data, monkeypatch):
    """A trainer moves its module to the CPU at the end, and answers come after that."""
    asked, move = [], type(module).to
    monkeypatch.setattr(type(module), "to", lambda self, device: asked.append(device) or move(self, "cpu"))
    monkeypatch.setattr(module, "texts", None)
    monkeypatch.setattr(module, "classifying", module.classifying | {"ways": []})
    monkeypatch.setattr(module, "writing", module.writing | {"tasks": [], "named": 0})
    module.train().predictions(data, torch.device("cuda", 1))
    assert asked[0] == torch.device("cuda", 1) and not module.training


def test_a_picture_is_named_after_a_context(module, data):
    episode = next(data.episodes(2, 3))
    (found,) = module.named(episode.pictures[:-1], episode.names, episode.pictures[-1:])
    assert found["answer"] == found["chances"][0][0] and {name for name, _ in found["chances"]} == set(episode.labels)
    assert np.isclose(sum(chance for _, chance in found["chances"]), 1)
    with pytest.raises(ValueError, match="6 pictures have 1 names"):
        module.named(episode.pictures[:-1], ["silk"], episode.pictures[-1:])
