"""The unified generator: sampled captions without and with the graph of all passes kept; four steps against 64.

The memory of a graph is what autograd saves for the backward pass (`saved_tensors_hooks`), each storage once: resident
memory of the process would also count what the allocator keeps.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_modules.unified_t2i_i2t.lxmert import Lxmert
from lightning_modules.unified_t2i_i2t.mask_predict import mask_counts, mask_predict, one_by_one
from lightning_modules.unified_t2i_i2t.module import HABITS, UnifiedGenerator

NETWORK = dict(vocabulary=1000, feature_dim=256, codebook_size=512, grid=8, dim=192, num_heads=4, mlp_dim=768,
               language_layers=3, visual_layers=2, cross_layers=2, max_positions=32, dropout=0.0)  # fmt: skip
IMAGES = dict(image_size=64, grid=8, feature_dim=256, codebook_size=512, decoder=dict(dim=8, bottleneck=16, hidden=8),
              looks=None, backbone=None, scorer=None)  # fmt: skip
WORDS = dict(pad=0, start=1, mask=2, end=999)
COMPAT = dict.fromkeys(HABITS, False)
BATCH, LENGTH, REPEATS = 8, 15, 3


def main() -> list[dict]:
    torch.manual_seed(0)
    module = UnifiedGenerator(
        network=NETWORK, images=IMAGES, words=WORDS, compat=COMPAT, tasks=["rl_i2t"], caption_length=LENGTH + 1
    ).eval()
    return [_captions(module), _pictures(module.network)]


def _captions(module: UnifiedGenerator) -> dict:
    features = torch.randn(BATCH, 64, 256)

    def graph_kept() -> Tensor:
        torch.manual_seed(1)
        return _unrolled(module, module.network.see(features))

    def done_again() -> Tensor:
        torch.manual_seed(1)
        return module.write(module.network.see(features), LENGTH, sample=True)[1]

    torch.testing.assert_close(graph_kept(), done_again(), atol=1e-4, rtol=1e-4)
    (slow, large), (fast, small) = _interleaved([graph_kept, done_again])
    return {
        "what": f"captions of {LENGTH} words, sampled, with gradient, batch {BATCH}",
        "straightforward, s": slow,
        "ours, s": fast,
        "times faster": slow / fast,
        "straightforward, MB saved": large / 1e6,
        "ours, MB saved": small / 1e6,
        "times smaller": large / small,
        "target": "memory of one word's pass instead of all, for less than twice the time",
    }


def _unrolled(module: UnifiedGenerator, seen: Tensor) -> Tensor:
    """Log-probabilities of sampled words, as the official code unrolls them: every pass stays in the graph."""
    ids, log_ps = torch.full((BATCH, 1), WORDS["start"]), []
    for _ in range(LENGTH):
        log_p = module.next_word(seen, ids)
        word = torch.multinomial(log_p.detach().exp(), 1)
        word = torch.where((ids == WORDS["end"]).any(1, keepdim=True), WORDS["pad"], word)
        log_ps.append(log_p.gather(1, word)[:, 0])
        ids = torch.cat([ids, word], dim=1)
    return torch.stack(log_ps, dim=1)


@torch.no_grad()
def _pictures(network: Lxmert) -> dict:
    ids = torch.randint(3, 999, (BATCH, LENGTH))
    keep = torch.ones_like(ids, dtype=torch.bool)

    def predict(codes: Tensor, masked: Tensor) -> Tensor:
        return network.code_logits(network.mask_features(network.cluster_codebook(codes), masked), ids, keep)

    times = []
    for draw in (
        lambda: one_by_one(predict, batch=BATCH, tokens=64),
        lambda: mask_predict(predict, batch=BATCH, counts=mask_counts(64, 4)),
    ):
        start = time.process_time()
        draw()
        times.append(time.process_time() - start)
    slow, fast = times
    return {
        "what": f"images of 64 tokens, batch {BATCH}: 64 passes against 4",
        "straightforward, s": slow,
        "ours, s": fast,
        "times faster": slow / fast,
        "target": "16 times fewer passes",
    }


def _interleaved(functions: list[Callable[[], Tensor]]) -> list[tuple[float, int]]:
    """Median CPU seconds, forward and backward, and the largest number of bytes saved at once; in turns."""
    times, saved = [[] for _ in functions], [0 for _ in functions]
    for turn in range(REPEATS + 1):
        for number, function in enumerate(functions):
            start = time.process_time()
            function().sum().backward()
            if turn:
                times[number].append(time.process_time() - start)
        if turn == REPEATS:
            for number, function in enumerate(functions):
                with _largest_saved() as largest:
                    function().sum().backward()
                saved[number] = largest[0]
    return [(sorted(own)[len(own) // 2], size) for own, size in zip(times, saved, strict=True)]


class _Held:
    """A saved tensor that counts for as long as the graph holds it."""

    def __init__(self, tensor: Tensor, alive: dict[int, list[int]], largest: list[int]):
        self.tensor, self.alive, self.place = tensor, alive, tensor.untyped_storage().data_ptr()
        entry = alive.setdefault(self.place, [0, tensor.untyped_storage().nbytes()])
        entry[0] += 1
        largest[0] = max(largest[0], sum(size for _, size in alive.values()))

    def __del__(self):
        entry = self.alive[self.place]
        entry[0] -= 1
        if not entry[0]:
            del self.alive[self.place]


@contextmanager
def _largest_saved() -> Iterator[list[int]]:
    """Most bytes of storages that autograd holds at once; parameters, which are there anyway, are not counted."""
    alive: dict[int, list[int]] = {}
    largest = [0]

    def pack(tensor: Tensor) -> Tensor | _Held:
        ours = isinstance(tensor, torch.nn.Parameter) or tensor._base is not None  # a view of what is counted elsewhere
        return tensor if ours else _Held(tensor, alive, largest)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x.tensor if isinstance(x, _Held) else x):
        yield largest
