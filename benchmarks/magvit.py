"""MAGVIT: a clip in 12 steps against one token after another, with the same network.

The autoregressive way keeps the keys and values of what it has read; without them it would be many times slower.
"""

import torch

from benchmarks import _measuring as measuring
from lightning_modules.magvit.module import Magvit
from lightning_modules.metrics.memory import peak_bytes

GRIDS = {"4 x 8 x 8": (16, 32), "4 x 16 x 16": (16, 64)}  # tokens -> frames and size of a clip
NETWORK = {"layers": 4, "hidden_size": 192, "mlp_dim": 768, "heads": 3}
TOKENIZER = {"width": 8, "multipliers": (1, 1, 1), "halve_time": (True, True), "norm_groups": 8}
REPEATS = 3


def main() -> list[dict]:
    """Rows of each size; CPU time of one thread and peak memory for one clip, the tokenizer left out."""
    torch.set_num_threads(1)
    return [row for grid, (frames, size) in GRIDS.items() for row in _rows(grid, frames, size)]


def _rows(grid: str, frames: int, size: int) -> list[dict]:
    ways = {}
    for way, conditioning in (("12 steps", "commit"), ("one after another", "autoregressive")):
        torch.manual_seed(0)
        built = Magvit(
            tokenizer={**TOKENIZER, "frames": frames, "size": size}, network=NETWORK, num_classes=10, tasks=["cg"],
            judged_tasks=["cg"], conditioning=conditioning,
        ).eval()  # fmt: skip
        video, label = torch.zeros(1, 3, frames, size, size), torch.zeros(1, dtype=torch.long)
        ways[way] = (built, lambda built=built, video=video, label=label: built.generate(video, label, "cg"))
    seconds = {way: measuring.seconds(call, REPEATS, warm=1) for way, (_, call) in ways.items()}
    return [
        {
            "what": f"{grid} tokens: {way}",
            "passes": built.facts()["passes"],
            "ms of CPU": 1000 * seconds[way],
            "times 12 steps": seconds[way] / seconds["12 steps"],
            "peak, MiB": peak_bytes(call) / 2**20,
        }
        for way, (built, call) in ways.items()
    ]
