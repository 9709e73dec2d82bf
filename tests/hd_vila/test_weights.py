"""Weights of the official code and of the hub are taken over name by name, completely."""

import hashlib

import pytest
import torch
from transformers import ResNetConfig, ResNetModel

from lightning_modules.hd_vila.network import ResNet
from lightning_modules.hd_vila.weights import load_hub_resnet, read_official, take_over
from tests.hd_vila.reference import built

# sha256 of the lines "name shape" of the official state dicts, sorted, and how many there are
OFFICIAL = {
    "contrast": (726, "51109773d317867e488e81c04305a89cb31caed032742b64eedeaddc14c7b97b"),
    "words": (775, "94c13db60ec5b402da83ff324645b9ab77137a233edcdb2b4b49b733f526c67f"),
}
DIM = 32


def official(task: str) -> dict[str, torch.Tensor]:
    """A state dict with the official names and shapes: ours, and what the official code never reads."""
    state = built(task).state_dict()
    state |= {name.replace("cnn.", "cnn_low."): x for name, x in state.items() if name.startswith("cnn.layer4")}
    state |= {f"timesformer.norm.{name}": torch.ones(DIM) for name in ("weight", "bias")}
    if task == "words":
        state |= {
            "transformer.bert.pooler2.dense.weight": torch.ones(DIM, DIM),
            "transformer.bert.pooler2.dense.bias": torch.ones(DIM),
            "transformer.bert.visual_embeddings.position_embeddings.weight": torch.ones(20, DIM),
            "transformer.cls.seq_relationship.weight": torch.ones(2, DIM),
            "transformer.cls.seq_relationship.bias": torch.ones(2),
        }
    return state


@pytest.mark.parametrize("task", OFFICIAL)
def test_names_and_shapes_are_those_of_the_official_code(task):
    lines = [f"{name} {tuple(x.shape)}" for name, x in sorted(official(task).items())]
    assert (len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()) == OFFICIAL[task]


PAIRS = ["contrast contrast", "words words", "words contrast", "contrast words", "words answers", "words choice"]


@pytest.mark.parametrize(("given", "task"), [pair.split() for pair in PAIRS])
def test_any_task_begins_with_a_checkpoint_of_either_stage(tmp_path, given, task):
    torch.save(official(given), tmp_path / "hdvila.pt")
    network, expected = built(task), official(given)
    with torch.no_grad():
        for x in network.parameters():
            x.add_(1.0)
    old = {name: x.clone() for name, x in network.state_dict().items()}
    take_over(network, read_official(tmp_path / "hdvila.pt"), "the file")
    for name, x in network.state_dict().items():
        assert torch.equal(x, expected.get(name, old[name])), name
    assert any(name in expected and "encoder.layer.1." in name for name in old)


def test_what_is_missing_or_too_much_is_refused():
    network, state = built(), official("contrast")
    for name in ("cnn.layer4.0.conv1.weight", "transformer.bert.encoder.layer.0.output.dense.weight"):
        with pytest.raises(ValueError, match=f"1 keys differ. First: {name}: absent"):
            take_over(network, {key: x for key, x in state.items() if key != name}, "the file")
    with pytest.raises(ValueError, match=r"generator.weight: .* expected absent"):
        take_over(network, state | {"generator.weight": torch.ones(1)}, "the file")


@pytest.mark.parametrize("streams", ["high", "low"])
def test_a_network_of_one_stream_takes_its_parts_of_the_hybrid(streams):
    """The official code's two branches; the guide of a manipulation reads one frame and may begin with a checkpoint."""
    network, state = built(streams=streams), official("contrast")
    take_over(network, state, "the file")
    own = network.state_dict()
    assert all(torch.equal(x, state[name]) for name, x in own.items())
    assert ("cnn.conv1.weight" in own, "timesformer.pos_embed" in own) == (streams == "high", streams == "low")
    missing = "cnn.conv1.weight" if streams == "high" else "cnn_low.conv1.weight"
    with pytest.raises(ValueError, match=f"1 keys differ. First: {missing}: absent"):
        take_over(network, {name: x for name, x in state.items() if name != missing}, "the file")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda state: {"weight": torch.ones(2)},
            r"no checkpoint of HD-VILA: it has no timesformer.pos_embed, but weight",
        ),
        (lambda state: {"model": state}, r"but model\. A state dict within it"),
        (lambda state: [1], r"no checkpoint of HD-VILA: .* but list"),
        (lambda state: state | {"step": 3}, r"has step, which is no tensor: expected a state dict alone"),
    ],
)
def test_another_file_is_no_checkpoint(tmp_path, change, told):
    torch.save(change(official("contrast")), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=told):
        read_official(tmp_path / "other.pt")


@pytest.mark.parametrize("stages", [4, 3])
def test_a_resnet_of_the_hub_computes_the_same(tmp_path, stages):
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[16, 32, 64, 128], depths=[1, 2, 1, 1])
    published = ResNetModel(config).eval()
    for name, x in published.state_dict().items():
        if "running" in name:
            x.uniform_(0.5, 1.5)
    published.save_pretrained(tmp_path)
    ours = ResNet(width=4, layers=(1, 2, 1, 1)[:stages]).eval()
    load_hub_resnet(ours, str(tmp_path))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = published(images, output_hidden_states=True).hidden_states[1:]
        for found, x in zip(ours(images), expected, strict=False):
            torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)
