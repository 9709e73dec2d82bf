"""Inter-modality flow of LXMERT's cross layers: both streams in one map, and what counts as language."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_modules.unified_t2i_i2t.cross_flow import joint
from lightning_modules.unified_t2i_i2t.evaluation import evaluate
from lightning_modules.unified_t2i_i2t.module import UnifiedGenerator
from tests.memory_runs import run_of
from tests.unified_t2i_i2t.test_module import batch, build

PLACES, WORDS = 16, 7  # a marker, five words and a full stop; two of padding behind them


def flows(module: UnifiedGenerator, given=None) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return module.eval().flows(given or batch())


def silent(dense: nn.Linear, length: float) -> None:
    """Make a module add the same vector of this length to every state."""
    nn.init.zeros_(dense.weight)
    nn.init.zeros_(dense.bias)
    with torch.no_grad():
        dense.bias[0] = length


def test_equal_attention_has_a_flow_of_one():
    """Equal maps, and modules that add as much as they read tokens."""
    module = build()
    for layer in module.network.encoder.x_layers:
        for attention in (layer.visual_attention.att, layer.lang_self_att.self, layer.visn_self_att.self):
            for part in (attention.query, attention.key):
                nn.init.zeros_(part.weight)
                nn.init.zeros_(part.bias)
        silent(layer.visual_attention.output.dense, 1.0)
        silent(layer.lang_self_att.output.dense, WORDS / PLACES)
        silent(layer.visn_self_att.output.dense, PLACES / WORDS)
    found = flows(module)
    assert all((x - 1).abs().max() < 1e-5 for name, x in found.items() if name.endswith(("relative", "rolled_out")))
    for name, words in (("own", WORDS), ("other", WORDS), ("content", WORDS - 2)):
        assert found[f"flow/{name}/to_language"].shape == (6, 2), "images, cross layers"
        assert found[f"flow/{name}/to_language"].flatten().tolist() == pytest.approx([PLACES / (PLACES + WORDS)] * 12)
        assert found[f"flow/{name}/to_vision"].flatten().tolist() == pytest.approx([words / (PLACES + WORDS)] * 12)


@pytest.mark.parametrize(("crossed", "flowing"), [(0.0, 0.0), (1.0, 1.0)])
def test_what_adds_nothing_lets_nothing_flow(crossed, flowing):
    module = build()
    for layer in module.network.encoder.x_layers:
        silent(layer.visual_attention.output.dense, crossed)
        silent(layer.lang_self_att.output.dense, 1 - crossed)
        silent(layer.visn_self_att.output.dense, 1 - crossed)
    found = flows(module)
    for name in ("to_language", "to_vision", "symmetric"):
        assert found[f"flow/own/{name}"].flatten().tolist() == pytest.approx([flowing] * 12, abs=1e-6)


def test_rows_of_the_joint_map_sum_to_one_and_each_block_is_in_its_place():
    draw = torch.Generator().manual_seed(0)
    crossed, own = (
        tuple(torch.rand(2, *shape, generator=draw).softmax(-1) for shape in shapes)
        for shapes in (((3, 5), (5, 3)), ((3, 3), (5, 5)))
    )
    lengths = tuple(torch.rand(2, count, generator=draw) for count in (3, 5, 3, 5))
    found = joint(crossed, own, lengths)
    torch.testing.assert_close(found.sum(2), torch.ones(2, 8))
    share = lengths[1] / (lengths[1] + lengths[3])
    torch.testing.assert_close(found[:, 3:, :3], share[:, :, None] * crossed[1])
    torch.testing.assert_close(found[:, :3, :3].sum(2), 1 - lengths[0] / (lengths[0] + lengths[2]))


def test_maps_are_those_of_the_forward_pass_and_outputs_stay():
    module, given = build().eval(), batch()
    ids = given["references"][:, 0]
    with torch.no_grad():
        seen = module.network.see(module.caption_features(given))
        before = module.network.join(seen, ids, ids != 0)
        own = flows(module)
        again = flows(module)
        after = module.network.join(seen, ids, ids != 0)
    torch.testing.assert_close(own, again, rtol=0, atol=0)
    torch.testing.assert_close(before, after, rtol=0, atol=0)


@pytest.mark.parametrize(("tasks", "drawing"), [(["xe_t2i"], "discrete"), (["xe_t2i"], "dense"), (["xe_i2t"], "dense")])
def test_every_arm_has_a_flow(tasks, drawing):
    found = flows(build(tasks=tasks, drawing_input=drawing))
    assert found["flow/own/relative"].isfinite().all()


def test_captions_without_words_are_left_out():
    given = batch()
    given["references"][2, 0] = torch.tensor([1, 29, *[0] * 7])
    assert len(flows(build(), given)["flow/own/relative"]) == 5
    given["references"][:, 0] = given["references"][2, 0]
    assert flows(build(), given) == {}


def test_flow_is_reported():
    module, given = build(tasks=["xe_i2t"]), batch()
    arrays = {name: x.numpy() for name, x in flows(module).items()}
    references = np.array([[b"a red circle."]] * 6)
    arrays |= {"captions": given["references"][:, 0].numpy(), "references": references.view(np.uint8)[:, None]}
    found = evaluate([run_of(arrays, {"parameters": 1})], "world", tokenizer="world", examples=0, tasks=["i2t"])
    own = arrays["flow/own/relative"].astype(np.float64).mean()
    assert found.metrics[0]["world/flow/own_points"] == pytest.approx(100 * own)
    assert "modules of their own" in found.figures[0].caption
