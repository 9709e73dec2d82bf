"""MAGVIT-v2: the entropy term of 2^18 codes in closed form against the softmax over all of them; a training step.

Both terms give the same number and gradient. The softmax has a row for each latent and a column for each code, as in
the open re-implementations.

A step is encoder, quantiser, decoder and their gradients, without discriminator and perceptual loss. SEED_VOKEN names a
clone of github.com/TencentARC/SEED-Voken; without it, its row is left out. It has the same weights as ours, and both
must give the same loss before anything is timed.
"""

import importlib
import os
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import _measuring as measuring
from lightning_modules.magvit2.weights import load_seed_voken
from lightning_modules.metrics.memory import peak_bytes
from lightning_modules.video_tokens.causal_tokenizer import CausalTokenizer
from lightning_modules.video_tokens.lookup_free import LookupFree

LATENTS = {"a quarter of an image (64)": 64, "an image (256)": 256, "a clip (1,280)": 1280}
SOFTMAX_UP_TO = 256  # more does not fit a small machine's memory
BITS = 18
TEMPERATURE = 0.1
FRAMES, SIZE = 9, 32  # of the clip of a training step
NETWORK = {"width": 32, "multipliers": (1, 2, 2, 4), "blocks": 1}  # SEED-Voken's is 128 wide and has 4 blocks
REPEATS = 3


def main() -> list[dict]:
    """Rows of each number of latents, and of a training step: CPU time of one thread, peak memory; with gradients."""
    torch.set_num_threads(1)
    return [*(row for what, count in LATENTS.items() for row in _rows(what, count)), *_step_rows()]


def by_softmax(z: Tensor) -> Tensor:
    """The term with a softmax over all codes."""
    places = torch.arange(z.shape[1])
    codes = ((torch.arange(2 ** z.shape[1]).unsqueeze(1) >> places) & 1).float() * 2 - 1
    logits = 2 / TEMPERATURE * z @ codes.T
    log_chances = logits.log_softmax(1)
    chances = log_chances.exp()
    mean = chances.mean(0)
    return -(chances * log_chances).sum(1).mean() + (mean * mean.clamp_min(1e-30).log()).sum()


def in_closed_form(z: Tensor) -> Tensor:
    """The term as it is here."""
    return LookupFree(2 ** z.shape[1], z.shape[1], temperature=TEMPERATURE).entropy_term(z)


def _rows(what: str, count: int) -> list[dict]:
    z = 0.1 * torch.randn(count, BITS, generator=torch.Generator().manual_seed(0))
    ways = {"in closed form": in_closed_form}
    if count <= SOFTMAX_UP_TO:
        ways["softmax over 2^18 codes"] = by_softmax
    found = {name: _measured(way, z) for name, way in ways.items()}
    first = found["in closed form"]
    return [
        {
            "what": f"{what}: {name}",
            "term": value,
            "ms of CPU": 1000 * seconds,
            "peak, MiB": peak / 2**20,
            "times closed form": seconds / first[1],
        }
        for name, (value, seconds, peak) in found.items()
    ]


def _step_rows() -> list[dict]:
    """A step with the paper's norms, and with SEED-Voken's beside its own code."""
    torch.manual_seed(0)
    video = 2 * torch.rand(1, 3, FRAMES, SIZE, SIZE) - 1
    pooled, theirs = _pair(video)
    ways = {"norms of single frames": _step(_ours(), video), "norms over all frames": _step(pooled, video)}
    if theirs is not None:
        ways["SEED-Voken"] = _step(theirs, video)
    seconds = measuring.in_turns(ways, REPEATS, warm=1)
    return [
        {
            "what": f"a step with a clip of {FRAMES} frames of {SIZE} pixels, 2^{BITS} codes: {name}",
            "ms of CPU": 1000 * value,
            "times norms over all frames": value / seconds["norms over all frames"],
            "peak, MiB": peak_bytes(ways[name]) / 2**20,
            "target": "1.5" if name == "SEED-Voken" else None,
        }
        for name, value in seconds.items()
    ]


def _ours(**options: bool) -> CausalTokenizer:
    quantiser = {"commitment": 0.25, "entropy": 0.1, "eps": 1e-5}
    return CausalTokenizer(frames=FRAMES, size=SIZE, quantiser=quantiser, **NETWORK, **options)


def _pair(video: Tensor) -> tuple[CausalTokenizer, nn.Module | None]:
    """Ours with SEED-Voken's norms and, if it is there, its own network with the same weights."""
    ours = _ours(pooled_norm=True, drop_second=True)
    folder = os.environ.get("SEED_VOKEN")
    if not folder:
        return ours, None
    theirs = _SeedVoken(folder)
    load_seed_voken(ours, theirs.state_dict(), averages=False)
    with torch.no_grad():
        torch.testing.assert_close(theirs.loss(video), _loss(ours, video), atol=0, rtol=1e-3)  # a softmax of float32
    return ours, theirs


class _SeedVoken(nn.Module):
    """Its encoder, quantiser and decoder."""

    def __init__(self, folder: str):
        super().__init__()
        sys.path.insert(0, folder)
        video, quantiser = (
            importlib.import_module(f"src.Open_MAGVIT2.modules.{name}")
            for name in ("diffusionmodules.improved_video_model", "vqvae.lookup_free_quantize")
        )
        sys.path.remove(folder)
        options = {
            "ch": NETWORK["width"], "ch_mult": NETWORK["multipliers"], "num_res_blocks": NETWORK["blocks"],
            "in_channels": 3, "out_ch": 3, "z_channels": BITS, "resolution": SIZE,
        }  # fmt: skip
        self.encoder, self.decoder = video.Encoder(**options), video.Decoder(**options)
        self.quantiser = quantiser.LFQ(dim=BITS, codebook_size=2**BITS)

    def loss(self, video: Tensor) -> Tensor:
        (latents, entropy, _), parts = self.quantiser(self.encoder(video), return_loss_breakdown=True)
        return F.mse_loss(self.decoder(latents), video) + 0.1 * entropy + 0.25 * parts.commitment


def _loss(tokenizer: CausalTokenizer, video: Tensor) -> Tensor:
    quantised = tokenizer.quantiser(tokenizer.encoder(video))
    return F.mse_loss(tokenizer.decoder(quantised.latents), video) + sum(quantised.terms.values())


def _step(network: nn.Module, video: Tensor) -> Callable[[], None]:
    def step() -> None:
        network.zero_grad()
        with torch.enable_grad():  # memory is counted without
            (network.loss(video) if isinstance(network, _SeedVoken) else _loss(network, video)).backward()

    return step


def _measured(way: Callable[[Tensor], Tensor], z: Tensor) -> tuple[float, float, int]:
    """The term, CPU seconds of it and its gradient, and the bytes that both take on the way."""

    def call() -> Tensor:
        with torch.enable_grad():  # memory is counted without
            term = way(z.clone().requires_grad_())
            term.backward()
        return term

    return call().item(), measuring.seconds(call, 1), peak_bytes(call)
