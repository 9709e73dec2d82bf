"""MM-GEM: contrastive batches in parts, a few visual tokens, and a cache in writing, each against the plain way.

- A training step of both objectives with the batch in parts, each read twice, against all at once, where the tower
  looks once for both: time, memory, and how far the gradients are apart.
- A captioning step behind pooled tokens, against one behind all 256 patches, as many as ViT-L/14 has at 224 pixels.
- Captions with keys and values that are kept, against reading everything again for each token.

Tower and language model are an eighth as wide as the paper's. CPU time of one thread.
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from benchmarks._measuring import ratios
from lightning_modules.metrics.memory import peak_bytes
from lightning_modules.mm_gem.module import MmGem
from lightning_modules.mm_gem.writing import write

LANGUAGE = {"hidden_size": 256, "layers": 4, "heads": 8, "kv_heads": 1, "mlp_dim": 704, "positions": 512}
TOWER = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
         "patch_size": 8}  # fmt: skip
TEXT = 32  # tokens
CONTRASTED, PARTS, SMALL = 64, (None, 16, 4), 32  # rows of a batch, of a micro-batch; pixels a side
CAPTIONED, GRIDS, LARGE = 8, (16, 8, 4, 2, 1), 128
WRITTEN, LENGTH = 8, 64  # captions, tokens of each
REPEATS = 3


def main() -> list[dict]:
    """Rows of each comparison."""
    torch.set_num_threads(1)
    return [*parts(), *pooling(), *cache()]


def parts() -> list[dict]:
    """A step of both objectives; the first row has the whole batch at once."""
    batch, rows, gradients = _batch(CONTRASTED, SMALL), [], []
    for size in PARTS:
        module = _module(SMALL, 2, size)
        step = partial(_step, module, batch)
        step()
        gradients.append(torch.cat([x.grad.flatten() for x in module.parameters() if x.grad is not None]))
        what = "all at once" if size is None else f"parts of {size}"
        rows.append(_measured(f"training step of {CONTRASTED} pictures of {SMALL} pixels: {what}", step))
    apart = [float((own - gradients[0]).norm() / gradients[0].norm()) for own in gradients]
    return [row | {"gradients apart, relative": own} for row, own in zip(ratios(rows), apart, strict=True)]


def pooling() -> list[dict]:
    """A step of captions alone; the first row pools nothing."""
    batch, rows = _batch(CAPTIONED, LARGE), []
    for grid in GRIDS:
        step = partial(_step, _module(LARGE, grid, None, embedding=0.0), batch)
        what = f"step of {CAPTIONED} captions of {TEXT} tokens behind {grid} x {grid} visual tokens"
        rows.append(_measured(what, step))
    return ratios(rows)


def cache() -> list[dict]:
    """Captions of random weights, which never end."""
    language = _module(SMALL, 4, None).network.language
    end = language.tokenizer.eos_token_id
    prefix = torch.randn(WRITTEN, 16, language.dim)
    ways = {
        "cache": partial(write, language, prefix, length=LENGTH, never=[end]),
        "no cache": partial(_again, language, prefix, end),
    }
    same = ways["cache"]() == ways["no cache"]()
    what = f"{WRITTEN} captions of {LENGTH} tokens behind 16 visual tokens"
    rows = [_measured(f"{what}: {name}", way) for name, way in ways.items()]
    return [row | {"the same captions": str(same)} for row in ratios(rows)]


@torch.no_grad()
def _again(language, prefix: Tensor, never: int) -> list[str]:
    """The likeliest tokens, each after reading all before it."""
    embed = language.whole.get_input_embeddings()
    ids = torch.tensor([language.start]).expand(len(prefix), -1)
    for _ in range(LENGTH):
        given = torch.cat([prefix, embed(ids)], 1)
        logits = language.whole(inputs_embeds=given, use_cache=False, logits_to_keep=1).logits[:, -1]
        logits[:, never] = -torch.inf
        ids = torch.cat([ids, logits.argmax(1, keepdim=True)], 1)
    texts = language.tokenizer.batch_decode(ids[:, len(language.start) :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def _module(side: int, grid: int, part: int | None, embedding: float = 1.0) -> MmGem:
    torch.manual_seed(0)
    return MmGem(
        language=LANGUAGE, tower={"sizes": TOWER | {"image_size": side}}, pool={"grid": grid}, embedding_dim=128,
        train_tower=True, losses={"embedding": embedding, "generation": 1.0},
        parts={"embedding": part, "generation": part},
    )  # fmt: skip


def _batch(rows: int, side: int) -> dict[str, Tensor]:
    """Pictures and texts that hold anything."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(20, 100, (rows, TEXT), generator=draw)
    return {
        "images": torch.randint(0, 256, (rows, 3, side, side), dtype=torch.uint8, generator=draw),
        "box": torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(rows, 4),
        "token_ids": ids, "attention_mask": torch.ones(rows, TEXT, dtype=torch.bool), "labels": ids,
    }  # fmt: skip


@torch.enable_grad()
def _step(module: MmGem, batch: dict[str, Tensor]) -> None:
    module.zero_grad(set_to_none=True)
    sum(module.terms(batch).values()).backward()


def _measured(what: str, call: Callable[[], object]) -> dict:
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return {"what": what, "ms of CPU": 1000 * median(times), "peak, MiB": peak_bytes(call) / 2**20}
