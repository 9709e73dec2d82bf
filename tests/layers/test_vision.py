"""The shared ViT against transformers, with weights copied across, and against closed forms."""

import math

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel

from lightning_modules.layers import hub_vit
from lightning_modules.layers.position import resize_positions, sincos_2d
from lightning_modules.layers.published import load_strictly
from lightning_modules.layers.transformer import Attention, DropPath
from lightning_modules.layers.vision import (
    VisionTransformer,
    num_kept,
    patchify,
    random_keep,
    take,
    take_with_cls,
)
from lightning_modules.maskalign import encoders

SIZES = dict(hidden_size=32, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=24)


def reference(name: str):
    torch.manual_seed(0)
    if name == "clip":
        model = CLIPVisionModel(CLIPVisionConfig(**SIZES, patch_size=8, attn_implementation="eager"))
    else:
        model = ViTModel(ViTConfig(**SIZES, patch_size=8, attn_implementation="eager"))
    for parameter in model.parameters():  # the default initialisation is so small that errors would hide
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def ours(name: str, **changes) -> VisionTransformer:
    sizes = dict(image_size=24, patch_size=8, dim=32, depth=3, num_heads=4) | changes
    return VisionTransformer(**sizes, **hub_vit.FAMILIES[name].architecture)


def difference(a, b):
    return ((a - b).norm() / b.norm()).item(), ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("name", ["clip", "vit"])
def test_every_layer_equals_transformers(name):
    theirs = reference(name)
    vit = ours(name).eval()
    load_strictly(vit, hub_vit.from_hub(theirs.state_dict(), name), name, unused=encoders.UNUSED)
    images = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        expected = theirs(pixel_values=images, output_hidden_states=True, output_attentions=True)
        layers = vit.layers(images)
        x = vit.embed(images)
        for block in vit.blocks[:-1]:
            x = block(x)
        attention = vit.blocks[-1].cls_attention(x)
    for mine, hidden in zip(layers[:-1], expected.hidden_states[1:-1], strict=True):
        assert max(difference(mine, hidden)) < 1e-5
    final = vit.norm(layers[-1])
    if name == "clip":  # transformers normalises the CLS token only
        assert max(difference(layers[-1], expected.last_hidden_state)) < 1e-5
        assert max(difference(final[:, 0], expected.pooler_output)) < 1e-5
    else:
        assert max(difference(final, expected.last_hidden_state)) < 1e-5
    assert max(difference(attention, expected.attentions[-1][:, :, 0])) < 1e-5


@pytest.mark.parametrize("name", ["clip", "vit"])
def test_a_hub_state_dict_comes_back_unchanged(name):
    theirs = {k: v for k, v in reference(name).state_dict().items() if not k.startswith("pooler.")}
    back = hub_vit.to_hub(hub_vit.from_hub(theirs, name), name)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)


def test_clip_at_another_resolution_equals_interpolated_positions():
    theirs = reference("clip")
    state = hub_vit.from_hub(theirs.state_dict(), "clip")
    state["pos_embed"] = resize_positions(state["pos_embed"], 2)
    vit = ours("clip", image_size=16).eval()
    load_strictly(vit, state, "clip")
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = theirs(pixel_values=images, interpolate_pos_encoding=True).last_hidden_state
        assert max(difference(vit.layers(images)[-1], expected)) < 1e-5


def test_fixed_positions_encode_the_column_then_the_row_as_mae():
    dim, grid, frequencies = 16, 3, [10000 ** (-k / 4) for k in range(4)]
    positions = sincos_2d(dim, grid)[0].tolist()
    assert positions[0] == [0] * dim
    for row in range(grid):
        for column in range(grid):
            angles = [[place * f for f in frequencies] for place in (column, row)]
            expected = [function(a) for way in angles for function in (math.sin, math.cos) for a in way]
            assert positions[1 + row * grid + column] == pytest.approx(expected, abs=1e-6)


def test_kept_patches_are_seen_with_their_own_positions():
    vit = VisionTransformer(image_size=8, patch_size=2, dim=16, depth=2, num_heads=2).eval()
    images = torch.randn(3, 3, 8, 8)
    everything = random_keep(3, 16, 16, images.device)
    seen = vit(images, everything)
    torch.testing.assert_close(seen, take_with_cls(vit(images), everything), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        vit.embed(images, everything[:, :5])[:, 1:], take(vit.embed(images)[:, 1:], everything[:, :5])
    )


@pytest.mark.parametrize(
    ("ratio", "kept"), [(0.7, 58), (0.75, 49), (0.6, 78), (0.5, 98), (0.8, 39), (0.4, 117), (0.0, 196)]
)
def test_the_number_of_kept_patches_is_rounded_down(ratio, kept):
    assert num_kept(196, ratio) == kept


def test_random_keep_is_a_uniform_sample_without_replacement():
    keep = random_keep(4000, 8, 3, torch.device("cpu"))
    assert all(len(set(row)) == 3 for row in keep.tolist())
    share = torch.bincount(keep.flatten(), minlength=8) / 4000
    assert (share - 3 / 8).abs().max() < 0.04


def test_patches_are_read_row_by_row():
    images = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    patches = patchify(images, 2)
    assert patches.shape == (1, 4, 8)
    assert patches[0, 1].tolist() == [2, 18, 3, 19, 6, 22, 7, 23]


def test_dropped_paths_keep_the_expectation():
    drop, x = DropPath(0.25), torch.ones(20000, 1, 2)
    out = drop(x)
    assert out.unique().tolist() == [0, pytest.approx(4 / 3)]
    assert torch.equal(out[:, :, 0], out[:, :, 1])
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(drop.eval()(x), x)


def test_bad_sizes_say_what_to_change():
    sizes = dict(patch_size=2, dim=16, depth=1, num_heads=2)
    with pytest.raises(ValueError, match=r"image_size \(9\) must be a multiple of patch_size \(2\)"):
        VisionTransformer(image_size=9, **sizes)
    with pytest.raises(ValueError, match=r"dim \(10\) must be a multiple of num_heads \(4\)"):
        Attention(10, 4)
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_2d(6, 2)
    with pytest.raises(ValueError, match="rotary"):
        VisionTransformer(image_size=8, **sizes, position="rotary")
    with pytest.raises(ValueError, match=r"\(3, 10, 10\) do not fit a ViT built for \(3, 8, 8\)"):
        VisionTransformer(image_size=8, **sizes)(torch.zeros(1, 3, 10, 10))
    for ratio in (1.0, 0.97, -0.1):
        with pytest.raises(ValueError, match=f"mask_ratio \\({ratio}\\)"):
            num_kept(16, ratio)


def test_a_checkpoint_of_another_architecture_is_refused_with_both_shapes():
    vit = VisionTransformer(image_size=8, patch_size=2, dim=16, depth=1, num_heads=2)
    wider = VisionTransformer(image_size=8, patch_size=2, dim=32, depth=2, num_heads=2)
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.proj\.bias: \(32,\), expected \(16,\)"):
        load_strictly(vit, wider.state_dict(), "wide.pth")
