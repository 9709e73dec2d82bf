"""VLoRA: what a language model computes with and without visual tokens: closed forms, and writing as it is measured.

- At 7 billion parameters, in GFLOPs, without vision tower, generator and head. The paper's ratios are read off its
  figure, which seems to include the vision side.
- An answer with additions to the weights, with these merged into them, and behind visual tokens, of a projector (LLaVA)
  and of queries (a Q-Former). What brings the picture in is included, and stands by itself too. All widths and the rank
  are an eighth of the paper's, the layers a quarter. CPU time of one thread; memory is that of all tensors beside the
  weights.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks._measuring import measured
from lightning_modules.vlora.baselines import Projector, Queries
from lightning_modules.vlora.costs import Sizes, addition_macs, gflops, language_macs, without_visual_tokens
from lightning_modules.vlora.generator import PerceptualWeights
from lightning_modules.vlora.injection import Injection, merged, sizes_of
from lightning_modules.vlora.seeing import Seeing

PRINTED = {  # visual tokens -> tokens of text -> ratio in the paper's figure
    64: {32: 0.55, 128: 0.84, 256: 0.95},
    576: {32: 0.10, 128: 0.24, 256: 0.37},
    2600: {32: 0.05, 128: 0.085, 256: 0.125},
}
LLAMA = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8,
         "vocab_size": 4000}  # fmt: skip
SEEN = {"visual_dim": 128, "patches": 576}
DECODER = {"dim": 64, "depth": 8, "heads": 8}  # of the generator, and of the queries
RANK, QUERIES = 8, 64
TEXT, WRITTEN = 32, 32  # tokens of a question and of its answer
REPEATS = 3


def main() -> list[dict]:
    """The closed forms, then what is measured."""
    torch.set_num_threads(1)
    return [*closed_forms(), *writing()]


def closed_forms() -> list[dict]:
    """A row for each number of visual tokens and length of text."""
    sizes = Sizes()
    return [
        {
            "what": f"{text} tokens of text, {visual} visual ones",
            "with visual tokens, GFLOPs": gflops(language_macs(text + visual, sizes)),
            "without, GFLOPs": gflops(language_macs(text, sizes)),
            "additions, GFLOPs": gflops(addition_macs(text, sizes)),
            "ratio": without_visual_tokens(text, visual, sizes),
            "ratio in the paper's figure": ratio,
        }
        for visual, texts in PRINTED.items()
        for text, ratio in texts.items()
    ]


def writing() -> list[dict]:
    """An answer about one picture, in each way; the first row is LLaVA's. Then what brings the picture in, alone."""
    features = torch.randn(1, SEEN["patches"], SEEN["visual_dim"], generator=torch.Generator().manual_seed(1))
    projector, queries, added, blind = (_seeing(way) for way in ("projector", "queries", "weights", "blind"))
    injection = Injection(blind.language.base_model.layers)
    held = partial(_merged, blind, injection, added.bridge, features)
    ways = {
        "576 visual tokens": partial(_write, projector, features),
        f"{QUERIES} visual tokens": partial(_write, queries, features),
        "additions": partial(_write, added, features),
        "merged weights": partial(_write_merged, held, blind, features),
    }
    rows = [measured(f"an answer: {name}", way, REPEATS) for name, way in ways.items()]
    with held():
        again = partial(_write, blind, features)
        rows.append(measured("a further answer about the picture: merged weights", again, REPEATS))
        same = torch.equal(again(), ways["additions"]())
    rows.append(measured("an answer that sees nothing", partial(_write, blind, features), REPEATS))
    first = rows[0]
    for row in rows:
        row["tokens a second"] = 1000 * WRITTEN / row["ms of CPU"]
        row["times faster than 576 visual tokens"] = first["ms of CPU"] / row["ms of CPU"]
    for row in rows[2:5]:
        row["merged weights write the same"] = str(same)
    bridges = {"projector": projector, f"{QUERIES} queries": queries, "generator": added}
    return [*rows, *(measured(f"forward pass of the {name}", partial(_bridge, seeing, features), REPEATS)
                     for name, seeing in bridges.items())]  # fmt: skip


def _seeing(way: str) -> Seeing:
    """A language model with the same random weights in each way."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**LLAMA)).eval()
    made: nn.Module | None = None
    if way == "weights":
        made = PerceptualWeights(
            sizes=sizes_of(model.model.layers[0]), layers=LLAMA["num_hidden_layers"], rank=RANK, **SEEN, **DECODER
        )
        for factor in made.learned.values():
            nn.init.normal_(factor, std=0.1)
    elif way == "projector":
        made = Projector(visual_dim=SEEN["visual_dim"], hidden_size=LLAMA["hidden_size"])
    elif way == "queries":
        made = Queries(hidden_size=LLAMA["hidden_size"], tokens=QUERIES, **SEEN, **DECODER)
    return Seeing(model, made).eval()


def _write(seeing: Seeing, features: Tensor) -> Tensor:
    """An answer that never ends before its time."""
    ids = torch.arange(10, 10 + TEXT)[None]
    there = torch.ones(1, dtype=torch.bool)
    return seeing.write(ids, torch.ones_like(ids).bool(), features, there, most=WRITTEN, end=-1, pad=0)


@contextmanager
@torch.no_grad()
def _merged(seeing: Seeing, injection: Injection, made: PerceptualWeights, features: Tensor) -> Iterator[None]:
    """The picture in the weights; what goes around the MLP is added."""
    with merged(seeing.language.base_model.layers, made(features)) as rest:
        injection.use(rest)
        yield
    injection.use(None)


def _write_merged(held: Callable, seeing: Seeing, features: Tensor) -> Tensor:
    with held():
        return _write(seeing, features)


@torch.no_grad()
def _bridge(seeing: Seeing, features: Tensor) -> Tensor | Mapping:
    return seeing.bridge(features)
