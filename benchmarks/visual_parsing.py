"""Visual parsing: inter-modality flow of a stack like BERT's, without keeping its attention maps against keeping them.

- All maps of all layers are kept, as `output_attentions` gives them, and then summed.
- Each map is counted when its layer has made it, and forgotten (`FlowMeter`, `watching`).
- No map is made: fused attention multiplies it with the few vectors that are needed (`projected`).

Each with the rolled-out flow, which multiplies maps of layers where they are kept, and vectors where they are not; and
how the memory grows with the number of layers. CPU time of one thread.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks._measuring import measured
from lightning_modules.metrics.modality_flow import FlowMeter, projected, watching

DIM, HEADS, WORDS, VISUAL, BATCH = 256, 8, 32, 192, 4  # positions as in the preset `paper`
LAYERS = (4, 12)
REPEATS = 3


def main() -> list[dict]:
    """Rows of each number of layers; the first row of each is the plain way."""
    torch.set_num_threads(1)
    return [row for layers in LAYERS for row in of_depth(layers)]


def of_depth(layers: int) -> list[dict]:
    """The network alone, and the three ways to measure."""
    eager, fused = (_bert(layers, kind) for kind in ("eager", "sdpa"))
    states, language, vision = _inputs()
    ways: dict[str, Callable[[], Tensor | None]] = {
        "all maps are kept": partial(_kept, eager, states, language, vision),
        "each map is counted and forgotten": partial(_streamed, eager, states, language, vision),
        "no map is made": partial(_streamed, fused, states, language, vision, fused=True),
        "the network alone, fused attention": partial(_alone, fused, states),
    }
    what = f"flow of {layers} layers, {BATCH} x {WORDS + VISUAL} tokens"
    with torch.no_grad():
        expected = ways["all maps are kept"]()
        found = {name: way() for name, way in ways.items()}
        rows = [measured(f"{what}: {name}", way, REPEATS) for name, way in ways.items()]
    first = rows[0]
    return [
        row
        | {"times the time": row["ms of CPU"] / first["ms of CPU"],
           "times the memory": row["peak, MiB"] / first["peak, MiB"]}
        | ({} if flow is None else {"apart, relative": float((flow / expected - 1).abs().max())})
        for row, flow in zip(rows, found.values(), strict=True)
    ]  # fmt: skip


def _bert(layers: int, attention: str) -> torch.nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=DIM, num_hidden_layers=layers, num_attention_heads=HEADS, intermediate_size=4 * DIM,
        initializer_range=0.2, attn_implementation=attention,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False).eval()


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(BATCH, WORDS + VISUAL, DIM, generator=draw)
    language = (torch.arange(WORDS + VISUAL) < WORDS).expand(BATCH, -1)
    return states, language, ~language


def _kept(model: torch.nn.Module, states: Tensor, language: Tensor, vision: Tensor) -> Tensor:
    """The symmetric flow of each layer, and rolled out, from all maps; (layers + 1, batch)."""
    maps = model(inputs_embeds=states, output_attentions=True).attentions
    means = [attention.mean(1) for attention in maps]
    rolled = torch.eye(means[0].shape[1]).expand_as(means[0])
    for attention in means:
        rolled = torch.bmm((attention + torch.eye(attention.shape[1])) / 2, rolled)
    crossed = (language[:, :, None] & vision[:, None]) | (vision[:, :, None] & language[:, None])
    return torch.stack([(attention * crossed).sum((1, 2)) / attention.shape[1] for attention in (*means, rolled)])


def _streamed(
    model: torch.nn.Module, states: Tensor, language: Tensor, vision: Tensor, *, fused: bool = False
) -> Tensor:
    """The same without keeping maps."""
    meter = FlowMeter(language, vision)
    with watching([layer.attention.self for layer in model.encoder.layer], meter, projected if fused else None):
        model(inputs_embeds=states)
    return torch.stack([flow.symmetric for flow in (*meter.layers, meter.rolled_out)])


def _alone(model: torch.nn.Module, states: Tensor) -> None:
    model(inputs_embeds=states)
