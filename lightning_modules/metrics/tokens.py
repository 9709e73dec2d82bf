"""Numbers reported for tokens: how many of a vocabulary are in use, and what they cost."""

import math

import numpy as np
from jaxtyping import Int


def perplexity(tokens: Int[np.ndarray, "..."]) -> float:
    """How many codes would have the entropy of these tokens if all were used equally often."""
    shares = np.unique(tokens, return_counts=True)[1] / tokens.size
    return float(np.exp(-(shares * np.log(shares)).sum()))


def bits_per_pixel(tokens: int, vocabulary: int, pixels: int) -> float:
    """Bits of tokens that are all written with log2 of the vocabulary, for each pixel of all frames."""
    return tokens * math.log2(vocabulary) / pixels
