"""Sentences of the paper, the official checkpoint layout, and what a user may get wrong."""

import argparse
import copy
import warnings

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader
from transformers import CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel

from lightning_modules.layers.vision import VisionTransformer, take_with_cls
from lightning_modules.maskalign.masked_autoencoder import MaskedAutoencoder
from lightning_modules.maskalign.module import (
    DynamicAlignment,
    MaskAlign,
    initial_weights,
    normalise_targets,
    read_official,
    weigh_layers,
)
from stages.composing import compose
from stages.plan import load_plan
from tests.maskalign import reference
from tests.processes import weights_after

VIT = dict(image_size=8, patch_size=2, dim=24, depth=4, num_heads=4, channels=1)
PIXELS = dict(pixel_scale=16.0, mean=[0.3], std=[0.4])
PLANS = {"tiny": load_plan("tiny"), "paper": load_plan("paper")}


def build(seed: int = 0, teacher: dict | None = None, student: dict | None = None, **options) -> MaskAlign:
    torch.manual_seed(seed)
    defaults = dict(mask_ratio=0.6, layer_weights="top2", preprocess=PIXELS)
    teacher = {"hub": None, **VIT, **(teacher or {})}
    return MaskAlign(student={**VIT, **(student or {})}, teacher=teacher, **{**defaults, **options})


