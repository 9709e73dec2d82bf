"""MaskAlign: its training step against its baselines', its teacher against asking every layer for attention."""

import time
from collections.abc import Callable, Iterable
from statistics import median

import torch
from hydra.utils import instantiate
from transformers import CLIPVisionConfig, CLIPVisionModel

from lightning_modules.layers import hub_vit
from lightning_modules.layers.published import load_strictly
from lightning_modules.layers.teacher import Teacher
from lightning_modules.layers.vision import VisionTransformer
from lightning_modules.maskalign.module import MaskAlign
from stages.composing import compose

SIZES = {  # name: ViT, channels, batch size, targets, repeats
    "ViT-B/16 at 224": (dict(image_size=224, patch_size=16, dim=768, depth=12, num_heads=12), 3, 8, 5, 5),
    "tiny (world)": (dict(image_size=32, patch_size=8, dim=64, depth=4, num_heads=4), 3, 64, 2, 40),
}
SYSTEMS = {
    "MaskAlign": ("maskalign", {}),
    "MAE": ("masked_autoencoder", {}),
    "reconstruction of features": ("masked_autoencoder", {"model.target": "features", "model.mask_ratio": 0.6}),
}
REPEATS, BATCH_SIZE = 40, 64
TARGET = "faster, and no attention map kept: the straightforward way cannot use a fused kernel"


def main() -> list[dict]:
    return [*_teacher_rows(), *_step_rows()]


def _step_rows() -> list[dict]:
    """Images per second and MACs of a tiny training step, also in units of MaskAlign's; measured in turns."""
    modules = {name: _module(*system).train() for name, system in SYSTEMS.items()}
    images = torch.randint(0, 256, (BATCH_SIZE, 3, 32, 32), dtype=torch.uint8)
    steps = [lambda x, m=module: m.training_step({"images": x}).backward() for module in modules.values()]
    seconds = dict(zip(modules, _interleaved(steps, images, REPEATS), strict=True))
    macs = {name: module.facts()["pretrain_macs_per_image"] for name, module in modules.items()}
    return [
        {
            "what": f"tiny (world): a training step of {name}, batch {BATCH_SIZE}",
            "images per CPU second": BATCH_SIZE / seconds[name],
            "seconds, MaskAlign = 1": seconds[name] / seconds["MaskAlign"],
            "MACs, MaskAlign = 1": macs[name] / macs["MaskAlign"],
        }
        for name in modules
    ]


def _module(system: str, overrides: dict) -> torch.nn.Module:
    return instantiate(compose("tiny", system=system, overrides=overrides)["system"]["model"], _convert_="all")


def _teacher_rows() -> list[dict]:
    rows = []
    for name, (vit, channels, batch_size, targets, repeats) in SIZES.items():
        torch.manual_seed(0)
        images = torch.randn(batch_size, channels, vit["image_size"], vit["image_size"])
        all_layers, last_layer = _teachers(vit, channels, targets)
        step = _step(vit, channels, targets)
        _check_equal(all_layers(images), last_layer(images))
        slow, fast, whole = _interleaved([all_layers, last_layer, step], images, repeats)
        rows.append(
            {
                "what": f"{name}, batch {batch_size}",
                "every layer's attention, ms": 1000 * slow,
                "last layer's CLS row, ms": 1000 * fast,
                "times faster": slow / fast,
                "whole training step, ms": 1000 * whole,
                "step times faster": (whole + slow - fast) / whole,
                "maps kept, MB": _megabytes(all_layers(images)[2]),
                "row kept, MB": _megabytes([last_layer(images).importance]),
                "target": TARGET,
            }
        )
    return rows


def _teachers(vit: dict, channels: int, targets: int) -> tuple[Callable, Callable]:
    """`transformers` with all attentions, as the official code asks for, and ours with the same weights."""
    theirs = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=vit["dim"],
            intermediate_size=4 * vit["dim"],
            num_hidden_layers=vit["depth"],
            num_attention_heads=vit["num_heads"],
            image_size=vit["image_size"],
            patch_size=vit["patch_size"],
            num_channels=channels,
            attn_implementation="eager",
        )
    ).eval()
    network = VisionTransformer(**vit, channels=channels, **hub_vit.FAMILIES["clip"].architecture)
    load_strictly(network, hub_vit.from_hub(theirs.state_dict(), "clip"), "transformers")
    plain = [0.0] * channels, [1.0] * channels
    ours = Teacher(network, plain, plain)
    layers = range(vit["depth"] - targets, vit["depth"])

    @torch.no_grad()
    def all_layers(images: torch.Tensor) -> tuple:
        outputs = theirs(pixel_values=images, output_hidden_states=True, output_attentions=True)
        return outputs.hidden_states[-targets:], outputs.attentions[-1][:, :, 0, 1:].mean(1), outputs.attentions

    return all_layers, lambda images: ours(images, layers, attention=True)


def _step(vit: dict, channels: int, targets: int) -> Callable[[torch.Tensor], None]:
    module = MaskAlign(
        student={**vit, "channels": channels},
        teacher={"hub": None, **vit, "channels": channels},
        preprocess={"pixel_scale": 1.0, "mean": [0.0] * channels, "std": [1.0] * channels},
        layer_weights=f"top{targets}",
    )
    return lambda images: module.training_step({"images": images}).backward()


def _megabytes(tensors: Iterable[torch.Tensor]) -> float:
    return sum(x.nbytes for x in tensors) / 1e6


def _check_equal(one: tuple, other: tuple) -> None:
    for theirs, ours in zip(one[0], other[0], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(other[1], one[1], atol=1e-5, rtol=1e-4)


def _interleaved(functions: list[Callable], images: torch.Tensor, repeats: int) -> list[float]:
    """Median seconds of CPU of each, called in turns so that a busy machine is busy for all."""
    times = [[] for _ in functions]
    for round_number in range(repeats + 1):
        for function, own in zip(functions, times, strict=True):
            start = time.process_time()
            function(images)
            if round_number:
                own.append(time.process_time() - start)
    return [median(own) for own in times]
