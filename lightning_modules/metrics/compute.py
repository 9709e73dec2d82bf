"""What a network costs: parameters, multiply-accumulates, seconds. The unit of cost everywhere is the MAC."""

import copy
import time
from collections.abc import Mapping, Sequence
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

FLOPS_PER_MAC = 2


def count_parameters(module: nn.Module) -> int:
    """Number of learned values."""
    return sum(p.numel() for p in module.parameters())


def count_macs(module: nn.Module, image_shape: Sequence[int]) -> int:
    """Multiply-accumulates for one image (channels, height, width); papers often call this number FLOPs.

    Convolutions, linear layers and attention products count; biases, norms, activations and pooling do not. Counted on
    the meta device with gradients on and without the fused attention path: on a CPU the counter misses attention.
    """
    twin = copy.deepcopy(module).to("meta").eval()
    image = torch.empty(1, *image_shape, device="meta")
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            twin(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return counter.get_total_flops() // FLOPS_PER_MAC


def count_training_macs(module: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """Multiply-accumulates of one training step on `batch`, forward and backward, frozen networks included.

    Counted as `count_macs` does. `module` has a `training_step(batch)` that returns the loss.
    """
    trainer = getattr(module, "_trainer", None)
    twin = copy.deepcopy(module, {id(trainer): None}).to("meta").train()  # not the trainer, which holds the data
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        twin.training_step({name: x.to("meta") for name, x in batch.items()}).backward()
    return counter.get_total_flops() // FLOPS_PER_MAC


@torch.inference_mode()
def latency(module: nn.Module, image: Tensor, batch_sizes: Sequence[int], repeats: int = 7) -> dict[int, float]:
    """Seconds per batch of copies of one `image` (channels height width): the median after a warm-up."""
    module.eval()
    return {size: median(_seconds(module, image.expand(size, *image.shape), repeats)) for size in batch_sizes}


def _seconds(module: nn.Module, images: Tensor, repeats: int, warm_up: int = 3) -> list[float]:
    times = []
    for _ in range(warm_up + repeats):
        _wait(images.device)
        start = time.perf_counter()
        module(images)
        _wait(images.device)
        times.append(time.perf_counter() - start)
    return times[warm_up:]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
