"""Equal to FeipengMa6/VLoRA at 623aa52, `llava/model/VLoRA/weights_generater.py`, on the same weights and inputs.

That code ran once beside ours, in float32 on a CPU: all generated factors were equal bit for bit, with a generator for
each kind and with one for all. The numbers here are what it gave.
"""

import pytest
import torch
from torch import Tensor

from lightning_modules.vlora.generator import PerceptualWeights
from lightning_modules.vlora.injection import apply
from lightning_modules.vlora.official import PREFIX, load_official

BLOCK = {
    "self_attn.in_proj_weight": (96, 32), "self_attn.in_proj_bias": (96,), "self_attn.out_proj.weight": (32, 32),
    "self_attn.out_proj.bias": (32,), "multihead_attn.in_proj_weight": (96, 32), "multihead_attn.in_proj_bias": (96,),
    "multihead_attn.out_proj.weight": (32, 32), "multihead_attn.out_proj.bias": (32,), "linear1.weight": (128, 32),
    "linear1.bias": (128,), "linear2.weight": (32, 128), "linear2.bias": (32,), "norm1.weight": (32,),
    "norm1.bias": (32,), "norm2.weight": (32,), "norm2.bias": (32,), "norm3.weight": (32,), "norm3.bias": (32,),
}  # fmt: skip
# a generator for each kind: the loss, norms of gradients of visual_proj.weight, Bs and pos_embed
FACTS = {
    True: (205_472, 6.20496129989624, 0.5750834941864014, 1.6735732555389404, 0.327094703912735),
    False: (43_936, 12.84682846069336, 1.896200180053711, 2.90767240524292, 0.5118567943572998),
}


def numbers(shape: tuple, number: float) -> Tensor:
    """Values that need no generator of random numbers."""
    places = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(0.37 * places + number).float().reshape(shape)


def official(separate: bool) -> dict[str, Tensor]:
    """Weights under the names, and in the order, of the official code."""
    queries = 2 if separate else 10
    shapes = {"pos_embed": (1, 16, 32), "Bs": (1, 10, 192), "visual_proj.weight": (32, 24), "visual_proj.bias": (32,)}
    for gen in [f"gen.{number}" for number in range(5)] if separate else ["gen"]:
        shapes[f"{gen}.queries"] = (1, queries, 32)
        for depth in range(2):
            shapes |= {f"{gen}.decoders.{depth}.{name}": shape for name, shape in BLOCK.items()}
        shapes |= {f"{gen}.norm.weight": (32,), f"{gen}.norm.bias": (32,)}
        shapes |= {f"{gen}.weights_head.weight": (192, 32), f"{gen}.weights_head.bias": (192,)}
    return {PREFIX + name: 0.3 * numbers(shape, place) for place, (name, shape) in enumerate(shapes.items())}


def own(separate: bool, **options) -> PerceptualWeights:
    """Ours of the same sizes."""
    sizes = {"visual_dim": 24, "patches": 16, "dim": 32, "depth": 2, "rank": 4, "alpha": 8.0, "heads": 4} | options
    return PerceptualWeights(
        sizes=dict.fromkeys("qkvom", (48, 48)), layers=8, separate=separate, **sizes
    )  # fmt: skip


@pytest.mark.parametrize("separate", [True, False])
def test_numbers(separate):
    made = own(separate)
    load_official(made, official(separate))
    parameters, loss, projection, learned, positions = FACTS[separate]
    assert sum(p.numel() for p in made.parameters()) == parameters
    deltas, x = made(numbers((3, 16, 24), 0.5)), numbers((3, 5, 48), 2)
    found = sum(apply(x, delta).square().mean() for each in deltas.values() for delta in each.values())
    found.backward()
    assert found.item() == pytest.approx(loss, rel=1e-5)
    assert made.projection.weight.grad.norm().item() == pytest.approx(projection, rel=1e-5)
    assert torch.cat([p.grad.flatten() for p in made.learned.values()]).norm().item() == pytest.approx(
        learned, rel=1e-5
    )
    assert made.positions.grad.norm().item() == pytest.approx(positions, rel=1e-5)


def test_every_weight_is_needed():
    state = official(separate=True)
    state.pop(f"{PREFIX}gen.3.queries")
    with pytest.raises(ValueError, match="another architecture"):
        load_official(own(separate=True), state)


def test_another_rank_and_other_files():
    with pytest.raises(ValueError, match="build the generator with the rank"):
        load_official(own(separate=True, rank=5), official(separate=True))
    with pytest.raises(ValueError, match="give a checkpoint of VLoRA"):
        load_official(own(separate=True), {"model.embed_tokens.weight": torch.zeros(2)})
