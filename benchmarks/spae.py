"""SPAE: the nearest of 32,000 words by chunks of words against the full matrix of distances.

Both give the same words. The matrix has a row for each place and a column for each word, as `torch.cdist` makes it and
as vector quantisers of open code compute it.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks import _measuring as measuring
from lightning_modules.metrics.memory import peak_bytes
from lightning_modules.spae.words import CHUNK, WordTable

WORDS, DIM = 32_000, 256
PLACES = {"the last layer of a picture (256 places)": 256, "that of four pictures (1,024 places)": 1024}
CHUNKS = (1024, CHUNK, 16_384)
REPEATS = 3


def main() -> list[dict]:
    """Rows of each number of places; CPU time of one thread, and the most bytes of all tensors on the way."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    table = WordTable(words=[str(number) for number in range(WORDS)], ids=range(WORDS), dim=DIM, source="random")
    return [row for what, places in PLACES.items() for row in _rows(what, table, torch.randn(places, DIM))]


def by_cdist(table: WordTable, latents: Tensor) -> Tensor:
    """All distances, with their roots."""
    return torch.cdist(latents, table.embeddings).argmin(1)


def by_matrix(table: WordTable, latents: Tensor) -> Tensor:
    """All squares of distances, as a codebook of VQGAN computes them."""
    words = table.embeddings
    squares = latents.square().sum(1, keepdim=True) + words.square().sum(1) - 2 * latents @ words.T
    return squares.argmin(1)


@torch.inference_mode()
def _rows(what: str, table: WordTable, latents: Tensor) -> list[dict]:
    ways: dict[str, Callable[[], Tensor]] = {
        f"chunks of {chunk:,} words": partial(table.nearest, latents, chunk) for chunk in CHUNKS
    }
    ways["full matrix"] = partial(by_matrix, table, latents)
    ways["full matrix, torch.cdist"] = partial(by_cdist, table, latents)
    first = table.nearest(latents)
    seconds = {name: measuring.seconds(way, REPEATS) for name, way in ways.items()}
    memory = {name: peak_bytes(way) for name, way in ways.items()}
    ours = f"chunks of {CHUNK:,} words"
    return [
        {
            "what": f"{what}: {name}",
            "ms of CPU": 1000 * seconds[name],
            "peak, MiB": memory[name] / 2**20,
            "times our time": seconds[name] / seconds[ours],
            "times our memory": memory[name] / memory[ours],
            "the same words, percent": 100 * (way() == first).float().mean().item(),
        }
        for name, way in ways.items()
    ]
