"""Tokens as few bits: an arithmetic coder writes them with the probabilities that a generator gives.

A generator says step by step what it expects of which tokens, given those of the steps before (`coding`). Writer and
reader run the same steps, so that they have the same probabilities, and need nothing else in common but the generator.
They must be equal to the last bit: the same machine settings (`portable`), device and number of clips at a time.

The coder is the range coder of `constriction` (Bamler, arXiv 2201.01741).
"""

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from constriction import stream
from jaxtyping import Float, Int
from torch import Tensor

WORD = 32  # bits of what the coder writes at a time


class Asked(NamedTuple):
    """What is to be coded next.

    Attributes:
        part: which of a token's sub-tokens.
        places: of the tokens, among those of a clip.
        chances: probabilities of their values.
    """

    part: int
    places: Int[Tensor, " places"]
    chances: Float[Tensor, "batch places codes"]


Coding = Generator[Asked, Int[Tensor, "batch places"], Int[Tensor, "batch tokens"]]


@torch.no_grad()
def run(coding: Coding, answer: Callable[[Asked], Int[Tensor, "batch places"]]) -> Int[Tensor, "batch tokens"]:
    """Answer all that is asked; the tokens that come of it."""
    asked = next(coding)
    while True:
        try:
            asked = coding.send(answer(asked))
        except StopIteration as end:
            return end.value


def code_length(coding: Coding, parts: Sequence[Int[Tensor, "batch tokens"]]) -> Float[Tensor, " batch"]:
    """Bits that an ideal coder needs for each clip: minus the logarithm of what the generator gives its tokens.

    Args:
        coding: of a generator.
        parts: the clips' sub-tokens.
    """
    lengths = []

    def answer(asked: Asked) -> Tensor:
        truth = parts[asked.part][:, asked.places]
        lengths.append(-asked.chances.gather(-1, truth[..., None])[..., 0].log2().sum(-1))
        return truth

    run(coding, answer)
    return sum(lengths)


def compress(coding: Coding, parts: Sequence[Int[Tensor, "1 tokens"]]) -> np.ndarray:
    """The tokens of one clip as words of 32 bits.

    Args:
        coding: of a generator, for one clip.
        parts: the clip's sub-tokens.
    """
    coder = stream.queue.RangeEncoder()

    def answer(asked: Asked) -> Tensor:
        truth = parts[asked.part][:, asked.places]
        coder.encode(truth[0].cpu().numpy().astype(np.int32), *_model(asked))
        return truth

    run(coding, answer)
    return coder.get_compressed()


def decompress(coding: Coding, words: np.ndarray) -> Int[Tensor, "1 tokens"]:
    """The tokens that `compress` wrote.

    Args:
        coding: of the same generator, for one clip.
        words: what was written.

    Raises:
        ValueError: something is left over, so these words were not written with this generator.
    """
    coder = stream.queue.RangeDecoder(words.astype(np.uint32))

    def answer(asked: Asked) -> Tensor:
        return torch.from_numpy(coder.decode(*_model(asked)).astype(np.int64))[None].to(asked.places.device)

    tokens = run(coding, answer)
    if not coder.maybe_exhausted():
        raise ValueError(f"{len(words)} words hold more than one clip: they were not written with this generator.")
    return tokens


def _model(asked: Asked) -> tuple[stream.model.Categorical, np.ndarray]:
    """What the coder is told: categorical distributions, one for each place."""
    return stream.model.Categorical(perfect=False), asked.chances[0].float().cpu().contiguous().numpy()
