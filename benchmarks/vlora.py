"""VLoRA: what a language model computes with and without visual tokens: closed forms, and as it is measured.

- At 7 billion parameters, in GFLOPs, without vision tower, generator and head. The paper's ratios are read off its
  figure, which seems to include the vision side; the last ratio has generator, additions and projector in it.
- A text that is read with a picture of 64 to 2,600 features: as visual tokens of a projector, or as additions.
- A training step in the paper's two phases: with additions as they are made here; in the official code's way
  (FeipengMa6/VLoRA at 623aa52), written anew, where the factors of all kinds are joined and cut up again and both
  products are einsums, the second with the learned factor once for each row; and behind visual tokens. All have the
  same weights; the losses of the first two are compared.
- An answer with additions to the weights, with these merged into them, and behind visual tokens, of a projector (LLaVA)
  and of queries (a Q-Former). What brings the picture in is included, and stands by itself too.

All widths and the rank are an eighth of the paper's, the layers a quarter. CPU time of one thread; memory is that of
all tensors beside the weights.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._measuring import in_turns, measured
from lightning_modules.metrics.memory import peak_bytes
from lightning_modules.vlora.baselines import Projector, Queries
from lightning_modules.vlora.costs import (
    Sizes,
    addition_macs,
    gflops,
    language_macs,
    with_bridges,
    without_visual_tokens,
)
from lightning_modules.vlora.generator import PerceptualWeights
from lightning_modules.vlora.injection import Injection, merged, parts_of, sizes_of
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
FEATURES = (64, 256, 576, 1024, 2600)  # of a picture whose text is read
BATCH = 8  # pictures of a training step
PHASES = {"captions: the generator alone": False, "instructions: the language model too": True}


def main() -> list[dict]:
    """The closed forms, then what is measured."""
    torch.set_num_threads(1)
    return [*closed_forms(), *reading(), *training(), *writing()]


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
            "ratio with what brings pictures in": with_bridges(text, visual, sizes),
        }
        for visual, texts in PRINTED.items()
        for text, ratio in texts.items()
    ]


def reading() -> list[dict]:
    """A row for each number of features: logits of a text with a picture, and what the closed form says of it."""
    sizes = Sizes(hidden_size=LLAMA["hidden_size"], mlp_dim=LLAMA["intermediate_size"],
                  layers=LLAMA["num_hidden_layers"], kv_dim=LLAMA["hidden_size"])  # fmt: skip
    rows = []
    for count in FEATURES:
        batch = _batch(1, count)
        calls = {way: partial(_logits, _seeing(way, count), batch) for way in ("projector", "weights", "blind")}
        times = in_turns(calls, REPEATS, warm=1)
        rows.append({
            "what": f"{TEXT} tokens of text with a picture of {count} features",
            "visual tokens, ms of CPU": 1000 * times["projector"],
            "additions, ms of CPU": 1000 * times["weights"],
            "no picture, ms of CPU": 1000 * times["blind"],
            "ratio": times["weights"] / times["projector"],
            "ratio of the language model alone": times["blind"] / times["projector"],
            "its closed form": without_visual_tokens(TEXT, count, sizes),
        })  # fmt: skip
    return rows


def training() -> list[dict]:
    """Three rows for each phase; the first is ours."""
    rows, batch = [], _batch(BATCH, SEEN["patches"])
    for phase, learns in PHASES.items():
        added, plain, behind = _seeing("weights"), _seeing("weights"), _seeing("projector")
        for seeing in (added, plain, behind):
            seeing.train().language.train().requires_grad_(learns)
        ways = {
            "additions": partial(_step, added, added.loss, batch),
            "the official code's way": partial(_step, plain, Plain(plain).loss, batch),
            "576 visual tokens": partial(_step, behind, behind.loss, batch),
        }
        losses = {name: way() for name, way in ways.items()}
        times = in_turns(ways, REPEATS, warm=1)
        for name, way in ways.items():
            rows.append({
                "what": f"training step of {BATCH} pictures, {phase}: {name}",
                "ms of CPU": 1000 * times[name],
                "peak, MiB": peak_bytes(way) / 2**20,
                "times ours": times[name] / times["additions"],
            })  # fmt: skip
        apart = abs(losses["additions"] / losses["the official code's way"] - 1)
        rows[-2]["losses apart, relative"] = apart
    return rows


class Plain:
    """What the official code computes, with the weights of ours: see the top of this file.

    Args:
        seeing: a language model with a generator of a decoder for each kind, all kinds equally wide.
    """

    def __init__(self, seeing: Seeing):
        self.seeing, self.factors = seeing, {}
        for number, block in enumerate(seeing.language.base_model.layers):
            for kind, part in parts_of(block).items():
                part.register_forward_hook(partial(self._add, number, kind))

    def loss(self, token_ids: Tensor, mask: Tensor, labels: Tensor, features: Tensor, has_image: Tensor) -> Tensor:
        """As `Seeing.loss`."""
        self.factors = self.generated(features, has_image)
        found = self.seeing.language(
            inputs_embeds=self.seeing.language.get_input_embeddings()(token_ids), attention_mask=mask.long(),
            position_ids=(mask.long().cumsum(1) - 1).clamp_min(0), use_cache=False,
        )  # fmt: skip
        return F.cross_entropy(found.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    def generated(self, features: Tensor, has_image: Tensor) -> dict[tuple[int, str], tuple[Tensor, Tensor]]:
        """Both factors of each addition."""
        made = self.seeing.bridge
        seen = made.projection(features) + made.positions
        written = torch.cat([decoder(seen) for decoder in made.decoders], 1) * has_image[:, None, None]
        shape = len(made.kinds), len(made.adapted), -1, made.rank
        written = written.reshape(len(features), *shape)
        learned = made.scale * torch.stack([made.learned[kind] for kind in made.kinds]).reshape(1, *shape)
        return {
            (layer, kind): (written[:, number, place], learned[:, number, place])
            for number, kind in enumerate(made.kinds)
            for place, layer in enumerate(made.adapted)
        }

    def _add(self, number: int, kind: str, module: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> Tensor:
        if (number, kind) not in self.factors:
            return found
        generated, learned = self.factors[number, kind]
        each = learned.permute(0, 2, 1).expand(len(generated), -1, -1)
        narrow = torch.einsum("bld,bdr->blr", given[0], generated)
        return found + torch.einsum("blr,brd->bld", narrow, each)


def _batch(rows: int, features: int) -> tuple[Tensor, ...]:
    """Ids, which are there, labels, features of pictures, and whether there are any."""
    random = torch.Generator().manual_seed(2)
    ids = torch.randint(LLAMA["vocab_size"], (rows, TEXT), generator=random)
    seen = torch.randn(rows, features, SEEN["visual_dim"], generator=random)
    return ids, torch.ones_like(ids).bool(), ids, seen, torch.ones(rows, dtype=torch.bool)


@torch.no_grad()
def _logits(seeing: Seeing, batch: tuple[Tensor, ...]) -> Tensor:
    ids, there, _, features, has_image = batch
    return seeing(ids, there, features, has_image)


@torch.enable_grad()  # peak memory is counted without
def _step(seeing: Seeing, loss: Callable[..., Tensor], batch: tuple[Tensor, ...]) -> float:
    """Gradients of a batch; without an optimiser, which is the same in each way."""
    for parameter in [*seeing.bridge.parameters(), *seeing.language.parameters()]:
        parameter.grad = None
    found = loss(*batch)
    found.backward()
    return found.item()


def writing() -> list[dict]:
    """An answer about one picture, in each way; the first row is LLaVA's. Then what brings the picture in, alone."""
    features = torch.randn(1, SEEN["patches"], SEEN["visual_dim"], generator=torch.Generator().manual_seed(1))
    projector, queries, added, blind = (_seeing(way) for way in ("projector", "queries", "weights", "blind"))
    injection = Injection(blind.language.base_model.layers)
    ways = {
        "576 visual tokens": partial(_write, projector, features),
        f"{QUERIES} visual tokens": partial(_write, queries, features),
        "additions": partial(_write, added, features),
        "merged weights": partial(_write, added, features, merge=True),
    }
    rows = [measured(f"an answer: {name}", way, REPEATS) for name, way in ways.items()]
    with _merged(blind, injection, added.bridge, features):
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


