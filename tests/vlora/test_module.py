"""The arms of VLoRA, from their configuration to their metrics."""

from pathlib import Path

import pytest
import torch
from hydra.utils import get_method, instantiate
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lightning_modules import settings
from lightning_modules.mm_gem.naming import NamedPictures
from lightning_modules.runs import Run
from lightning_modules.vision_language.words import TOKENS, language_tokenizer
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
    return settings.bind(block, "model")().eval()


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


def test_data_of_another_kind_are_refused(tmp_path):
    data = NamedPictures(folder=tmp_path, seed=0, splits={"test": {"source": "test", "rows": None}},
                         evaluation_batch_size=4, image_size=32, names="names.txt", prompts=["a {}"])  # fmt: skip
    with pytest.raises(
        ValueError, match=r"data are NamedPictures, expected datamodules\.illustrated\.IllustratedTexts"
    ):
        built().check_data(data)


def test_a_language_model_without_a_start_token_needs_a_prompt_of_captions(data):
    """As Qwen2.5: otherwise the first word would not be learnt, and nothing could be written after the training."""
    module = built()
    module.given, module.language.start = True, []
    with pytest.raises(ValueError, match=r"prompts\.caption is empty, and the language model has no start token"):
        module.check_data(data)
    with pytest.raises(ValueError, match="a prompt has no token"):
        module.answers(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), [module.prompt()])
    module.prompts["caption"] = data.form["caption"] = "there is"
    module.check_data(data)
    assert module.prompt() == module.language.encode("there is")


@pytest.mark.parametrize(("way", "room"), [("weights", 49), ("projector", 33)])
def test_answers_that_the_language_model_has_no_place_for_are_refused_before_the_training(data, way, room):
    """Positions are 64, the start token and the longest question take 15, a projector's picture 16."""
    fitting = built(**{"model.way": way, "model.most": room})
    fitting.given = True
    fitting.check_data(data)
    longest = max(
        (text for each in data.columns["test"]["questions"] for text in each),
        key=lambda text: len(fitting.prompt(text)),
    )
    assert len(fitting.prompt(longest)) + room + fitting.visual_tokens == 64
    fitting.answers(data.images("test", torch.arange(1)), [fitting.prompt(longest)])
    module = built(**{"model.way": way, "model.most": room + 1})
    module.given = True
    with pytest.raises(
        ValueError, match=rf"model\.most is {room + 1} behind .* data\.splits\.test, set it to {room} at"
    ):
        module.check_data(data)


def saved(folder, model) -> dict:
    """Settings of a language model that lies in a folder."""
    model.save_pretrained(folder)
    language_tokenizer().save_pretrained(folder)
    sizes = ("hidden_size", "layers", "heads", "kv_heads", "mlp_dim", "positions")
    return {"model.language.hub": str(folder)} | {f"model.language.{name}": None for name in sizes}


@pytest.mark.parametrize("way", WAYS)
def test_a_language_model_of_another_type_is_refused(tmp_path, way):
    other = GPT2LMHeadModel(GPT2Config(vocab_size=len(TOKENS), n_embd=32, n_layer=2, n_head=2, n_positions=64))
    with pytest.raises(ValueError, match="the language model is GPT2LMHeadModel, expected one of the Llama type"):
        built(**saved(tmp_path, other), **{"model.way": way})


def test_what_a_blind_arm_has_learnt_is_taken_over_by_one_with_a_published_language_model(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    published = saved(tmp_path, LlamaForCausalLM(LlamaConfig(vocab_size=len(TOKENS), **sizes)))
    blind, second = (built(**published, **{"model.way": "blind"}) for _ in range(2))
    torch.nn.init.normal_(blind.language.embeddings)
    second.start_from(blind.export())
    assert torch.equal(second.language.embeddings, blind.language.embeddings)
    seeing = built(**published)  # whose generator is new
    seeing.start_from(blind.export())
    assert torch.equal(seeing.language.embeddings, blind.language.embeddings)
    tower = {name: x for name, x in networks(second).items() if name.startswith("tower.")}
    second.start_from(tower)  # nothing was learnt of a published language model
    assert torch.equal(second.language.embeddings, blind.language.embeddings)


@torch.no_grad()
def test_weights_that_are_merged_write_the_same_and_are_put_back(module, data):
    if module.way == "weights":
        for factor in module.bridge.learned.values():
            torch.nn.init.normal_(factor, std=0.5)
    merged = built(**{"model.way": module.way, "model.merged": True})
    merged.load_export(module.export())
    images, prompts = data.images("test", torch.arange(6)), [module.prompt()] * 5 + [module.prompt("what ?")]
    reads, logits = [], []
    for each in (module, merged):
        each.language.whole.register_forward_hook(lambda _m, _x, found: logits[-1].append(found.logits[:, -1]))
        each.language.whole.model.layers[0].self_attn.q_proj.register_forward_pre_hook(
            lambda part, _: reads.append(part.weight.clone())
        )
        for image, prompt in zip(images.split(1), prompts, strict=True):
            logits.append([])
            each.answers(image, [prompt])
    for alone, own in zip(logits[:6], logits[6:], strict=True):
        torch.testing.assert_close(torch.cat(own), torch.cat(alone), rtol=1e-4, atol=1e-4)
    assert merged.answers(images, prompts) == module.answers(images, prompts)
    assert all(torch.equal(x, merged.export()[name]) for name, x in module.export().items())
    kept = module.language.whole.model.layers[0].self_attn.q_proj.weight
    assert any(not torch.equal(x, kept) for x in reads) == (module.way == "weights")


def test_as_many_prompts_as_pictures():
    module = built()
    with pytest.raises(ValueError, match="there are 1 prompts for 2 pictures"):
        module.answers(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), [module.prompt()])


def test_every_way_of_seeing_has_as_many_parameters():
    with torch.device("meta"):
        sizes = [built(**{"model.way": way}).facts()["bridge_parameters"] for way in WAYS[:3]]
    assert sizes[0] == 428_160
    assert max(sizes) < 1.01 * min(sizes)
