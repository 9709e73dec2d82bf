"""HD-VILA: the hybrid against reading every frame at high resolution, and a training step against the official form.

The official form is what the official code computes, written out: attention that holds all its scores, and batch norms
with maps of their own, whose fixed statistics ours puts into the weights of the convolutions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import process_time
from unittest import mock

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_modules.hd_vila import network
from lightning_modules.hd_vila.network import SMALLER, ResNet, TimeSformer
from lightning_modules.metrics.compute import count_macs
from lightning_modules.metrics.memory import peak_bytes

FRAMES = 7
SIZES = {"the paper's size, 640 x 1024": (640, 1024), "192 x 320": (192, 320)}
TIMED = (192, 320)  # on a CPU; the ratio of multiply-adds is that of any size
REPEATS = 2


def main() -> list[dict]:
    """Multiply-adds at each size; CPU time of one thread and memory at the smaller one."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    high, low = ResNet(), ResNet(layers=(3, 4, 6))
    rows = []
    for name, (height, width) in SIZES.items():
        one = count_macs(high, (3, height, width))
        small = count_macs(low, (3, height // SMALLER, width // SMALLER))
        hybrid, every = one + (FRAMES - 1) * small, FRAMES * one
        row = {"what": f"both ResNet-50s, {FRAMES} frames, {name}: GMACs", "hybrid": hybrid / 1e9}
        rows.append(row | {"all frames high": every / 1e9, "times less": every / hybrid})
    return [*rows, *_reading(high, low), *_training(high, low)]


@torch.inference_mode()
def _reading(high: nn.Module, low: nn.Module) -> list[dict]:
    height, width = TIMED

    def hybrid() -> list[Tensor]:
        middle, others = torch.rand(1, 3, height, width), torch.rand(FRAMES - 1, 3, height // SMALLER, width // SMALLER)
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


def _training(high: nn.Module, low: nn.Module) -> list[dict]:
    """The video encoder of stage one at its widths, one clip of smaller frames, forward and backward."""
    height, width = TIMED
    grid = height // 64, width // 64
    temporal = TimeSformer(1024, grid=grid, drop_path=0.0)
    parts = nn.ModuleList([high, low, temporal]).train()
    middle, others = torch.rand(1, 3, height, width), torch.rand(FRAMES - 1, 3, height // SMALLER, width // SMALLER)

    def step() -> None:
        parts.zero_grad()
        *_, third, fourth = high(middle)
        maps = torch.cat([third[:, :, ::SMALLER, ::SMALLER], low(others)[-1]])
        (fourth.mean() + temporal(rearrange(maps, "t d h w -> 1 t d h w")).mean()).backward()

    def official() -> None:
        with sdpa_kernel(SDPBackend.MATH), mock.patch.object(network, "convolved", _with_its_own_map):
            step()

    seconds, kept = {}, {}
    for way in (step, official):
        seconds[way] = _seconds(way)
        with _kept() as total:
            way()
        kept[way] = sum(total.values()) / 1e6
    rows = []
    for what, measured in (("seconds of CPU", seconds), ("kept for the backward pass, MB", kept)):
        name = f"training step of the video encoder, one clip of {height} x {width}: {what}"
        row = {"what": name, "ours": measured[step], "official form": measured[official]}
        rows.append(row | {"times less": measured[official] / measured[step]})
    return rows


def _with_its_own_map(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    return norm(conv(x))


@contextmanager
def _kept() -> Iterator[dict[int, int]]:
    """Bytes that autograd keeps, by storage."""
    found = {}

    def keep(x: Tensor) -> Tensor:
        found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        yield found


def _seconds(read: Callable[[], object]) -> float:
    """The least of some runs after a first one."""
    read()
    found = []
    for _ in range(REPEATS):
        start = process_time()
        read()
        found.append(process_time() - start)
    return min(found)
