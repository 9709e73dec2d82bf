"""Zero-shot classes: the vector of a class is the mean of those of several texts about it, with length 1 again."""

from collections.abc import Callable, Sequence
from itertools import product

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lightning_modules.datasets.world.quadrants import WORDS


def class_vectors(
    embed: Callable[[Sequence[str]], Float[Tensor, "texts dim"]], prompts: Sequence[Sequence[str]]
) -> Float[Tensor, "classes dim"]:
    """Vectors of length 1 of classes, as CLIP's prompt ensemble; the most similar class of a picture is the answer.

    Args:
        embed: gives vectors of length 1 of texts.
        prompts: texts about each class, as many of each.

    Raises:
        ValueError: there are no texts, or more of one class than of another.
    """
    counts = {len(texts) for texts in prompts}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"classes have {sorted(counts)} texts, expected some, and as many of each.")
    vectors = embed([text for texts in prompts for text in texts]).unflatten(0, (len(prompts), -1))
    return F.normalize(vectors.mean(1), dim=-1)


def prompts_about(name: str) -> list[list[str]]:
    """For each value of an attribute of the drawn world the phrases of all things that have it: "large red circle"."""
    looks = [dict(zip(WORDS, words, strict=True)) for words in product(*WORDS.values())]
    return [[" ".join(look.values()) for look in looks if look[name] == word] for word in WORDS[name]]
