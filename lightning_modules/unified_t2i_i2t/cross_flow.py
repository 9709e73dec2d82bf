"""Inter-modality flow of LXMERT's cross layers, whose two streams read themselves and each other in separate modules.

Every map of a module that reads the other stream sums to 1 there, and those of the other modules to 1 at home. So over
these maps the flow is the same number whatever was learnt, and so is what is rolled out. Here a row of both maps counts
by the length of what its module adds to the state: share = |crossed| / (|crossed| + |own|), and

    row of the joint map = (share of the other stream) x crossed map, (1 - share) x own map,

which sums to 1 over both streams. This is ours; lengths in place of weights alone are an idea of Kobayashi et al.
(2004.10102). Read `joint` first.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.models.lxmert.modeling_lxmert import LxmertXLayer

from lightning_modules.metrics.modality_flow import FlowMeter, eagerly

OfWords, OfPlaces = Float[Tensor, "batch words"], Float[Tensor, "batch places"]


def joint(
    crossed: tuple[Float[Tensor, "batch words places"], Float[Tensor, "batch places words"]],
    own: tuple[Float[Tensor, "batch words words"], Float[Tensor, "batch places places"]],
    lengths: tuple[OfWords, OfPlaces, OfWords, OfPlaces],
) -> Float[Tensor, "batch positions positions"]:
    """One map over words, then places, whose rows sum to 1.

    Args:
        crossed: what words read of places, and places of words, mean over heads.
        own: what words read of words, and places of places.
        lengths: of what these four modules add, in this order.
    """
    shares = [other / (other + home) for other, home in zip(lengths[:2], lengths[2:], strict=True)]
    other = [share[:, :, None] * x for share, x in zip(shares, crossed, strict=True)]
    home = [(1 - share)[:, :, None] * x for share, x in zip(shares, own, strict=True)]
    return torch.cat([torch.cat([home[0], other[0]], 2), torch.cat([other[1], home[1]], 2)], 1)


@contextmanager
def watching_crossed(layers: Iterable[LxmertXLayer], meter: FlowMeter) -> Iterator[FlowMeter]:
    """While it lasts, the meter, of words first and then places, counts every forward pass of the layers.

    Dropout must be off. Of each layer four maps are kept until it ends.
    """
    handles = [handle for layer in layers for handle in _hooks(layer, meter)]
    try:
        with eagerly():
            yield meter
    finally:
        for handle in handles:
            handle.remove()


def _hooks(layer: LxmertXLayer, meter: FlowMeter) -> Iterator[RemovableHandle]:
    maps: list[Tensor] = []
    lengths: list[Tensor] = []

    def keep_map(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        with torch.no_grad():  # `forward` itself, as a call would come here again
            maps.append(module.forward(*inputs, output_attentions=True)[1].mean(1))

    def keep_length(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        lengths.append(output.detach().float().norm(dim=-1))

    def count(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        meter.update(joint(_pair(maps[:2]), _pair(maps[2:]), (*_pair(lengths[:2]), *_pair(lengths[2:]))))
        maps.clear()
        lengths.clear()

    for attention, added in (  # in the order in which they run; the first one for words, then for places
        (layer.visual_attention.att, layer.visual_attention.output.dense),
        (layer.lang_self_att.self, layer.lang_self_att.output.dense),
        (layer.visn_self_att.self, layer.visn_self_att.output.dense),
    ):
        yield attention.register_forward_hook(keep_map)
        yield added.register_forward_hook(keep_length)
    yield layer.register_forward_hook(count)


def _pair(x: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    first, second = x
    return first, second
