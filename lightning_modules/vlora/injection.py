"""Adds generated weights to a language model of the Llama type, without copying or merging them.

Read `Injection.use` first. Each row of a batch has additions of its own, so that nothing can be merged there; for one
picture `merged` gives weights that need no additions.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_modules.vlora.generator import Delta, Deltas

if TYPE_CHECKING:  # takes seconds, and who calls has it
    from transformers import PreTrainedModel

PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}


def apply(x: Float[Tensor, "batch length inputs"], delta: Delta) -> Float[Tensor, "batch length outputs"]:
    """The product x A B^T, row by row."""
    return torch.bmm(x, delta.generated.to(x.dtype)) @ delta.learned.to(x.dtype).T


class Injection:
    """Hooks on the blocks of a language model; without additions they change nothing.

    Args:
        blocks: of the language model, each with `self_attn` (`q_proj`, `k_proj`, `v_proj`, `o_proj`) and `mlp`.

    Raises:
        ValueError: a block has other parts.
    """

    def __init__(self, blocks: nn.ModuleList):
        self.deltas: Deltas = {}
        for number, block in enumerate(blocks):
            for kind, part in parts_of(block).items():
                part.register_forward_hook(partial(self._add, number, kind))  # a copied model has hooks of its own

    def use(self, deltas: Deltas | None) -> None:
        """Add these until others are set; None for nothing.

        They stay for the backward pass, in which gradient checkpointing computes the blocks again.
        """
        self.deltas = deltas or {}

    def _add(self, number: int, kind: str, module: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> Tensor:
        delta = self.deltas.get(number, {}).get(kind)
        return found if delta is None else found + apply(given[0], delta)


def blocks_of(language: "PreTrainedModel") -> nn.ModuleList:
    """The blocks of a language model of the Llama type.

    Raises:
        ValueError: it is of another type, as GPT-2, or its first block has other parts.
    """
    if not (blocks := getattr(language.base_model, "layers", None)):
        raise ValueError(
            f"the language model is {type(language).__name__}, expected one of the Llama type, whose blocks are "
            "model.layers: name another in language.hub."
        )
    parts_of(blocks[0])
    return blocks


def parts_of(block: nn.Module) -> dict[str, nn.Module]:
    """What is added to, by its kind.

    Raises:
        ValueError: the block is none of a Llama.
    """
    attention, mlp = getattr(block, "self_attn", None), getattr(block, "mlp", None)
    if mlp is None or not all(hasattr(attention, name) for name in PROJECTIONS.values()):
        raise ValueError(
            f"a block is {type(block).__name__}, expected self_attn with {', '.join(PROJECTIONS.values())}, and mlp: "
            "take a language model of the Llama type."
        )
    return {kind: getattr(attention, name) for kind, name in PROJECTIONS.items()} | {"m": mlp}


def sizes_of(block: nn.Module) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each kind; keys and values of grouped heads are narrower than queries."""
    parts = parts_of(block)
    found = {kind: (parts[kind].in_features, parts[kind].out_features) for kind in PROJECTIONS}
    return {**found, "m": (found["q"][0], found["o"][1])}


@contextmanager
def merged(blocks: nn.ModuleList, deltas: Mapping[int, Mapping[str, Delta]]) -> Iterator[Deltas]:
    """The weights of q, k, v, o with the additions of one picture in them; gives what could not be merged.

    An addition around the MLP has no weight that it could be added to: set it with `Injection.use`. Afterwards the
    weights are as before, bit for bit.

    Raises:
        ValueError: the additions are of several pictures.
    """
    rows = {len(delta.generated) for own in deltas.values() for delta in own.values()}
    if rows - {1}:
        raise ValueError(f"additions are of {max(rows)} pictures, expected 1: weights can hold one picture only.")
    before, rest = [], {}
    with torch.no_grad():
        for number, own in deltas.items():
            parts = parts_of(blocks[number])
            rest[number] = {kind: delta for kind, delta in own.items() if kind not in PROJECTIONS}
            for kind in own.keys() & PROJECTIONS.keys():
                weight = parts[kind].weight
                before.append((weight, weight.clone()))
                weight += (own[kind].learned @ own[kind].generated[0].T).to(weight.dtype)
    try:
        yield rest
    finally:
        with torch.no_grad():
            for weight, old in before:
                weight.copy_(old)
