"""A trained network as a model of `transformers`: what `PaperModule.to_transformers` gives."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Exported:
    """A trained network as a model of `transformers`.

    Attributes:
        model: with the trained weights.
        statistics: mean and standard deviation of its pictures, per channel, in units of white.
        usage: lines of Python that compute from `model` and `pixels` what our module computes from stored pixels.
        options: what `from_pretrained` of its class has to be given.
    """

    model: "PreTrainedModel"
    statistics: tuple[Sequence[float], Sequence[float]]
    usage: str
    options: dict[str, object] = field(default_factory=dict)
