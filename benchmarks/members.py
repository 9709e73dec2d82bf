"""Members trained together against one alone: the target is at most twice the time of one for eight small members."""

import time

import torch

from lightning_modules.datamodules.labelled import MemberBatches
from lightning_modules.ensembling.members import Members

PAPERS = ("committees", "small_ensembles")

STEPS, REPEATS, WARM_UP = 40, 5, 10
TOGETHER = 8

POOLS = {
    "mlp-h16": {"family": "mlp", "widths": [16], "depth": 2, "image_shape": [1, 8, 8], "resolutions": [8]},
    "convnet-w8": {"family": "convnet", "widths": [8], "depth": None, "image_shape": [1, 28, 28], "resolutions": [28]},
}
SHARED = {"names": [], "num_classes": 10, "pixel_scale": 255, "pixel_mean": [0.1307], "pixel_std": [0.3081]}
RECIPE = {"optimizer": "adamw", "lr": 4e-3, "weight_decay": 0.01}


def main() -> list[dict]:
    rows = []
    for name, pool in POOLS.items():
        alone, together = (milliseconds_per_step(pool, copies) for copies in (1, TOGETHER))
        rows.append(
            {
                "members": name,
                "one_ms_per_step": round(alone, 3),
                f"{TOGETHER}_together_ms_per_step": round(together, 3),
                "ratio": round(together / alone, 2),
            }
        )
    return rows


def milliseconds_per_step(pool: dict, copies: int) -> float:
    """CPU time of one training step: batch, forward, backward, optimiser; best of several runs."""
    module = Members(**pool, **SHARED, copies=copies)
    module.recipe = RECIPE
    optimizer = module._optimizer()
    images = torch.randint(0, 256, (900, *pool["image_shape"]), dtype=torch.uint8)
    batches = MemberBatches(images, torch.randint(0, 10, (900,)), seed=0, copies=copies, batch_size=32)
    _train(module, optimizer, batches, WARM_UP)
    return min(_train(module, optimizer, batches, STEPS) for _ in range(REPEATS))


def _train(module: Members, optimizer: torch.optim.Optimizer, batches: MemberBatches, steps: int) -> float:
    start = time.process_time()
    for step in range(steps):
        batch = batches[0, step % len(batches)]
        optimizer.zero_grad()
        module.training_step(batch).backward()
        optimizer.step()
    return 1000 * (time.process_time() - start) / steps
