"""Whether experts divide their work by kinds of input, from how a router spreads each kind (numpy in, no torch)."""

import numpy as np
from jaxtyping import Float


def mutual_information(shares: Float[np.ndarray, "kinds experts"]) -> float:
    """Bits that the expert of a token tells about its kind, all kinds being as frequent as one another.

    0 where every kind is spread alike, and log2 of the kinds where no expert sees two of them.

    Args:
        shares: of each kind, how it is spread over the experts; a row sums to 1.

    Raises:
        ValueError: a row does not sum to 1, or a share is negative.
    """
    shares = np.asarray(shares, np.float64)
    if (shares < 0).any() or not np.allclose(shares.sum(1), 1, atol=1e-4):
        raise ValueError(
            f"shares have the sums {shares.sum(1).tolist()}, expected rows that are not negative and sum to 1."
        )
    return float(entropy(shares.mean(0)) - np.mean([entropy(row) for row in shares]))


def entropy(shares: Float[np.ndarray, " experts"]) -> float:
    """Of one distribution, in bits."""
    there = shares[shares > 0]
    return float(-(there * np.log2(there)).sum())
