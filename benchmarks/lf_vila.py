"""LF-VILA: windows over time that grow with depth against windows over all frames, for videos of 32 to 256 frames.

Both have the levels of the paper with one block each, at an eighth of its widths and a quarter of its height and width.
"""

import time
from functools import partial
from statistics import median

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_modules.lf_vila.network import VideoSwin, attention_elements
from lightning_modules.metrics.memory import peak_bytes

LENGTHS = (32, 64, 128, 256)
SIZE = (48, 80)
LEVELS = ((1, 2, True), (1, 4, True), (2, 8, False), (2, 16, False), (2, 16, True), (4, 32, False))
REPEATS = 3


def main() -> list[dict]:
    """A row for each length; CPU time of one thread, and the most bytes of all tensors while the scores are held."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    growing = _encoder()
    return [_row(growing, _encoder(frames), frames) for frames in LENGTHS]


def _encoder(frames: int | None = None) -> VideoSwin:
    levels = [
        {"depth": 1, "heads": heads, "window": [frames or window, 3, 5], "merge": merge}
        for heads, window, merge in LEVELS
    ]
    return VideoSwin(patch=[1, 8, 8], width=16, levels=levels, local_window=frames or 8, drop_path=0.0).eval()


@torch.inference_mode()
def _row(growing: VideoSwin, full: VideoSwin, frames: int) -> dict:
    video = torch.rand(1, 3, frames, *SIZE)
    seconds = {encoder: [] for encoder in (growing, full)}
    for _ in range(REPEATS):
        for encoder, times in seconds.items():
            start = time.process_time()
            encoder(video)
            times.append(time.process_time() - start)
    ours, theirs = (median(times) for times in seconds.values())
    with sdpa_kernel(SDPBackend.MATH):
        small, large = (peak_bytes(partial(encoder, video)) for encoder in (growing, full))
    few, many = (max(attention_elements(encoder, frames, *SIZE)) for encoder in (growing, full))
    return {
        "what": f"{frames} frames of {SIZE[0]} x {SIZE[1]}",
        "growing windows, ms of CPU": 1000 * ours,
        "all frames, times the time": theirs / ours,
        "growing windows, MB": small / 1e6,
        "all frames, times the memory": large / small,
        "all frames, times the scores": many / few,
    }
