"""Checkpoints of SEED-Voken: every tensor is taken or named, parameter counts are to the unit, bad files are named."""

from pathlib import Path

import pytest
import torch
import yaml

from lightning_modules.magvit2.weights import load_seed_voken, read_seed_voken, seed_voken_tokenizer
from lightning_modules.metrics.compute import count_parameters
from tests.magvit2.seed_voken import formula, shapes, wave, weights

FACTS = yaml.safe_load((Path(__file__).parents[2] / "lightning_modules/magvit2/facts.yaml").read_text())
SIZES = {"width": 32, "multipliers": (1, 2, 2), "blocks": 1}
SMALL = {"halve_time": (False, True), "codebook_size": 2**10, "size": 32, **SIZES}


def checkpoint() -> dict[str, torch.Tensor]:
    """As Lightning writes it: networks, averages without dots, a discriminator, a perceptual loss."""
    state = weights(video=True, bits=10, **SIZES)
    averages = {f"model_ema.{name.replace('.', '')}": x + 0.01 for name, x in state.items()}
    return state | averages | {
        "model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(-1),
        "model_ema.lossdiscriminatormain0weight": torch.zeros(3), "loss.discriminator.main.0.weight": torch.zeros(3),
        "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(3),
    }  # fmt: skip


@pytest.mark.parametrize("oracle", [o for o in FACTS["oracles"] if "encoder" in o], ids=lambda o: o["name"])
def test_released_tokenizers_have_as_many_parameters_as_the_official_code(oracle):
    with torch.device("meta"):
        built = seed_voken_tokenizer(oracle["name"])
    found = {part: count_parameters(getattr(built, part)) for part in ("encoder", "decoder")}
    assert found == {part: oracle[part] for part in found} and count_parameters(built) == oracle["params"]


@pytest.mark.parametrize("name", ["image-256", "image-128", "video"])
def test_every_tensor_of_a_released_checkpoint_has_its_place(name):
    with torch.device("meta"):
        built = seed_voken_tokenizer(name)
    sizes = {"width": 128, "multipliers": (1, 1, 2, 2, 4) if name == "image-256" else (1, 2, 2, 4), "blocks": 4}
    expected = shapes(video=name == "video", bits=18, **sizes)
    found = {theirs: torch.empty(shape, device="meta") for theirs, shape in expected.items()}
    assert load_seed_voken(built, found, averages=False) == [] and len(found) == len(built.state_dict())


def test_averages_are_taken_and_the_rest_is_named():
    tokenizer, state = seed_voken_tokenizer("video", **SMALL), checkpoint()
    unused = load_seed_voken(tokenizer, state)
    assert torch.equal(tokenizer.encoder.stem.weight, state["encoder.conv_in.conv_1.weight"] + 0.01)
    used = {name for name in state if name not in unused}
    assert used == {f"model_ema.{n.replace('.', '')}" for n in state if n.startswith(("encoder", "decoder"))}
    load_seed_voken(tokenizer, state, averages=False)
    assert torch.equal(tokenizer.encoder.stem.weight, state["encoder.conv_in.conv_1.weight"])


def test_clips_are_read_and_drawn_with_pixels_from_0_to_1():
    tokenizer = seed_voken_tokenizer("video", **SMALL)
    load_seed_voken(tokenizer, checkpoint())
    clip = (wave(1, 3, 5, 32, 32) + 1) / 2
    tokens = tokenizer.encode(clip)
    assert tokens.shape == (1, 3, 8, 8)
    drawn = tokenizer.decoder(tokenizer.quantiser.embed(tokens))
    assert torch.allclose(tokenizer.decode(tokens) * 2 - 1, drawn, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("encoder.conv_in.conv_1.weight"), r"encoder.stem.weight: absent, expected \(32, 3, 3, 3, 3\)"),
        (lambda s: s.update({"quantize.codebook": torch.zeros(2)}), r"quantize.codebook: \(2,\), expected absent"),
        (lambda s: s.update({"decoder.conv_out.conv_1.bias": torch.zeros(4)}), r"decoder.head.bias: \(4,\), expected"),
    ],
)
def test_a_tensor_on_one_side_only_is_named(change, message):
    state = weights(video=True, bits=10, **SIZES)
    change(state)
    with pytest.raises(ValueError, match=message):
        load_seed_voken(seed_voken_tokenizer("video", **SMALL), state, averages=False)


def test_files_that_are_no_checkpoints_are_named(tmp_path):
    path = tmp_path / "video.ckpt"
    torch.save({"state_dict": {"x": formula("x", (2,))}, "epoch": 3}, path)
    assert list(read_seed_voken(path)) == ["x"]
    torch.save({"weights": {}}, path)
    with pytest.raises(ValueError, match="has no entry `state_dict`"):
        read_seed_voken(path)
    with pytest.raises(ValueError, match="no released checkpoint is called 'image-512'"):
        seed_voken_tokenizer("image-512")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], r"`state_dict` of .*odd.ckpt is of type list, expected tensors by their names"),
        (3, r"`state_dict` of .*odd.ckpt is of type int"),
        ({"encoder.conv_in.weight": 3}, r"holds int at 'encoder.conv_in.weight', expected tensors by their names"),
        ({3: torch.zeros(2)}, r"holds Tensor at 3, expected tensors by their names"),
    ],
)
def test_a_state_that_holds_anything_but_tensors_is_named(content, message, tmp_path):
    torch.save({"state_dict": content}, tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match=message):
        read_seed_voken(tmp_path / "odd.ckpt")
