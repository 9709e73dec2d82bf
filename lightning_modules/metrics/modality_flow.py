"""Inter-modality flow: how much of their attention language and vision pay to each other (visual parsing, 2106.13488).

The paper names and draws the metric; its formula was not at hand, so the one here is our reconstruction. Read `flows`
first. For attention A of one layer, averaged over heads, rows being queries that sum to 1, and the positions L of
language and V of vision, S of them together:

| number | formula |
|---|---|
| `to_language` | what language reads from vision: the sum of A over L x V, divided by the number of L |
| `to_vision` | what vision reads from language: likewise over V x L, divided by the number of V |
| `symmetric` | both sums together, divided by S |
| `baseline` | `symmetric` of an attention that is equal everywhere: 2 L V / S^2 |
| `relative` | `symmetric` over `baseline`: without it, encoders with other numbers of tokens are not comparable |

Rolled out, A is the product over layers of (A + 1) / 2, so that a detour over several layers counts as well.

All of these are products of maps with a few vectors. So none has to be kept (`FlowMeter.update`), and with fused
attention none is even made: the vectors take the place of the values (`FlowMeter.update_products`).

What is stored of a sample, `FlowMeter.columns`, is reported by `metrics.flow_report`.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

SUM = 1e-2  # how far the sum of a row may be from 1: maps of bfloat16 have it
STORED = ("symmetric", "relative", "to_language", "to_vision")  # numbers of each layer
PAIRS = 64  # that are measured where flow is no part of the paper: the first rows to judge

Positions = Bool[Tensor, "_ _"]  # batch, positions
Map = Float[Tensor, "_ *heads _ _"]  # batch, possibly heads, positions, positions
Read = Callable[["FlowMeter", nn.Module, tuple, dict[str, Any], Any], None]


class Flow(NamedTuple):
    """The numbers of each sample; see the table above."""

    to_language: Float[Tensor, " batch"]
    to_vision: Float[Tensor, " batch"]
    symmetric: Float[Tensor, " batch"]
    baseline: Float[Tensor, " batch"]

    @property
    def relative(self) -> Float[Tensor, " batch"]:
        """Over that of an attention that is equal everywhere."""
        return self.symmetric / self.baseline


class FlowMeter:
    """Follows the attention of one batch, layer by layer; `layers` and `rolled_out` are the numbers.

    It keeps a few vectors of each sample, not the maps.

    Args:
        language: which positions hold language; special tokens are counted there if the caller says so.
        vision: which positions hold vision. A position in neither, such as a special token that is left out, is
            attended to, but counts in no number.
        attended: which positions can be attended to; null for those of language and vision. Padding is in none of the
            three: what it reads is left out.

    Raises:
        ValueError: masks differ in shape or overlap, a sample has no language or no vision, or tokens that count are
            not attended to.
    """

    def __init__(self, language: Positions, vision: Positions, attended: Positions | None = None):
        _check_masks(language, vision, attended)
        attended = language | vision if attended is None else attended
        self.language, self.vision, self.attended = language, vision, attended
        self.layers: list[Flow] = []
        # columns: language, vision, and everything, whose product with a map is the sums of its rows
        self._columns = torch.stack([language, vision, attended], dim=-1).float()
        self._rolled = self._columns[..., :2]

    def update(self, attention: Map | None) -> None:
        """Count the next layer's map, of each head or averaged.

        Raises:
            ValueError: it is missing, has another shape, or rows do not sum to 1, as under dropout.
        """
        attention = self._checked(attention)
        columns = torch.cat([self._columns, self._rolled], dim=-1)
        self._count(torch.matmul(attention.float(), columns[:, None]).mean(1))

    def update_products(
        self,
        query: Float[Tensor, "batch heads positions dim"],
        key: Float[Tensor, "batch heads positions dim"],
        mask: Tensor | None = None,
        scale: float | None = None,
    ) -> None:
        """Count the next layer from what its attention is computed from, without making the map.

        Args:
            query: of each head.
            key: likewise.
            mask: as `scaled_dot_product_attention` takes it; null to leave out what is not attended to.
            scale: factor on the products; null for 1 / sqrt(dim).
        """
        if query.shape[0] != len(self.language) or query.shape[2] != self.language.shape[1]:
            raise ValueError(
                f"queries have the shape {tuple(query.shape)}, expected (batch, heads, positions, dim) for masks of "
                f"the shape {tuple(self.language.shape)}."
            )
        mask = self.attended[:, None, None] if mask is None else mask
        columns = torch.cat([self._columns, self._rolled], dim=-1).to(query.dtype)
        wide = F.pad(columns, (0, max(0, query.shape[-1] - columns.shape[-1])))  # kernels want values as wide as keys
        values = wide[:, None].expand(-1, query.shape[1], -1, -1)
        products = F.scaled_dot_product_attention(query, key, values, attn_mask=mask, scale=scale)
        self._count(products[..., : columns.shape[-1]].float().mean(1))

    @property
    def rolled_out(self) -> Flow:
        """Over all layers so far; its baseline is that of as many layers that attend equally.

        Raises:
            ValueError: there was no layer.
        """
        if not self.layers:
            raise ValueError("no layer was counted: call `update` for each, or run the network inside `watching`.")
        share = 1 - 0.5 ** len(self.layers)  # the product of (A + 1) / 2 is share A + (1 - share), if A is equal
        return self._flow(self._rolled, share)

    def columns(self) -> dict[str, Float[Tensor, "batch ..."]]:
        """What is stored of each sample.

        Returns:
            `symmetric`, `relative`, `to_language` and `to_vision` (batch layers), and `rolled_out` (batch), relative
            too, of all layers.

        Raises:
            ValueError: there was no layer.
        """
        rolled_out = self.rolled_out.relative
        found = {name: torch.stack([getattr(layer, name) for layer in self.layers], 1) for name in STORED}
        return found | {"rolled_out": rolled_out}

    def _count(self, products: Float[Tensor, "batch positions 5"]) -> None:
        sums = products[..., 2][self.attended]
        if (apart := float((sums - 1).abs().max())) > SUM:
            raise ValueError(
                f"a row of layer {len(self.layers)} sums to 1 with an error of {apart:.2g}, expected at most {SUM}: "
                "turn dropout off (`eval()`), and mask what is not attended to."
            )
        self.layers.append(self._flow(products[..., :2]))
        self._rolled = (products[..., 3:] + self._rolled) / 2

    def _flow(self, read: Float[Tensor, "batch positions 2"], share: float = 1.0) -> Flow:
        """The numbers from what each position reads of language and of vision."""
        of_language, of_vision = self.language.sum(1), self.vision.sum(1)
        together, attended = of_language + of_vision, self.attended.sum(1)
        language = (read[..., 1] * self.language).sum(1)
        vision = (read[..., 0] * self.vision).sum(1)
        return Flow(
            language / of_language,
            vision / of_vision,
            (language + vision) / together,
            share * 2 * of_language * of_vision / (together * attended),
        )

    def _checked(self, attention: Map | None) -> Float[Tensor, "batch heads positions positions"]:
        if not isinstance(attention, Tensor):
            raise ValueError(
                f"layer {len(self.layers)} gives {type(attention).__name__} as attention: fused kernels return none; "
                "set attn_implementation to eager, or use `update_products`."
            )
        attention = attention[:, None] if attention.ndim == 3 else attention
        rows, positions = self.language.shape
        if attention.ndim != 4 or (attention.shape[0], *attention.shape[2:]) != (rows, positions, positions):
            raise ValueError(
                f"attention of layer {len(self.layers)} has the shape {tuple(attention.shape)}, expected "
                f"({rows}, heads, {positions}, {positions}) as the masks have it."
            )
        return attention


def flows(maps: Iterable[Map], language: Positions, vision: Positions, attended: Positions | None = None) -> FlowMeter:
    """The flow of each layer, and rolled out, from maps that are given one after another; see `FlowMeter`."""
    meter = FlowMeter(language, vision, attended)
    for attention in maps:
        meter.update(attention)
    return meter


def side_by_side(
    language: Bool[Tensor, "batch length"],
    vision: Bool[Tensor, "batch tokens"],
    attended: Bool[Tensor, "batch length"] | None = None,
) -> FlowMeter:
    """The meter of sequences that are text first, then visual tokens.

    Args:
        language: which places of the text count.
        vision: which visual tokens show something; the others are padding.
        attended: which places of the text can be attended to; null for those that count.
    """
    none = torch.zeros_like
    text = language if attended is None else attended
    return FlowMeter(
        torch.cat([language, none(vision)], 1), torch.cat([none(language), vision], 1), torch.cat([text, vision], 1)
    )


def baseline(language: int, vision: int) -> float:
    """`symmetric` of an attention that is equal everywhere: 2 L V / S^2.

    Raises:
        ValueError: one of them has no tokens.
    """
    if language < 1 or vision < 1:
        raise ValueError(f"there are {language} tokens of language and {vision} of vision, expected one of each.")
    return 2 * language * vision / (language + vision) ** 2


@contextmanager
def watching(modules: Iterable[nn.Module], meter: FlowMeter, read: Read | None = None) -> Iterator[FlowMeter]:
    """While it lasts, the meter counts every forward pass of the modules, in the order in which they run.

    What is compiled runs eagerly meanwhile, as compiled code calls no hooks that came after it.

    Args:
        modules: of each layer what computes its attention.
        meter: of the batch that runs.
        read: hands over what a module was given or returns; without it, modules return `(output, attention)`, as those
            of transformers with eager attention and `torch.nn.MultiheadAttention` do.
    """

    def hook(read: Read, module: nn.Module, inputs: tuple, named: dict[str, Any], output: object) -> None:
        with torch.no_grad():
            read(meter, module, inputs, named, output)

    taken = partial(hook, read or returned)
    handles = [module.register_forward_hook(taken, with_kwargs=True) for module in modules]
    try:
        with eagerly():
            yield meter
    finally:
        for handle in handles:
            handle.remove()


def eagerly() -> AbstractContextManager:
    """While it lasts, nothing runs compiled; without a compiler, whose import takes seconds, nothing is."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def returned(meter: FlowMeter, module: nn.Module, inputs: tuple, named: dict[str, Any], output: object) -> None:
    """Count the second of what a module returns: its attention."""
    meter.update(output[1] if isinstance(output, tuple) and len(output) > 1 else None)


