"""ViT-BERT: a step with masked gradients against a step of summed losses, and against two backward passes.

- summed: both losses go backward once, nothing is masked.
- masked, ranking: the first half of a training, where gradients of one modality are gathered for the running means.
- masked: the second half, where the mask stays as it is.
- two passes: what masking is in words. Each loss goes backward by itself, the first gradient is kept and both are put
  together by the mask; running means as above.
- projected: PCGrad.

Encoder of 6 layers of width 192. CPU time of one thread; memory is the peak within a step, above what is there before.
"""

from functools import partial

import torch
from torch import Tensor

from benchmarks._measuring import measured
from lightning_modules.vit_bert.module import VitBert

ENCODER = {"dim": 192, "hidden": 768, "layers": 6, "heads": 3, "norm": "pre", "norm_eps": 1e-6, "dropout": 0.0}
ROWS, SIDE, LENGTH, WORDS = 8, 112, 64, 1000
REPEATS = 5


def main() -> list[dict]:
    """A row for each way."""
    torch.set_num_threads(1)
    batch = _batch()
    ways = {
        "summed": partial(_step, _module("sum"), batch),
        "masked, ranking": partial(_step, _module("mask"), batch),
        "masked": partial(_step, _module("mask", done=True), batch),
        "two passes": partial(_two_passes, _module("mask"), batch),
        "projected": partial(_step, _module("pcgrad"), batch),
    }
    rows = [measured(f"step of {ROWS} pictures and {ROWS} texts: {name}", way, REPEATS) for name, way in ways.items()]
    first = rows[0]
    return [row | {"times the time": row["ms of CPU"] / first["ms of CPU"],
                   "times the memory": row["peak, MiB"] / first["peak, MiB"]} for row in rows]  # fmt: skip


@torch.enable_grad()
def _step(module: VitBert, batch: dict[str, dict[str, Tensor]]) -> None:
    encoder = module.network.encoders["shared"]
    module.zero_grad(set_to_none=True)
    module.masks.begin(encoder, watched=False)
    module.training_step(batch).backward()
    module.masks.before_step(encoder, 1, 1_000_000)


@torch.enable_grad()
def _two_passes(module: VitBert, batch: dict[str, dict[str, Tensor]]) -> None:
    masks, encoder = module.masks, module.network.encoders["shared"]
    weights = dict(encoder.named_parameters())
    module.zero_grad(set_to_none=True)
    found = []
    for part in batch.values():
        sum(module.terms(part).values()).backward()
        found.append({name: weights[name].grad for name in masks.names})
        for name in masks.names:
            weights[name].grad = None
    image, text = found
    masks.running.lerp_(torch.cat([text[name].flatten() for name in masks.masked]).abs(), 0.1)
    for name in masks.names:
        if name in masks.masked:
            weights[name].grad = torch.where(masks.part(masks.mask, name), text[name], image[name])
        else:
            weights[name].grad = image[name] + text[name]


def _module(gradients: str, done: bool = False) -> VitBert:
    torch.manual_seed(0)
    module = VitBert(
        encoder=ENCODER,
        images={"image_size": SIDE, "patch_size": 16, "classes": 100},
        texts={"words": WORDS, "positions": LENGTH, "pairs": True},
        preprocess={"pixel_scale": 255.0, "mean": [0.5] * 3, "std": [0.5] * 3},
        modality_embedding=False, deviation=0.02, shared=True, losses={"images": 1.0, "words": 1.0, "pairs": 1.0},
        gradients=gradients,
        masking={"score": "magnitude", "first": "text", "kept": 0.5, "prunings": 10, "until": 0.5, "momentum": 0.9,
                 "ranking": "global", "vectors": False},
        distillation={"image": 0.0, "text": 0.0, "temperature": 1.0, "teachers": {"image": None, "text": None}},
    )  # fmt: skip
    if done:
        module.masks.pruned.fill_(10)
    return module


def _batch() -> dict[str, dict[str, Tensor]]:
    """Pictures and texts that hold anything."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(5, WORDS, (ROWS, LENGTH), generator=draw)
    asked = torch.rand(ids.shape, generator=draw) < 0.15
    return {
        "images": {
            "images": torch.randint(0, 256, (ROWS, 3, SIDE, SIDE), dtype=torch.uint8, generator=draw),
            "labels": torch.randint(0, 100, (ROWS,), generator=draw),
        },
        "texts": {
            "token_ids": ids, "attention_mask": torch.ones_like(ids, dtype=torch.bool),
            "targets": torch.where(asked, ids, -100), "segments": torch.zeros_like(ids),
            "labels": torch.randint(0, 2, (ROWS,), generator=draw),
        },
    }  # fmt: skip
