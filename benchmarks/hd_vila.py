"""HD-VILA: the hybrid against reading every frame at high resolution - multiply-adds, time, and memory of a clip."""

from collections.abc import Callable
from time import process_time

import torch
from torch import Tensor, nn

from lightning_modules.hd_vila.network import SMALLER, ResNet
from lightning_modules.metrics.compute import count_macs
from lightning_modules.metrics.memory import peak_bytes

FRAMES = 7
SIZES = {"the paper's size, 640 x 1024": (640, 1024), "the size of retrieval, 320 x 512": (320, 512)}
TIMED = (320, 512)  # on a CPU; the ratio of multiply-adds is that of any size
REPEATS = 3


def main() -> list[dict]:
    """Multiply-adds at each size; CPU time of one thread and memory at the smaller one."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    high, low = ResNet().eval(), ResNet(layers=(3, 4, 6)).eval()
    rows = []
    for name, (height, width) in SIZES.items():
        one = count_macs(high, (3, height, width))
        small = count_macs(low, (3, height // SMALLER, width // SMALLER))
        hybrid, every = one + (FRAMES - 1) * small, FRAMES * one
        row = {"what": f"both ResNet-50s, {FRAMES} frames, {name}", "hybrid, GMACs": hybrid / 1e9}
        rows.append(row | {"all frames high, GMACs": every / 1e9, "times less": every / hybrid})
    return [*rows, *_measured(high, low)]


@torch.inference_mode()
def _measured(high: nn.Module, low: nn.Module) -> list[dict]:
    height, width = TIMED

    def hybrid() -> list[Tensor]:
        middle = torch.rand(1, 3, height, width)
        others = torch.rand(FRAMES - 1, 3, height // SMALLER, width // SMALLER)
        return [high(middle)[-1], low(others)[-1]]

    def every() -> list[Tensor]:
        return [high(torch.rand(FRAMES, 3, height, width))[-1]]

    seconds = {read: _seconds(read) for read in (hybrid, every)}
    megabytes = {read: peak_bytes(read) / 1e6 for read in (hybrid, every)}
    rows = []
    for what, measured in (("seconds of CPU", seconds), ("peak memory, MB", megabytes)):
        row = {"what": f"the same at {height} x {width}: {what}", "hybrid": measured[hybrid]}
        rows.append(row | {"all frames high": measured[every], "times less": measured[every] / measured[hybrid]})
    return rows


def _seconds(read: Callable[[], list[Tensor]]) -> float:
    """The least of some runs after a first one."""
    read()
    found = []
    for _ in range(REPEATS):
        start = process_time()
        read()
        found.append(process_time() - start)
    return min(found)
