"""IMP: how experts get their tokens, what steps in turn cost, and what dropped tokens save, each against the plain way.

- A training step of one layer of 16 experts, as `Experts` gathers tokens, against a loop over the experts, and against
  masks of tokens by experts by places, as the official code multiplies them: time, memory, and that they agree.
- Steps of one task each against steps of all tasks with their losses summed, at as many rows of each task.
- A training step on clips with three quarters of the tokens dropped, against one with all.

CPU time of one thread.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._measuring import measured, ratios
from lightning_modules.imp.experts import Experts
from lightning_modules.imp.module import Imp
from lightning_modules.imp.routing import Dispatch

MIXTURE = {
    "experts": 16, "layers": 0, "place": "last", "routing": "expert_choice", "largest_group": 2048, "capacity": 1.0,
    "least_capacity": 0, "selected": 1, "prioritised": False, "slots": 2, "evaluation_groups": "sample", "z_loss": 1.0,
    "balance": 1.0,
}  # fmt: skip
DIM, SAMPLES, TOKENS = 128, 64, 256  # of the layer; 16 groups of 1,024 tokens
ROWS, SIDE, FRAMES = 16, 64, 16  # clips of 4 x 8 x 8 tokens
REPEATS = 3


def main() -> list[dict]:
    """Rows of each comparison."""
    torch.set_num_threads(1)
    return [*dispatching(), *alternating(), *dropping()]


def dispatching() -> list[dict]:
    """A forward and a backward pass of the layer; the first row is ours."""
    torch.manual_seed(0)
    layer, x = Experts(DIM, 4 * DIM, MIXTURE).train(), torch.randn(SAMPLES, TOKENS, DIM)
    ways: Mapping[str, Callable[[Tensor], Tensor]] = {
        "gathered": layer,
        "a loop over experts": partial(_looped, layer),
        "masks, as the official code": partial(_masked, layer),
    }
    expected = layer(x).detach()
    what = f"step of 16 experts on {SAMPLES * TOKENS:,} tokens"
    rows = [measured(f"{what}: {name}", partial(_step, way, x), REPEATS) for name, way in ways.items()]
    with torch.no_grad():
        apart = [float((way(x) - expected).norm() / expected.norm()) for way in ways.values()]
    return [row | {"apart, relative": own} for row, own in zip(ratios(rows), apart, strict=True)]


def _chosen(layer: Experts, x: Tensor) -> tuple[Tensor, Dispatch, Tensor]:
    grouped = x.reshape(layer.groups(x), -1, DIM)
    logits = layer.logits(grouped)
    return grouped, layer.choose(logits.softmax(2)), logits


def _expert(layer: Experts, number: int, x: Tensor) -> Tensor:
    return F.gelu(x @ layer.wi[number], approximate="tanh") @ layer.wo[number]


def _looped(layer: Experts, x: Tensor) -> Tensor:
    """Each expert's tokens by indexing, one expert after the other."""
    grouped, dispatch, _ = _chosen(layer, x)
    found = torch.zeros_like(grouped)
    groups = torch.arange(len(grouped))[:, None]
    for number in range(layer.mixture["experts"]):
        index, weight = dispatch.index[:, number], dispatch.weight[:, number, :, None]
        found = found.index_put(
            (groups, index), weight * _expert(layer, number, grouped[groups, index]), accumulate=True
        )
    return found.reshape(x.shape)


def _masked(layer: Experts, x: Tensor) -> Tensor:
    """One-hot products to the places of experts and back."""
    grouped, dispatch, _ = _chosen(layer, x)
    mask = F.one_hot(dispatch.index, grouped.shape[1]).to(x.dtype)  # groups, experts, places, tokens
    taken = torch.einsum("gth,gect->gech", grouped, mask)
    answers = layer.answer(taken)
    return torch.einsum("gech,gect->gth", answers, mask * dispatch.weight[..., None]).reshape(x.shape)


def _step(way: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with torch.enable_grad():
        way(x.requires_grad_()).square().mean().backward()


def alternating() -> list[dict]:
    """Three steps of one task each, and one step of three tasks; the first row is ours."""
    module, batches = _module(0.5), _batches()
    ways = {
        "one task a step": partial(_learn, module, [{name: batch} for name, batch in batches.items()]),
        "losses summed": partial(_learn, module, [batches]),
    }
    what = f"{ROWS} rows of each of three tasks, with the optimiser"
    return ratios([measured(f"{what}: {name}", way, REPEATS) for name, way in ways.items()])


def dropping() -> list[dict]:
    """A step on clips; the first row drops nothing."""
    batch = {"clips": _batches()["clips"]}
    ways = {rate: partial(_learn, _module(rate), [batch]) for rate in (0.0, 0.5, 0.75)}
    count = (FRAMES // 4) * (SIDE // 8) ** 2
    return ratios([
        measured(f"training step of {ROWS} clips: {int((1 - rate) * count)} of {count} tokens", way, REPEATS)
        for rate, way in ways.items()
    ])  # fmt: skip


def _module(drop: float) -> Imp:
    torch.manual_seed(0)

    def task(objective: str, modalities: list[str], classes: int | None) -> dict:
        return {"objective": objective, "modalities": modalities, "classes": classes, "drop": drop, "weight": 1.0}

    module = Imp(
        encoder={"dim": DIM, "hidden": 4 * DIM, "layers": 4, "heads": 4, "norm_qk": False}, mixture=MIXTURE,
        modalities={
            "vision": {"patch": [4, 8, 8], "buckets": [4, 8, 8]},
            "spectrogram": {"patch": [4, 8], "buckets": [8, 8], "rate": 4096, "frame": 256, "step": 256, "bands": 32,
                            "lowest": 80.0, "highest": 2000.0, "mean": -5.0, "deviation": 5.0},
            "text": {"words": 133, "buckets": 16},
        },
        tasks={
            "pairs": task("contrast", ["vision", "text"], None),
            "clips": task("classification", ["vision"], 8),
            "sounds": task("classification", ["spectrogram"], 8),
        },
        common_dim=DIM, temperature=0.2, shown={"side": SIDE, "frames": FRAMES, "samples": 4096},
    )  # fmt: skip
    module.recipe = {"optimizer": "adamw", "lr": 1e-4, "weight_decay": 1e-4}
    return module.train()


def _batches() -> dict[str, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(ROWS) % 8
    images = torch.randint(256, (ROWS, 3, SIDE, SIDE), generator=draw).to(torch.uint8)
    video = torch.randint(256, (ROWS, 3, FRAMES, SIDE, SIDE), generator=draw).to(torch.uint8)
    audio = torch.randint(-9999, 9999, (ROWS, 4096), generator=draw).to(torch.int16)
    words = torch.randint(133, (ROWS, 16), generator=draw)
    return {
        "pairs": {"images": images, "token_ids": words, "attention_mask": torch.ones_like(words, dtype=torch.bool)},
        "clips": {"video": video, "labels": labels},
        "sounds": {"audio": audio, "labels": labels},
    }


def _learn(module: Imp, steps: list[dict]) -> None:
    optimizer = module._optimizer()
    with torch.enable_grad():
        for batch in steps:
            module.training_step(batch).backward()
            optimizer.step()
            optimizer.zero_grad()