def batch(size: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    images = torch.randint(0, 17, (size, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return {"images": images}


# Sentences of the paper


def test_hidden_patches_do_not_influence_the_student():
    module = build()
    images = torch.randn(1, 1, 8, 8)
    keep = torch.tensor([[0, 5]])  # rows and columns 0-1, and 2-3
    other = torch.randn(1, 1, 8, 8)
    other[:, :, :2, :2], other[:, :, 2:4, 2:4] = images[:, :, :2, :2], images[:, :, 2:4, 2:4]
    seen = [module.alignment(module.student.layers(x, keep)) for x in (images, other)]
    assert torch.equal(*seen)
    targets = [module.lesson(x).layers for x in (images, other)]
    assert not torch.allclose(*[take_with_cls(x[-1], keep) for x in targets])  # the teacher saw the difference


def test_the_teacher_never_changes_and_is_no_part_of_what_is_trained_or_saved():
    module = build(teacher={"drop_path": 0.5})
    before = copy.deepcopy(module.teacher.network.state_dict())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, weight_decay=0.1)
    module.train()
    module.training_step(batch()).backward()
    optimizer.step()
    assert all(torch.equal(x, before[key]) for key, x in module.teacher.network.state_dict().items())
    assert not any("teacher" in key for key in [*module.state_dict(), *dict(module.named_parameters())])
    assert not any(m.training for m in module.teacher.network.modules())
    assert module.double().teacher.network.cls_token.dtype == torch.float64  # but it moves along


def test_visible_patches_are_drawn_in_proportion_to_attention_not_the_top():
    module = build(mask_ratio=0.9)
    assert module.num_kept == 1
    importance = torch.linspace(1, 4, 16)
    keep = module.visible_patches(importance.expand(20000, -1), 20000)
    share = torch.bincount(keep.flatten(), minlength=16) / 20000
    torch.testing.assert_close(share, importance / importance.sum(), atol=0.01, rtol=0)


def test_patches_without_attention_are_drawn_last_and_none_twice():
    module = build(mask_ratio=0.5)
    importance = torch.zeros(50, 16)
    importance[:, :5] = 1
    keep = module.visible_patches(importance, 50)
    assert all(set(range(5)) <= set(row) and len(set(row)) == 8 for row in keep.tolist())


def test_importance_is_the_mean_over_heads_of_cls_attention_in_the_last_layer():
    module = build()
    vit, images = module.teacher.network, torch.randn(3, 1, 8, 8)
    x = vit.layers(images)[-2]
    block = vit.blocks[-1]
    q, k, _ = block.attn.qkv(block.norm1(x)).view(3, 17, 3, 4, 6).permute(2, 0, 3, 1, 4)
    attention = (q @ k.transpose(2, 3) / 6**0.5).softmax(-1)
    torch.testing.assert_close(module.lesson(images).importance, attention[:, :, 0, 1:].mean(1))


@pytest.mark.parametrize("form", ["mix_then_adapt", "adapt_then_mix"])
@pytest.mark.parametrize("layer_weights", ["top2", "linear_decay"])
def test_the_loss_is_the_written_out_one(form, layer_weights):
    module = build(form=form, layer_weights=layer_weights)
    nn.init.normal_(module.alignment.weights)
    images = torch.randn(2, 1, 8, 8)
    keep = module.visible_patches(torch.rand(2, 16), 2)
    alignment = module.alignment
    matrix, weights = torch.zeros(4, 4), torch.zeros(4)
    matrix[alignment.targets], weights[alignment.targets] = alignment.weights.detach(), module.layer_weights

    def adapt(layer, x):
        if form == "adapt_then_mix":
            return alignment.adapters[layer](x)
        ignored = layer not in alignment.targets
        return x if ignored else alignment.adapters[alignment.targets.index(layer)](x)

    with torch.no_grad():
        layers = module.student.layers(images, keep)
        expected = reference.alignment_loss(
            layers, module.teacher.network.layers(images), keep, weights, matrix, adapt, form
        )
        lesson = normalise_targets(module.lesson(images).layers, "whiten")
        targets = torch.stack([take_with_cls(layer, keep) for layer in lesson])
        torch.testing.assert_close(module.alignment_loss(alignment(layers), targets), expected)


def test_both_forms_agree_for_equal_linear_adapters():
    torch.manual_seed(0)
    sizes = dict(student_dim=8, teacher_dim=6, depth=3, teacher_depth=5, targets=[3, 4], fusion="sum", adapter="linear")
    code, paper = (DynamicAlignment(**sizes, form=form) for form in ("mix_then_adapt", "adapt_then_mix"))
    for adapter in [*code.adapters, *paper.adapters]:
        adapter.load_state_dict(code.adapters[0].state_dict())
    layers = [torch.randn(2, 4, 8) for _ in range(3)]
    torch.testing.assert_close(code(layers), paper(layers))  # rows of `sum` add up to 1, so biases agree too
    assert (len(code.adapters), len(paper.adapters)) == (2, 3)


def test_mixtures_start_near_the_identity_or_at_the_mean():
    linear = initial_weights("linear", 12, 12)
    assert linear.diagonal().tolist() == pytest.approx([1.01] * 12)
    assert linear.sum(1).tolist() == pytest.approx([1.12] * 12)
    assert initial_weights("sum", 24, 12).shape == (12, 24)
    assert torch.equal(initial_weights("sum", 4, 2), torch.full((2, 4), 0.25))


OPTIONS = [
    *(dict(fusion=fusion, adapter=adapter) for fusion in ("linear", "simple") for adapter in ("linear", "mlp2")),
    dict(fusion="sum", adapter="mlp", student=dict(depth=3, dim=16)),
    dict(form="adapt_then_mix", adapter="norm_linear", layer_weights="mid1"),
    dict(masking="random", loss="l1", target_norm="l2", layer_weights="linear_decay"),
    dict(masking="none", mask_ratio=0.0, loss="l2", target_norm="bn", layer_weights="mean"),
    dict(target_norm="none", layer_weights="out"),
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_every_parameter_gets_a_gradient(options):
    module = build(**options)
    module.training_step(batch()).backward()
    assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []


# Pieces


def test_target_normalisations():
    layers = 3 + 2 * torch.randn(2, 5, 7, 32)
    white = normalise_targets(layers, "whiten")
    assert white.mean(-1).abs().max() < 1e-5 and (white.var(-1, unbiased=False) - 1).abs().max() < 1e-4
    assert torch.allclose(normalise_targets(layers, "l2").norm(dim=-1), torch.ones(()))
    whole = normalise_targets(layers, "bn")
    assert whole[0].mean().abs() < 1e-5 and whole[1].std().item() == pytest.approx(1, abs=1e-4)
    assert torch.equal(normalise_targets(layers, "none"), layers)


def test_layer_weights():
    assert weigh_layers("top5", 12) == dict.fromkeys(range(7, 12), 0.2)
    assert weigh_layers("out", 12) == {11: 1}
    assert weigh_layers("mid6", 12) == {6: 1}
    assert weigh_layers("mean", 4) == dict.fromkeys(range(4), 0.25)
    assert weigh_layers("linear_decay", 4) == pytest.approx({1: 1 / 6, 2: 2 / 6, 3: 3 / 6})


def test_loss_of_known_differences():
    module = build()
    targets = torch.zeros(2, 3, 4, 5)
    assert module.alignment_loss(targets, targets) == 0
    assert module.alignment_loss(targets + 0.5, targets).item() == pytest.approx(0.25)  # plain L2 where it is small
    assert module.alignment_loss(targets + 3, targets).item() == pytest.approx(5)
    one = torch.stack([targets[0] + 0.5, targets[1]])
    assert module.alignment_loss(one, targets).item() == pytest.approx(0.125)


def test_under_autocast_targets_and_loss_stay_in_float32():
    module = build()
    exact = seeded(lambda: module.training_step(batch()))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = seeded(lambda: module.training_step(batch()))
    assert rounded.dtype == torch.float32 and rounded != exact
    torch.testing.assert_close(rounded, exact, atol=0, rtol=0.1)  # other masks, drawn from rounded attention


def seeded(step, seed: int = 3):
    torch.manual_seed(seed)
    return step()


def test_a_batch_of_two_is_two_batches_of_one():
    module = build(masking="none", mask_ratio=0.0)
    both = batch(2)["images"]
    losses = [module.training_step({"images": x}) for x in (both, both[:1], both[1:])]
    torch.testing.assert_close(losses[0], (losses[1] + losses[2]) / 2)


# Training


def test_it_trains_in_a_trainer_and_returns_from_its_weights(tmp_path):
    module = build()
    module.recipe = compose("tiny", system="maskalign")["system"]["pretrain"]
    trainer = Trainer(
        max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    loader = DataLoader([{"images": image} for image in batch(32)["images"]], batch_size=8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")  # Lightning 2.6 calls what torch 2.13 deprecates
        trainer.fit(module, loader)
    assert trainer.callback_metrics["pretrain/loss"] > 0
    assert module.facts() == build().facts()
    other = build(seed=1)
    other.load_state_dict(module.state_dict())
    other.start_from(module.teacher.network.state_dict())
    module.eval(), other.eval()
    assert torch.equal(*(seeded(lambda m=m: m.training_step(batch())) for m in (module, other)))
    assert module.export().keys() == VisionTransformer(**VIT, affine_norm=False).state_dict().keys()


class TopPatches(MaskAlign):
    """Masks that depend on the images alone, so that two processes mask as one does."""

    def visible_patches(self, importance, batch_size):
        return importance.topk(self.num_kept).indices


def build_top_patches() -> TopPatches:
    module = build()
    module.__class__ = TopPatches
    return module


@pytest.mark.slow
def test_two_processes_equal_one_with_the_double_batch(tmp_path):
    one, two = (weights_after(count, tmp_path, build_top_patches, batch, lr=0.1) for count in (1, 2))
    for name, x in one.items():
        torch.testing.assert_close(two[name], x, atol=1e-6, rtol=1e-5, msg=name)
    assert any(not torch.equal(x, build().state_dict()[name]) for name, x in one.items())


# Official checkpoints

CLIP = dict(affine_norm=True, position="learned", norm_eps=1e-5, activation="quick_gelu", embedding_norm=True)
COLOUR = dict(pixel_scale=1.0, mean=[0.5] * 3, std=[0.5] * 3)


def clip_student(**options) -> MaskAlign:
    return build(student={"channels": 3}, teacher={"channels": 3, **CLIP}, preprocess=COLOUR, **options)


def official_checkpoint(level: str = "vision_model.") -> dict[str, torch.Tensor]:
    """A state dict with the keys and shapes of the official code, for a student and teacher of VIT's size."""
    torch.manual_seed(1)
    dim = 24
    linear = lambda name, o, i: {f"{name}.weight": torch.randn(o, i), f"{name}.bias": torch.randn(o)}  # noqa: E731
    norm = lambda name: {f"{name}.weight": torch.randn(dim), f"{name}.bias": torch.randn(dim)}  # noqa: E731
    state = {"cls_token": torch.randn(1, 1, dim), "pos_embed": torch.randn(1, 17, dim)}
    state |= {"distill_weights": torch.randn(4, 4)}
    state |= {"patch_embed.proj.weight": torch.randn(dim, 3, 2, 2), "patch_embed.proj.bias": torch.randn(dim)}
    for i in range(4):
        state |= norm(f"blocks.{i}.norm1") | norm(f"blocks.{i}.norm2")
        state |= linear(f"blocks.{i}.attn.qkv", 3 * dim, dim) | linear(f"blocks.{i}.attn.proj", dim, dim)
        state |= linear(f"blocks.{i}.mlp.fc1", 4 * dim, dim) | linear(f"blocks.{i}.mlp.fc2", dim, 4 * dim)
        state |= linear(f"distill_heads.{i}", dim, dim)
    state |= norm("norm")
    sizes = dict(hidden_size=dim, intermediate_size=4 * dim, num_hidden_layers=4, num_attention_heads=4, image_size=8)
    teacher = CLIPVisionModel(CLIPVisionConfig(**sizes, patch_size=2)).state_dict()
    state |= {f"clip_model.{level}{key}": x for key, x in teacher.items()}
    if level:  # written by older versions of transformers
        state[f"clip_model.{level}embeddings.position_ids"] = torch.arange(17)[None]
    return state


def test_an_official_checkpoint_loads_and_comes_back_with_every_key():
    module, state = clip_student(), official_checkpoint()
    rest = module.load_official(state)
    assert torch.equal(module.student.blocks[2].attn.qkv.weight, state["blocks.2.attn.qkv.weight"])
    assert torch.equal(module.alignment.weights, state["distill_weights"][2:])
    assert torch.equal(module.alignment.adapters[0].weight, state["distill_heads.2.weight"])
    assert sorted(rest) == sorted(
        ["norm.weight", "norm.bias", "distill_weights", "clip_model.vision_model.embeddings.position_ids"]
        + [f"distill_heads.{i}.{leaf}" for i in (0, 1) for leaf in ("weight", "bias")]
    )
    back = module.official(rest)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_the_official_teacher_is_the_one_of_transformers():
    module, state = clip_student(), official_checkpoint(level="")
    module.load_official(state)
    sizes = dict(hidden_size=24, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, image_size=8)
    theirs = CLIPVisionModel(CLIPVisionConfig(**sizes, patch_size=2, attn_implementation="eager")).eval()
    theirs.load_state_dict({k.removeprefix("clip_model."): x for k, x in state.items() if k.startswith("clip_model.")})
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = theirs(pixel_values=images, output_hidden_states=True, output_attentions=True)
    lesson = module.lesson(images)
    torch.testing.assert_close(lesson.layers[0], expected.hidden_states[3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lesson.importance, expected.attentions[-1][:, :, 0, 1:].mean(1), atol=1e-5, rtol=1e-5)


def test_an_official_checkpoint_with_dino_has_the_names_of_transformers_4():
    sizes = dict(hidden_size=24, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, image_size=8)
    torch.manual_seed(2)
    theirs = ViTModel(ViTConfig(**sizes, patch_size=2, layer_norm_eps=1e-12)).state_dict()
    block = {
        "layernorm_before": "layernorm_before",
        "layernorm_after": "layernorm_after",
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    names = {f"layers.{i}.{now}": f"encoder.layer.{i}.{then}" for i in range(4) for now, then in block.items()}
    named = lambda key: f"{names.get(key.rpartition('.')[0], key.rpartition('.')[0])}.{key.rpartition('.')[2]}"  # noqa: E731
    state = {key: x for key, x in official_checkpoint().items() if not key.startswith("clip_model.")}
    state |= {f"dino_model.{named(key)}" if "." in key else f"dino_model.{key}": x for key, x in theirs.items()}
    assert "dino_model.encoder.layer.3.attention.attention.query.weight" in state
    vit = dict(affine_norm=True, position="learned", norm_eps=1e-12)
    module = build(student={"channels": 3}, teacher={"channels": 3, **vit}, preprocess=COLOUR)
    rest = module.load_official(state)
    fused = torch.cat([theirs[f"layers.3.attention.{part}_proj.weight"] for part in "qkv"])
    assert torch.equal(module.teacher.network.blocks[3].attn.qkv.weight, fused)
    assert torch.equal(module.teacher.network.blocks[1].mlp.fc2.bias, theirs["layers.1.mlp.fc2.bias"])
    back = module.official(rest)
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)


def test_a_checkpoint_of_another_architecture_is_refused():
    wider = build(student={"channels": 3, "dim": 32}, teacher={"channels": 3, **CLIP}, preprocess=COLOUR)
    with pytest.raises(ValueError, match=r"alignment.adapters.0.weight: \(24, 24\), expected \(24, 32\)"):
        wider.load_official(official_checkpoint())
    missing = official_checkpoint()
    del missing["blocks.1.mlp.fc1.bias"]
    with pytest.raises(ValueError, match=r"student.blocks.1.mlp.fc1.bias: absent, expected \(96,\)"):
        clip_student().load_official(missing)
    with pytest.raises(ValueError, match=r"student.mask_token: .*, expected absent"):
        clip_student().load_official({**official_checkpoint(), "mask_token": torch.zeros(1)})
    with pytest.raises(ValueError, match="mix_then_adapt"):
        clip_student(form="adapt_then_mix").load_official(official_checkpoint())


class Harmful:
    def __reduce__(self):
        return print, ("this must never run",)


def test_the_namespace_in_an_official_file_is_read_without_running_a_pickle(tmp_path, capsys):
    file, state = tmp_path / "official.pth", {"cls_token": torch.ones(1)}
    namespace = argparse.Namespace(epochs=200, blr=1.5e-4, model="mae_vit_base_patch16", resume=None)
    torch.save({"model": state, "args": namespace, "epoch": 199, "scaler": {"scale": 65536.0}}, file)
    assert torch.equal(read_official(file)["cls_token"], state["cls_token"])
    torch.save({"model": state, "args": Harmful()}, file)
    with pytest.raises(ValueError, match=r"official.pth holds more than tensors"):
        read_official(file)
    torch.save({"state_dict": state}, file)
    with pytest.raises(ValueError, match="has the key 'model'"):
        read_official(file)
    assert "never" not in capsys.readouterr().out


# Arms and mistakes


def test_no_arm_of_the_tiny_preset_trains_on_a_test_row():
    plan = PLANS["tiny"]
    parts = []
    for row in [*plan.pretrain.values(), *plan.finetune.values()]:
        if row.arm.startswith("maskalign"):
            config = compose("tiny", system=row.system, overrides=row.overrides)["system"]
            blocks = [config] if row.arm in plan.pretrain else config["downstream"].values()
            parts += [part for block in blocks for part in block["data"]["splits"].items()]
    assert {part["source"] for name, part in parts if name == "train"} == {"train"}
    assert {part["source"] for name, part in parts if name == "test"} == {"test"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(mask_ratio=0.99), r"mask_ratio \(0.99\) of 16 patches keeps 0"),
        (dict(masking="block"), r"masking \('block'\) must be one of attentive"),
        (dict(masking="none"), r"masking 'none' contradicts mask_ratio \(0.6\)"),
        (dict(mask_ratio=0.0), r"masking 'attentive' contradicts mask_ratio \(0.0\)"),
        (dict(target_norm="batch"), "target_norm"),
        (dict(loss="huber"), "loss"),
        (dict(adapter="conv"), "adapter"),
        (dict(fusion="mean"), "fusion"),
        (dict(form="both"), "form"),
        (dict(layer_weights="top5"), r"'top5'\) must be top<K> with K from 1 to 4"),
        (dict(layer_weights="mid4"), "J from 0 to 3"),
        (dict(student=dict(depth=3)), "got 3 and 4 layers. Use fusion 'sum'"),
        (dict(fusion="simple", form="adapt_then_mix"), "mixes nothing"),
        (dict(fusion="simple", layer_weights="mid1"), "without a gradient"),
        (dict(student=dict(image_size=9)), r"image_size \(9\) must be a multiple of patch_size \(2\)"),
        (dict(teacher=dict(patch_size=4)), r"grids of 4 and 2. Choose the teacher's image_size .*: 16"),
        (dict(teacher=dict(hub="openai/clip-vit-base-patch16")), "has its own architecture; leave out patch_size, dim"),
        (dict(teacher=dict(hub="google/vit", **dict.fromkeys([*VIT][1:]))), "encoder 'google/vit' is unknown"),
    ],
)
def test_mistakes_name_the_value_and_the_way_out(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_a_teacher_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"54 keys differ. First: blocks.0.attn.proj.bias: \(32,\), expected \(24,\)"):
        build().start_from(VisionTransformer(**{**VIT, "dim": 32}, affine_norm=True).state_dict())
    with pytest.raises(ValueError, match="grids of 4 and 2"):
        MaskedAutoencoder(
            encoder=VIT, preprocess=PIXELS, decoder_dim=8, decoder_depth=1, decoder_heads=2,
            target="features", teacher={"hub": None, **VIT, "patch_size": 4},
        )  # fmt: skip
