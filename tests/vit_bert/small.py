"""A small network and batches of both modalities, for the tests of this paper."""

import torch

from lightning_modules.vit_bert.module import VitBert

ENCODER = {"dim": 8, "hidden": 16, "layers": 2, "heads": 2, "norm": "pre", "norm_eps": 1e-6, "dropout": 0.0}
IMAGES = {"image_size": 8, "patch_size": 4, "classes": 5}
TEXTS = {"words": 40, "positions": 12, "pairs": True}
PIXELS = {"pixel_scale": 255.0, "mean": [0.5] * 3, "std": [0.25] * 3}
MASKING = {"score": "magnitude", "first": "text", "kept": 0.5, "prunings": 5, "until": 0.5, "momentum": 0.9,
           "ranking": "global", "vectors": False}  # fmt: skip
UNTAUGHT = {"image": 0.0, "text": 0.0, "temperature": 2.0, "teachers": {"image": None, "text": None}}


def module(seed=0, **changes):
    torch.manual_seed(seed)
    options = {
        "encoder": ENCODER, "images": IMAGES, "texts": TEXTS, "preprocess": PIXELS, "modality_embedding": False,
        "deviation": 0.2, "shared": True, "losses": {"images": 1.0, "words": 1.0, "pairs": 1.0}, "gradients": "sum",
        "masking": MASKING, "distillation": UNTAUGHT,
    }  # fmt: skip
    return VitBert(**options | changes)


def batch(seed=0, rows=6):
    draw = torch.Generator().manual_seed(seed)
    token_ids = torch.randint(5, 40, (rows, 10), generator=draw)
    targets = torch.full_like(token_ids, -100)
    targets[:, 2:4] = torch.randint(5, 40, (rows, 2), generator=draw)
    there = torch.ones_like(token_ids, dtype=torch.bool)
    there[0, 7:] = False
    images = torch.randint(0, 256, (rows, 3, 8, 8), generator=draw).to(torch.uint8)
    return {
        "images": {"images": images, "labels": torch.randint(0, 5, (rows,), generator=draw)},
        "texts": {
            "token_ids": token_ids, "attention_mask": there, "targets": targets,
            "segments": (torch.arange(10) > 5).long().expand(rows, -1).contiguous(),
            "labels": torch.randint(0, 2, (rows,), generator=draw),
        },
    }  # fmt: skip