def projected(meter: FlowMeter, module: nn.Module, inputs: tuple, named: dict[str, Any], output: object) -> None:
    """Count a module with the parts `query` and `key`, as the self-attention of transformers' BERT, fused or not.

    Both are projected once more; what is not attended to is what the meter says.
    """
    states = inputs[0] if inputs else named["hidden_states"]
    heads = module.num_attention_heads

    def split(projection: nn.Module) -> Tensor:
        return projection(states).unflatten(-1, (heads, -1)).transpose(1, 2)

    meter.update_products(split(module.query), split(module.key))


def _check_masks(language: Positions, vision: Positions, attended: Positions | None) -> None:
    shapes = [tuple(mask.shape) for mask in (language, vision, attended) if mask is not None]
    if len(set(shapes)) > 1:
        raise ValueError(f"masks have the shapes {shapes}, expected one shape (batch, positions).")
    if both := int((language & vision).sum()):
        raise ValueError(f"{both} positions are language and vision, expected each to be one of them or none.")
    for name, mask in {"language": language, "vision": vision}.items():
        if not mask.any(1).all():
            sample = int((~mask.any(1)).nonzero()[0])
            raise ValueError(f"sample {sample} has no {name}, so that nothing can flow: leave it out.")
    if attended is not None and ((language | vision) & ~attended).any():
        raise ValueError("tokens of language or vision are not attended to: leave them out of the masks as padding.")
