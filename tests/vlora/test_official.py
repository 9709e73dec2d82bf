"""Equal to FeipengMa6/VLoRA at 623aa52, `llava/model/VLoRA/weights_generater.py`, on the same weights and inputs.

That code ran once beside ours, in float32 on a CPU: all generated factors were equal bit for bit, with a generator for
each kind and with one for all. The numbers here are what it gave.
"""

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lightning_modules.vlora.generator import PerceptualWeights
from lightning_modules.vlora.injection import apply
from lightning_modules.vlora.official import PREFIX, UNUSED, load_official, read_official

BLOCK = {
    "self_attn.in_proj_weight": (96, 32), "self_attn.in_proj_bias": (96,), "self_attn.out_proj.weight": (32, 32),
    "self_attn.out_proj.bias": (32,), "multihead_attn.in_proj_weight": (96, 32), "multihead_attn.in_proj_bias": (96,),
    "multihead_attn.out_proj.weight": (32, 32), "multihead_attn.out_proj.bias": (32,), "linear1.weight": (128, 32),
    "linear1.bias": (128,), "linear2.weight": (32, 128), "linear2.bias": (32,), "norm1.weight": (32,),
    "norm1.bias": (32,), "norm2.weight": (32,), "norm2.bias": (32,), "norm3.weight": (32,), "norm3.bias": (32,),
}  # fmt: skip
CONFIG = {
    "vlora_dim": 32, "vlora_depth": 2, "vlora_visual_dim": 24, "vlora_pos_num": 16, "vlora_llm_dim": 48,
    "vlora_llm_depth": 8, "vlora_rank": 4, "vlora_type": "qkvom", "vlora_alpha": 8, "weights_sep": True,
    "skip_layers": 4,
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
    load_official(made, official(separate), CONFIG | {"weights_sep": separate}, heads=4)
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
        load_official(own(separate=True), state, heads=4)


def test_another_rank_and_other_files():
    with pytest.raises(ValueError, match="build the generator with the rank"):
        load_official(own(separate=True, rank=5), official(separate=True), heads=4)
    with pytest.raises(ValueError, match="give a checkpoint of VLoRA"):
        load_official(own(separate=True), {"model.embed_tokens.weight": torch.zeros(2)}, heads=4)


def whole() -> dict[str, Tensor]:
    """As `VLoRA-7b-v1` has it: the language model and the tower beside the generator."""
    names = ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"]
    parts = ("self_attn.q_proj", "mlp.gate_proj", "input_layernorm", "post_attention_layernorm")
    names += [f"model.layers.{layer}.{part}.weight" for layer in (0, 7) for part in parts]
    names += ["model.layers.3.self_attn.rotary_emb.inv_freq"]
    tower = "model.vision_tower.vision_tower.vision_model."
    names += [
        f"{tower}embeddings.class_embedding",
        f"{tower}encoder.layers.0.mlp.fc1.bias",
        f"{tower}pre_layrnorm.bias",
    ]
    return {name: torch.zeros(2) for name in names} | official(separate=True)


def test_what_a_whole_model_has_besides_is_named_and_nothing_else_is_left_out():
    load_official(own(separate=True), whole(), CONFIG, heads=4)
    assert all(UNUSED.values())


@pytest.mark.parametrize(
    "name", ["model.layers.0.foo", "model.mm_projectr.Bs", "model.layers.8.self_attn.q_proj.weight", "mm_projector.Bs",
             "model.layers.0.self_attn.q_proj.bias", "model.vision_tower.foo"],
)  # fmt: skip
def test_a_name_that_is_nowhere_is_refused(name):
    with pytest.raises(
        ValueError, match=f"1 of .* weights are neither .* Llama of 8 layers .*, {re.escape(name)} first"
    ):
        load_official(own(separate=True), whole() | {name: torch.zeros(2)}, CONFIG, heads=4)


def test_heads_and_alpha_which_no_shape_tells_are_compared():
    with pytest.raises(ValueError, match="has 4 heads, the official one has 16: build it"):
        load_official(own(separate=True), official(separate=True), CONFIG)
    with pytest.raises(ValueError, match="has 8 heads, the official one has 4"):
        load_official(own(separate=True, heads=8), official(separate=True), CONFIG, heads=4)
    with pytest.raises(ValueError, match=r"vlora_alpha 8, the generator has 4\.0: build it with the sizes"):
        load_official(own(separate=True, alpha=None), official(separate=True), CONFIG, heads=4)
    rank = CONFIG | {"vlora_alpha": None}  # is the rank then
    load_official(own(separate=True, alpha=None), official(separate=True), rank, heads=4)
    with pytest.raises(ValueError, match=r"vlora_alpha 4, the generator has 8\.0"):
        load_official(own(separate=True), official(separate=True), rank, heads=4)


@pytest.mark.parametrize("name", [name for name in CONFIG if name != "vlora_alpha"])
def test_other_sizes_than_those_beside_the_weights_are_refused(name):
    other = {"vlora_type": "qkvo", "weights_sep": False}.get(name, 1)
    with pytest.raises(ValueError, match=f"config.json says {name} {other!r}, the generator has {CONFIG[name]!r}"):
        load_official(own(separate=True), official(separate=True), CONFIG | {name: other}, heads=4)
    with pytest.raises(ValueError, match=f"config.json has no {name}: give that of VLoRA"):
        load_official(
            own(separate=True), official(separate=True), {k: x for k, x in CONFIG.items() if k != name}, heads=4
        )


def test_published_files_are_read(tmp_path):
    first, second = dict([*whole().items()][:9]), dict([*whole().items()][9:])
    save_file(first, tmp_path / "model-00001-of-00002.safetensors")
    index = {
        "weight_map": {name: f"model-0000{n}-of-00002.safetensors" for n in (1, 2) for name in (first, second)[n - 1]}
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"names model-00002-of-00002\.safetensors, which is not there: fetch all 2"):
        read_official(tmp_path)
    save_file(second, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        read_official(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    state, config = read_official(tmp_path)
    load_official(own(separate=True), state, config, heads=4)
    assert state.keys() == whole().keys() and config == CONFIG


def test_the_file_of_the_first_phase_is_read_with_the_sizes_beside_it(tmp_path):
    torch.save(official(separate=True), tmp_path / "mm_projector.bin")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    load_official(own(separate=True), *read_official(tmp_path / "mm_projector.bin"), heads=4)
    for content, message in (("[]", "holds a list, expected an object"), ("{", "cannot be read")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_official(tmp_path / "mm_projector.bin")
    torch.save([1], tmp_path / "mm_projector.bin")
    with pytest.raises(ValueError, match="holds no weights by their names"):
        read_official(tmp_path / "mm_projector.bin")
    (tmp_path / "x.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"x\.safetensors is cut off or damaged"):
        read_official(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="has neither"):
        read_official(tmp_path / "none")
