"""Sizes, costs and schedules of the paper's models against the official code's, built on the meta device."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from lightning_modules.base import learning_rate_schedule
from lightning_modules.layers.vision import VisionTransformer
from lightning_modules.maskalign.masked_autoencoder import MaskedAutoencoder
from lightning_modules.maskalign.module import MaskAlign
from lightning_modules.metrics.compute import count_training_macs
from lightning_modules.tasks.classification import FineTune
from stages.composing import compose

FACTS = Path(__file__).parents[2] / "lightning_modules/maskalign/facts.yaml"
ORACLES = yaml.safe_load(FACTS.read_text())["oracles"]
PARAMS = {oracle["name"]: oracle["params"] for oracle in ORACLES if "params" in oracle}
GMACS = {oracle["name"]: oracle["gmacs"] for oracle in ORACLES if "gmacs" in oracle}
BASE = dict(image_size=224, patch_size=16, dim=768, depth=12, num_heads=12)
LARGE = dict(image_size=224, patch_size=16, dim=1024, depth=24, num_heads=16)
CLIP_B = dict(hub="openai/clip-vit-base-patch16", image_size=224)
CLIP_L = dict(hub="openai/clip-vit-large-patch14", image_size=196)
DINO_B = dict(hub="facebook/dino-vitb16", image_size=224)
PIXELS = dict(pixel_scale=255.0, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
POOLER = 768 * 768 + 768
NORM_B, NORM_L = 2 * 768, 2 * 1024


def size(module: nn.Module, buffers: bool = True) -> int:
    """All values; the fixed positions, a buffer here, are a parameter in the official code."""
    positions = [x for name, x in module.named_buffers() if buffers and name.endswith("pos_embed")]
    return sum(x.numel() for x in [*module.parameters(), *positions])


@pytest.fixture(autouse=True)
def meta():
    with torch.device("meta"):
        yield


def maskalign(student, teacher, **options) -> MaskAlign:
    """With all adapters, as the official code builds them, unless `options` say otherwise."""
    return MaskAlign(student=student, teacher=teacher, preprocess=PIXELS, **{"layer_weights": "mean", **options})


def mae(encoder) -> MaskedAutoencoder:
    return MaskedAutoencoder(encoder=encoder, preprocess=PIXELS, decoder_dim=512, decoder_depth=8, decoder_heads=16)


CASES = [
    ("B", BASE, CLIP_B, "linear", NORM_B, "B", "CLIP-B"),
    ("L-from-B", LARGE, CLIP_B, "sum", NORM_L, "L", "CLIP-B"),
    ("L", LARGE, CLIP_L, "linear", NORM_L, "L", "CLIP-L"),
]


@pytest.mark.parametrize(("name", "student", "teacher", "fusion", "norm", "vit", "encoder"), CASES)
def test_parameters_are_those_of_the_official_module(name, student, teacher, fusion, norm, vit, encoder):
    module = maskalign(student, teacher, fusion=fusion)
    assert size(module.student) + norm == PARAMS[f"student-{vit}"]  # our student has no last norm: it is never trained
    assert size(module.teacher.network) == PARAMS[f"teacher-{encoder}"]
    assert size(module.alignment.adapters) == PARAMS[f"adapters-{name}"]
    assert module.alignment.weights.numel() == PARAMS[f"mixing-{name}"]
    assert size(module) + size(module.teacher.network) + norm == PARAMS[f"total-{name}"]


def test_parameters_with_the_dino_teacher():
    module = maskalign(BASE, DINO_B)
    assert size(module.teacher.network) + POOLER == PARAMS["teacher-DINO-B"]
    assert size(module) + size(module.teacher.network) + NORM_B + POOLER == PARAMS["total-B-DINO"]


def test_what_is_trained_is_what_gets_a_gradient():
    assert size(maskalign(BASE, CLIP_B), buffers=False) + NORM_B == PARAMS["trainable-B"]
    trained = size(maskalign(BASE, CLIP_B, layer_weights="top5"), buffers=False)
    without_gradient = NORM_B + 7 * (768 * 768 + 768)  # 4,135,680 in the official module
    assert without_gradient == 4_135_680
    assert trained == PARAMS["trainable-B"] - without_gradient - 7 * 12


def test_mae_and_fine_tuning_have_the_official_sizes():
    assert size(mae(BASE)) == PARAMS["mae-B"]
    assert size(mae(BASE).decoder) == PARAMS["mae-B-decoder"]
    assert size(mae(LARGE)) == PARAMS["mae-L"]
    assert size(mae(LARGE).decoder) == PARAMS["mae-L-decoder"]
    assert size(FineTune(encoder=BASE, num_classes=1000, preprocess=PIXELS)) == PARAMS["finetune-B"]


def forward_gmacs(function, *inputs) -> float:
    """Forward only: what the step costs without gradients."""
    module = nn.Module()
    zero = torch.zeros((), requires_grad=True)

    def step(batch):
        with torch.no_grad():
            function(*batch.values())
        return zero * 1

    module.training_step = step
    return count_training_macs(module, {str(i): x for i, x in enumerate(inputs)}) / 1e9


@pytest.mark.parametrize(("name", "student", "teacher", "fusion", "norm", "vit", "encoder"), CASES[:2])
def test_forward_costs(name, student, teacher, fusion, norm, vit, encoder):
    module = maskalign(student, teacher, fusion=fusion)
    images, keep = torch.empty(1, 3, 224, 224), torch.empty(1, 58, dtype=torch.int64)
    assert forward_gmacs(module.student.layers, images, keep) == pytest.approx(GMACS[f"forward-{vit}-59"], abs=1e-6)
    assert forward_gmacs(module.teacher.network, images) == pytest.approx(GMACS["forward-B-197"], abs=1e-6)
    layers = torch.empty(student["depth"], 1, 59, student["dim"])
    adapt = lambda x: module.alignment(list(x))  # noqa: E731
    assert forward_gmacs(adapt, layers) == pytest.approx(GMACS[f"alignment-{name}"], abs=1e-5)


def test_forward_cost_of_the_large_vit():
    vit = VisionTransformer(**LARGE)
    assert forward_gmacs(vit.layers, torch.empty(1, 3, 224, 224)) == pytest.approx(GMACS["forward-L-197"], abs=5e-3)


@pytest.mark.parametrize(("vit", "encoder"), [("B", BASE), ("L", LARGE)])
@pytest.mark.slow
def test_costs_of_mae(vit, encoder):
    module, images = mae(encoder), torch.empty(1, 3, 224, 224)
    keep = torch.empty(1, 49, dtype=torch.int64)
    assert forward_gmacs(module.encoder, images, keep) == pytest.approx(GMACS[f"mae-{vit}-encoder"], abs=1e-6)
    step = lambda x: module.training_step({"images": x})  # noqa: E731
    assert forward_gmacs(step, images) == pytest.approx(GMACS[f"mae-{vit}-forward"], abs=1e-6)
    assert count_training_macs(module, {"images": images}) / 1e9 == pytest.approx(GMACS[f"step-mae-{vit}"], abs=5e-4)


@pytest.mark.parametrize(("name", "student", "teacher", "fusion", "norm", "vit", "encoder"), CASES[:2])
def test_cost_of_a_step(name, student, teacher, fusion, norm, vit, encoder):
    """Ours is the official step, without the adapters and mixtures that its loss ignores, with one row of attention."""
    module = maskalign(student, teacher, fusion=fusion, layer_weights="top5")
    ours = count_training_macs(module, {"images": torch.empty(1, 3, 224, 224)})
    tokens, dim, depth, ignored = 59, student["dim"], student["depth"], 12 - 5
    adapters = ignored * tokens * dim * 768  # forward only: the loss sends them no gradient
    mixtures = ignored * tokens * dim * depth * 3  # forward, and both gradients, which are zero
    attention = 768 * 768 * (197 + 1) + 768 * 197  # keys of all tokens, the query of CLS, their products
    official = ours - attention + adapters + mixtures
    assert official / 1e9 == pytest.approx(GMACS[f"step-{name}"], abs=5e-4)
    assert ours < official


@pytest.mark.parametrize("oracle", [o for o in ORACLES if o["name"] == "learning-rate"], ids=lambda o: o["epoch"])
def test_learning_rate_follows_the_official_schedule(oracle):
    recipe = compose("paper", system="maskalign")["system"]["pretrain"]
    factor = learning_rate_schedule(recipe, total_steps=recipe["epochs"] * 100)(oracle["epoch"] * 100)
    assert recipe["lr"] * factor == pytest.approx(oracle["learning_rate"], rel=1e-6, abs=1e-12)


def test_layer_decay_follows_the_official_groups():
    recipe = compose("paper", system="maskalign")["system"]["downstream"]["finetune"]
    module = FineTune(encoder=BASE, num_classes=1000, preprocess=PIXELS, layer_decay=recipe["model"]["layer_decay"])
    module.recipe = {"lr": 1.0}
    groups = module.parameter_groups()
    assert len(groups) == 28
    scale = {id(p): group["lr"] for group in groups for p in group["params"]}
    decay = {id(p): group.get("weight_decay") for group in groups for p in group["params"]}
    names = dict(module.named_parameters())
    assert len(scale) == len(names)
    for name, expected in {
        "head.weight": 1.0,
        "norm.bias": 1.0,
        "encoder.blocks.11.mlp.fc1.weight": 0.55,
        "encoder.blocks.0.norm1.weight": 0.55**12,
        "encoder.patch_embed.proj.weight": 0.55**13,
        "encoder.cls_token": 0.55**13,
    }.items():
        assert scale[id(names[name])] == pytest.approx(expected, rel=1e-12), name
    for name, x in names.items():
        undecayed = x.ndim == 1 or name in ("encoder.cls_token", "encoder.pos_embed")
        assert decay[id(x)] == (0.0 if undecayed else None), name


def test_mixing_matrix_and_vectors_are_not_decayed_in_pretraining():
    module = maskalign(BASE, CLIP_B, layer_weights="top5")
    decayed, others = module.parameter_groups()
    assert id(module.alignment.weights) in set(map(id, others["params"])) and others["weight_decay"] == 0
    assert id(module.alignment.adapters[0].weight) in set(map(id, decayed["params"]))
    assert "weight_decay" not in decayed
