"""The frozen eye: features of patches are those of `transformers`, and pictures of any shape become squares."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel

from lightning_modules.layers.published import CLIP_STATISTICS
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.vision_language.towers import make_tower

SIZES = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
         "image_size": 16, "patch_size": 4}  # fmt: skip
TEXT = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


@pytest.mark.parametrize("layer", [-3, -2, -1, 0, 3])
def test_features_are_the_hidden_states_of_transformers_without_cls(layer):
    tower = make_tower(sizes=SIZES, layer=layer).eval()
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in CLIP_STATISTICS)
    expected = tower.model(pixel_values=(images / 255 - mean) / std, output_hidden_states=True).hidden_states[layer]
    assert tower.features(images).shape == (2, tower.grid**2, tower.dim) == (2, 16, 24)
    torch.testing.assert_close(tower(images), expected[:, 1:])


def test_a_picture_that_is_no_square_is_cut_padded_or_squashed():
    images = torch.zeros(1, 3, 16, 32, dtype=torch.uint8)
    images[..., 8:24] = 255
    white = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    towers = {fit: make_tower(sizes=SIZES, fit=fit) for fit in ("crop", "pad", "squash")}
    torch.testing.assert_close(towers["crop"].pixels(images), towers["crop"].pixels(white))
    padded = towers["pad"].squared(images / 255)
    assert padded.shape == (1, 3, 32, 32)
    torch.testing.assert_close(padded[0, :, 0, 0], torch.tensor(CLIP_STATISTICS[0]))
    torch.testing.assert_close(padded[..., 8:24, :], images / 255)
    for tower in towers.values():
        assert tower.pixels(images).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("hub", "parameters", "patches"),
    [
        ("openai/clip-vit-large-patch14", 303_179_776, 256),
        ("openai/clip-vit-large-patch14-336", 303_507_456, 576),
    ],
)
def test_published_towers_have_their_sizes_without_their_files(hub, parameters, patches):
    with torch.device("meta"):
        tower = make_tower(hub=hub)
    assert count_parameters(tower) == parameters and tower.grid**2 == patches


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_tower_is_loaded_from_a_folder(tmp_path, whole, dtype):
    """Of CLIP's vision model, or of the whole CLIP, whose texts are left out."""
    torch.manual_seed(1)
    if whole:
        saved = CLIPModel(CLIPConfig(vision_config=SIZES, text_config=TEXT)).to(dtype)
        network = saved.vision_model
    else:
        saved = network = CLIPVisionModel(CLIPVisionConfig(**SIZES)).to(dtype)
    saved.save_pretrained(tmp_path)
    tower = make_tower(hub=str(tmp_path), layer=-2, fit="pad")
    assert (tower.side, tower.grid, tower.dim, tower.fit) == (16, 4, 24, "pad")
    assert {x.dtype for x in tower.parameters()} == {torch.float32}
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in CLIP_STATISTICS)
    expected = network.float().eval()(pixel_values=(images / 255 - mean) / std, output_hidden_states=True)
    torch.testing.assert_close(tower.eval()(images), expected.hidden_states[-2][:, 1:])


def test_a_folder_without_some_weights_is_refused(tmp_path):
    CLIPVisionModel(CLIPVisionConfig(**SIZES)).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in state if name.endswith("fc1.bias"))
    save_file({name: x for name, x in state.items() if name != lost}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 keys differ\. First: .*fc1\.bias: absent, expected present"):
        make_tower(hub=str(tmp_path))
    with pytest.raises(ValueError, match=r"tower\.sizes are given: name a published tower"):
        make_tower(hub=str(tmp_path), sizes=SIZES)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="sizes are not given"):
        make_tower()
    with pytest.raises(ValueError, match=r"tower\.layer is 4"):
        make_tower(sizes=SIZES, layer=4)
