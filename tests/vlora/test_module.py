"""The arms of VLoRA, from their configuration to their metrics."""

from pathlib import Path

import pytest
import torch
from hydra.utils import get_method, instantiate

from lightning_modules.runs import Run
from lightning_modules.vlora.evaluation import evaluate
from stages.composing import compose

WAYS = ["weights", "projector", "queries", "blind"]
SMALL = {
    "data.splits": {"train": {"source": "train", "rows": None}, "val": {"source": "val", "rows": 6},
                    "test": {"source": "test", "rows": 6}},
    "data.batch_size": 4,
    "data.evaluation_batch_size": 4,
    "model.most": 4,
}  # fmt: skip


def built(**overrides):
    torch.manual_seed(0)
    block = compose("tiny", system="vlora", overrides=SMALL | overrides)["system"]["model"]
    return instantiate(block, _convert_="all").eval()


def networks(module) -> dict[str, torch.Tensor]:
    """What the arm in `from` exports."""
    found = {f"language.{name}": x for name, x in module.language.state_dict().items()}
    return found | {f"tower.{name}": x for name, x in module.tower.network.state_dict().items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A few pictures of the data set."""
    config = compose("tiny", dataset="world_pairs")["dataset"]
    found = tmp_path_factory.mktemp("vlora") / "pairs"
    get_method(config.pop("_target_"))(found, **config | {"sizes": {"train": 8, "val": 6, "test": 6}})
    return found


@pytest.fixture
def data(folder):
    block = compose("tiny", system="vlora", overrides=SMALL)["system"]["data"]
    return instantiate(block, folder=folder, seed=0, _convert_="all")


@pytest.fixture(params=WAYS)
def module(request):
    found = built(**{"model.way": request.param})
    found.start_from(networks(found))
    return found


def test_what_is_written_becomes_metrics(module, data):
    module.check_data(data)
    found = module.predictions(data, torch.device("cpu"))
    again = module.predictions(data, torch.device("cpu"))
    assert all(torch.equal(x, again[name]) for name, x in found.items())
    assert len(found["caption/written"]) == 6
    assert len(found["answer/written"]) == len(found["answer/row"]) == 24

    class Finished(Run):
        facts = module.facts()

        def predictions(self):
            return {name: x.numpy() for name, x in found.items()}

    result = evaluate([Finished(Path(), 0)], "world")
    tokens = {"weights": 0, "projector": 16, "queries": 8, "blind": 0}[module.way]
    assert result.metrics[0]["world/visual_tokens"] == tokens
    assert {"world/attributes_percent", "world/picture_percent", "world/answers_percent"} <= result.metrics[0].keys()
    assert len(result.galleries[0].rows) == 6


def test_at_first_the_bridge_learns_alone(module, data):
    module.check_data(data)
    module.parameter_groups()
    batch = next(iter(data.evaluation_batches("val")))
    module.train().training_step(batch).backward()
    learned = {name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum()}
    assert learned
    assert all(name.startswith("language" if module.way == "blind" else "seeing.bridge") for name in learned)
    module.steps = 0  # of the training; now the language model learns too
    module.training_step(batch).backward()
    assert any(p.grad is not None for p in module.language.parameters())
    assert not any(p.requires_grad for p in module.tower.network.parameters())


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_what_never_learns_is_frozen_from_the_beginning(data, share):
    """Processes that share the work (DDP) look at what needs a gradient before the first step."""
    found = built(**{"model.generator_share": share})
    found.start_from(networks(found))
    before = {name for name, x in found.named_parameters() if x.requires_grad}
    assert any(name.startswith("language.") for name in before) == (share == 0)
    found.check_data(data)
    found.training_step(next(iter(data.train_dataloader()))).backward()
    assert before == {name for name, x in found.named_parameters() if x.grad is not None}


def test_an_export_writes_the_same(module, data):
    module.check_data(data)
    images = data.images("val", torch.arange(3))
    other = built(**{"model.way": module.way})
    other.load_export(module.export())
    assert torch.equal(other(images), module(images))
    continued = built(**{"model.way": module.way})
    continued.start_from(module.export())
    assert all(torch.equal(x, continued.export()[name]) for name, x in module.export().items())


def test_validation(module, data):
    module.check_data(data)
    found = module.validate(data, data.evaluation_batches("val"))
    assert found["loss"] > 0
    assert 0 <= found["tokens_right"] <= 1


def test_networks_that_no_arm_has_given_and_other_prompts(data):
    with pytest.raises(ValueError, match="name the arm that has them with `from`"):
        built().check_data(data)
    with pytest.raises(ValueError, match="the tower of the arm in `from`"):
        built().start_from({"tower.x": torch.zeros(1)})
    with pytest.raises(ValueError, match="set both alike"):
        built(**{"model.prompts.caption": "describe"}).check_data(data)


def test_as_many_prompts_as_pictures():
    module = built()
    with pytest.raises(ValueError, match="there are 1 prompts for 2 pictures"):
        module.answers(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), [module.prompt()])


def test_every_way_of_seeing_has_as_many_parameters():
    with torch.device("meta"):
        sizes = [built(**{"model.way": way}).facts()["bridge_parameters"] for way in WAYS[:3]]
    assert sizes[0] == 428_160
    assert max(sizes) < 1.01 * min(sizes)
