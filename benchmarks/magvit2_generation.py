"""MAGVIT-v2's generators: a clip in 12 steps against one token after another, with the same network.

The autoregressive ways keep the keys and values of what they have read. Open-MAGVIT2's has another network, as wide and
as deep.
"""

from functools import partial

import torch

from benchmarks import _measuring as measuring
from lightning_modules.magvit2.module import Coded, Magvit2, OpenMagvit2
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.metrics.memory import peak_bytes

PAPERS = ("magvit2",)
GRIDS = {"3 x 8 x 8": (9, 32), "5 x 16 x 16": (17, 64)}  # tokens -> frames and size of a clip
TOKENIZER = {"width": 8, "multipliers": (1, 1, 1), "blocks": 1, "halve_time": (True, True), "norm_groups": 8}
MASKED = {"bits": (9, 9), "layers": 4, "hidden_size": 192, "mlp_dim": 768, "heads": 3}
LLAMA = {"bits": (6, 12), "layers": 4, "factorized_layers": 1, "hidden_size": 192, "heads": 3}
WAYS = {
    "12 steps": (Magvit2, MASKED, {}),
    "one after another": (Magvit2, MASKED, {"conditioning": "autoregressive"}),
    "Open-MAGVIT2": (OpenMagvit2, LLAMA, {}),
}
REPEATS = 2


def main() -> list[dict]:
    """Rows of each size; CPU time of one thread and peak memory for one clip, the tokenizer left out."""
    torch.set_num_threads(1)
    return [row for grid, (frames, size) in GRIDS.items() for row in _rows(grid, frames, size)]


def _rows(grid: str, frames: int, size: int) -> list[dict]:
    ways = {}
    for way, (form, network, options) in WAYS.items():
        torch.manual_seed(0)
        built = form(tokenizer={**TOKENIZER, "frames": frames, "size": size}, network=network, num_classes=10,
                     tasks=["cg"], judged_tasks=["cg"], **options).eval()  # fmt: skip
        ways[way] = (built, partial(_draw, built))
    seconds = {way: measuring.seconds(call, REPEATS, warm=1) for way, (_, call) in ways.items()}
    return [
        {
            "what": f"{grid} tokens: {way}",
            "parameters": count_parameters(built.network),
            "passes": built.facts()["passes"],
            "ms of CPU": 1000 * seconds[way],
            "times 12 steps": seconds[way] / seconds["12 steps"],
            "peak, MiB": peak_bytes(call) / 2**20,
        }
        for way, (built, call) in ways.items()
    ]


def _draw(built: Coded) -> torch.Tensor:
    frames, size = built.tokenizer.frames, built.tokenizer.size
    return built.generate(torch.zeros(1, 3, frames, size, size), torch.zeros(1, dtype=torch.long), "cg")