def _seeing(way: str, patches: int = SEEN["patches"]) -> Seeing:
    """A language model with the same random weights in each way, and pictures of so many features."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**LLAMA)).eval()
    made: nn.Module | None = None
    if way == "weights":
        made = PerceptualWeights(
            sizes=sizes_of(model.model.layers[0]), layers=LLAMA["num_hidden_layers"], rank=RANK, **DECODER,
            **SEEN | {"patches": patches},
        )  # fmt: skip
        for factor in made.learned.values():
            nn.init.normal_(factor, std=0.1)
    elif way == "projector":
        made = Projector(visual_dim=SEEN["visual_dim"], hidden_size=LLAMA["hidden_size"])
    elif way == "queries":
        made = Queries(hidden_size=LLAMA["hidden_size"], tokens=QUERIES, **SEEN, **DECODER)
    return Seeing(model, made).eval()


def _write(seeing: Seeing, features: Tensor, *, merge: bool = False) -> Tensor:
    """An answer that never ends before its time."""
    ids = torch.arange(10, 10 + TEXT)[None]
    there = torch.ones(1, dtype=torch.bool)
    return seeing.write(ids, torch.ones_like(ids).bool(), features, there, most=WRITTEN, end=-1, pad=0, merge=merge)


@contextmanager
@torch.no_grad()
def _merged(seeing: Seeing, injection: Injection, made: PerceptualWeights, features: Tensor) -> Iterator[None]:
    """The picture in the weights; what goes around the MLP is added."""
    with merged(seeing.language.base_model.layers, made(features)) as rest:
        injection.use(rest)
        yield
    injection.use(None)


@torch.no_grad()
def _bridge(seeing: Seeing, features: Tensor) -> Tensor | Mapping:
    return seeing.bridge(features)
