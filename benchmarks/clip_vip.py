"""CLIP-ViP: a video through two fused kernels against a dense mask, CLIP on each frame, and joint attention."""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from lightning_modules.clip_vip.module import VideoClip
from lightning_modules.layers.clip import make_clip
from lightning_modules.metrics.compute import count_macs
from tests.clip_vip.reference import allowed, dense_features

BASE = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
TINY = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
SIZES = {  # name: vision tower, frames, batch size, repeats
    "ViT-B/32 at 224, 12 frames": ({**BASE, "image_size": 224, "patch_size": 32}, 12, 1, 5),
    "tiny (world), 3 frames": ({**TINY, "image_size": 24, "patch_size": 8}, 3, 48, 40),
}
TEXT = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, vocab_size=10)
PROXIES = 4


def main() -> list[dict]:
    return [row for name, size in SIZES.items() for row in _rows(name, *size)]


def _rows(name: str, vision: dict, frames: int, batch: int, repeats: int) -> list[dict]:
    """CPU seconds of a forward and backward pass and forward MACs, in units of ViP's; measured in turns."""
    networks = {}
    for attention in ("proxy", "mean", "joint"):
        torch.manual_seed(0)
        clip = make_clip(hub=None, vision=vision, text=TEXT, projection_dim=vision["hidden_size"])
        proxies = 1 if attention == "mean" else PROXIES
        networks[attention] = VideoClip(clip, attention=attention, num_proxies=proxies, frames=frames, temporal_std=1.0)
    video = torch.randn(batch, 3, frames, *(vision["image_size"],) * 2)
    mask = allowed(PROXIES, frames, (vision["image_size"] // vision["patch_size"]) ** 2)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "ViP, two fused kernels": networks["proxy"].encode_videos,
        "ViP, a dense mask": lambda x: dense_features(networks["proxy"], x, mask),
        "CLIP on each frame": networks["mean"].encode_videos,
        "joint attention": networks["joint"].encode_videos,
    }
    with torch.no_grad():
        fused, dense = (ways[way](video) for way in ("ViP, two fused kernels", "ViP, a dense mask"))
    torch.testing.assert_close(fused, dense, atol=1e-4, rtol=1e-4)
    macs = {"ViP, two fused kernels": "proxy", "CLIP on each frame": "mean", "joint attention": "joint"}
    counted = {way: count_macs(_Reader(networks[key]), video.shape[1:]) for way, key in macs.items()}
    seconds = dict(zip(ways, _interleaved(list(ways.values()), video, repeats), strict=True))
    unit = "ViP, two fused kernels"
    return [
        {
            "what": f"{name}, batch {batch}: {way}, forward and backward",
            "ms of CPU": 1000 * seconds[way],
            "time, ViP = 1": seconds[way] / seconds[unit],
            "forward MACs, ViP = 1": counted[way] / counted[unit] if way in counted else None,
        }
        for way in ways
    ]


class _Reader(torch.nn.Module):
    def __init__(self, network: VideoClip):
        super().__init__()
        self.network = network

    def forward(self, video: Tensor) -> Tensor:
        return self.network.encode_videos(video)


def _interleaved(functions: list[Callable], video: Tensor, repeats: int) -> list[float]:
    """Median seconds of CPU of each, called in turns so that a busy machine is busy for all."""
    times = [[] for _ in functions]
    for round_number in range(repeats + 1):
        for function, own in zip(functions, times, strict=True):
            start = time.process_time()
            function(video).square().sum().backward()
            if round_number:
                own.append(time.process_time() - start)
    return [median(own) for own in times]
