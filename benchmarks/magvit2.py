"""MAGVIT-v2: the entropy term of 2^18 codes in closed form against the softmax over all of them.

Both give the same number and gradient. The softmax has a row for each latent and a column for each code, as in the open
re-implementations.
"""

import time

import torch
from torch import Tensor

from lightning_modules.magvit2.lookup_free import LookupFree

LATENTS = {"a quarter of an image (64)": 64, "an image (256)": 256, "a clip (1,280)": 1280}
SOFTMAX_UP_TO = 256  # more does not fit a small machine's memory
BITS = 18
TEMPERATURE = 0.1
FLOAT = 4  # bytes


def main() -> list[dict]:
    """Rows of each number of latents; CPU time of one thread, forwards and backwards."""
    torch.set_num_threads(1)
    return [row for what, count in LATENTS.items() for row in _rows(what, count)]


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
            "largest tensor, MiB": largest * FLOAT / 2**20,
            "times closed form": seconds / first[1],
        }
        for name, (value, seconds, largest) in found.items()
    ]


def _measured(way, z: Tensor) -> tuple[float, float, int]:
    """The term, CPU seconds of it and its gradient, and the numbers in the largest tensor on the way."""
    way(z.clone().requires_grad_()).backward()
    leaf, start = z.clone().requires_grad_(), time.process_time()
    term = way(leaf)
    term.backward()
    seconds = time.process_time() - start
    with _Largest() as largest:
        way(z)
    return term.item(), seconds, largest.numbers


class _Largest(torch.utils._python_dispatch.TorchDispatchMode):
    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for x in found if isinstance(found, tuple | list) else [found]:
            self.numbers = max(self.numbers, x.numel() if isinstance(x, Tensor) else 0)
        return found
