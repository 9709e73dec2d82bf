"""The arms that both networks come from: a language model of texts, and a tower of pictures that hands both on."""

import pytest
import torch

from lightning_modules import settings
from lightning_modules.datamodules.illustrated import IllustratedBatches, IllustratedTexts
from lightning_modules.datasets.splits import Portion
from lightning_modules.datasets.world import views
from lightning_modules.metrics.probing import ridge_probe
from lightning_modules.vision_language.tower_training import phrase_loss, pooled
from stages.composing import compose

OPTIONS = {"objects": [1, 4], "colors": 8, "shapes": 8, "sizes": 2, "captions": 3, "questions": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "world"
    views.prepare(folder, view="quadrants", seed=0, sizes={"train": 64, "val": 32, "test": 32}, image_size=32,
                  options=OPTIONS, workers=1)  # fmt: skip
    return folder


def model(system: str) -> torch.nn.Module:
    return settings.bind(compose("tiny", system=system, overrides={})["system"]["model"], "model")()


def texts(system: str, folder) -> IllustratedTexts:
    config = compose("tiny", system=system, overrides={"data.batch_size": 16})["system"]["data"]
    whole = {name: {"source": name, "rows": None} for name in ("train", "val", "test")}
    return settings.bind(config | {"splits": whole}, "data", folder=folder, seed=50)()


def test_the_language_model_learns_all_tokens_and_no_padding(folder):
    language, data = model("caption_language"), texts("caption_language", folder)
    language.check_data(data)
    batch = IllustratedBatches(data, Portion())[0, 0]
    assert not batch["images"].any(), "pictures are not seen"
    first = language.surprise(batch)["loss"]
    other = batch | {"token_ids": torch.where(batch["attention_mask"], batch["token_ids"], 7)}
    torch.testing.assert_close(language.surprise(other)["loss"], first)
    optimizer = torch.optim.AdamW(language.parameter_groups(), lr=3e-3)
    for _ in range(10):
        optimizer.zero_grad()
        language.training_step(batch).backward()
        optimizer.step()
    assert language.surprise(batch)["loss"] < first - 0.5
    assert set(language.predictions(data, torch.device("cpu"))) == {"caption", "question"}


def test_the_tower_hands_on_both_networks_and_trains_one(folder):
    language, tower, data = model("caption_language"), model("caption_tower"), texts("caption_tower", folder)
    tower.start_from(language.export())
    tower.check_data(data)
    given = {name: x.clone() for name, x in tower.export().items()}
    assert {name.split(".")[0] for name in given} == {"language", "tower"}
    batch = IllustratedBatches(data, Portion())[0, 0]
    tower.training_step(batch).backward()
    without = {name for name, x in tower.named_parameters() if x.grad is None or not x.grad.any()}
    assert not {name for name in without if "k_proj.bias" not in name}, "a key's bias changes no attention"
    assert not any(name.startswith("language") for name, _ in tower.named_parameters())
    torch.optim.AdamW(tower.parameter_groups(), lr=1e-2).step()
    after = tower.export()
    changed = {name for name, x in after.items() if not torch.equal(x, given[name])}
    assert changed and all(name.startswith("tower.") for name in changed)
    again = model("caption_tower")
    again.load_export(after)
    torch.testing.assert_close(again(batch["images"]), tower(batch["images"]))
    assert set(tower.predictions(data, torch.device("cpu"))) == {"color", "shape", "size"}


def test_an_arm_without_a_language_model_is_no_beginning():
    tower = model("caption_tower")
    with pytest.raises(ValueError, match=r"no weights under language\.\*"):
        tower.start_from({"tower.x": torch.ones(1)})


def test_a_box_takes_of_each_patch_what_it_covers():
    patches = torch.arange(16.0)[None, :, None]
    boxes = torch.tensor([[0, 0, 1, 1], [0.5, 0, 1, 0.5], [0, 0, 0.375, 0.25]])
    found = pooled(patches.expand(3, -1, -1), boxes, 4)[:, 0]
    torch.testing.assert_close(found, torch.tensor([7.5, (2 + 3 + 6 + 7) / 4, 1 / 3]))


def test_equal_phrases_are_no_negatives_of_each_other():
    ids = torch.tensor([[5, 6], [7, 8], [5, 6]])
    parts = torch.nn.functional.normalize(torch.randn(3, 4), dim=1)
    parts[2] = parts[0]
    loss = phrase_loss(parts, parts, ids, torch.tensor(50.0))
    assert loss < 1e-2 or parts[0] @ parts[1] > 0.8
    expected = torch.nn.functional.cross_entropy(50.0 * parts @ parts[:2].T, torch.tensor([0, 1, 0]))
    torch.testing.assert_close(loss, expected)


def test_the_probe_tells_what_is_linear_and_guesses_what_is_not_there():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (400,), generator=generator)
    noise = torch.randn(400, 8, generator=generator)
    told = noise + 6 * torch.nn.functional.one_hot(labels, 8)
    right = (ridge_probe(told[:300], labels[:300], told[300:], strength=0.01) == labels[300:]).double().mean()
    guessed = (ridge_probe(noise[:300], labels[:300], noise[300:], strength=0.01) == labels[300:]).double().mean()
    assert right > 0.95 and guessed < 0.45
    with pytest.raises(ValueError, match="strength"):
        ridge_probe(told, labels, told, strength=0.0)
