"""Batches of one length: each step has one task (alternating gradient descent, Akbari et al., 2305.06324).

Tasks of other lengths take turns from step to step, so that nothing is padded. The control puts tasks of all lengths
into one batch and pads it to the longest (`padded`).
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lightning_modules.sequences.layout import Batch


class Phase(NamedTuple):
    """A stretch of a training with weights of its own.

    Attributes:
        until: share of all steps at which it ends.
        weights: of the tasks, in proportion to how often each is drawn.
    """

    until: float
    weights: Mapping[str, float]


class Alternation:
    """Which task each step has: a function of the seed and the step alone, so that a training resumes exactly.

    Args:
        phases: one after another; the last ends with the training.
        seed: of the order.

    Raises:
        ValueError: the phases do not end one after another, the last with the training, or one of them draws nothing.
    """

    def __init__(self, phases: Sequence[Phase], seed: int = 0):
        ends = [0.0, *(phase.until for phase in phases)]
        if any(after <= before for before, after in pairwise(ends)) or ends[-1] != 1:
            raise ValueError(
                f"phases end at {ends[1:]} of the training, expected growing shares of which the last is 1."
            )
        for phase in phases:
            if not phase.weights or min(phase.weights.values()) < 0 or not sum(phase.weights.values()):
                raise ValueError(
                    f"the weights of a phase are {dict(phase.weights)}, expected some above 0, none below."
                )
        self.phases, self.seed = tuple(phases), seed

    def task(self, step: int, steps: int) -> str:
        """That of a step.

        Args:
            step: from 0 on.
            steps: of the whole training.
        """
        phase = next((phase for phase in self.phases if step < phase.until * steps), self.phases[-1])
        names, sums = list(phase.weights), list(accumulate(phase.weights.values()))
        draw = np.random.Generator(np.random.Philox(key=[self.seed, step])).random() * sums[-1]
        return names[next(number for number, above in enumerate(sums) if draw < above)]


def two_phases(
    images: Mapping[str, float], videos: Mapping[str, float], *, turn: float = 0.25, first: float = 0.9
) -> list[Phase]:
    """Images mostly at first, then videos (VideoPoet, section 3.4: 90 % in a quarter of the steps, then 10 %).

    Where there are tasks of one kind alone, these are all that is learnt.

    Args:
        images: weights of the tasks that write images, among one another.
        videos: of those that write videos or sounds.
        turn: share of the steps after which videos come to the fore; 0 to begin so.
        first: share of images before that, and of videos after it.
    """

    def mixed(share: float) -> dict[str, float]:
        parts = [(images, share), (videos, 1 - share)] if images and videos else [(images or videos, 1.0)]
        return {name: part * weight / sum(each.values()) for each, part in parts for name, weight in each.items()}

    late = Phase(1.0, mixed(1 - first))
    return [Phase(turn, mixed(first)), late] if turn else [late]


def padded(batches: Iterable[Batch], pad: int) -> Batch:
    """Sequences of several layouts as one batch, filled up to the longest.

    Args:
        batches: each of one layout.
        pad: the id that fills up.

    Raises:
        ValueError: some have features of texts and others have none.
    """
    batches = list(batches)
    if len({batch.features is None for batch in batches}) > 1:
        raise ValueError("some sequences have features of texts and others have none: give features to all.")
    longest = max(batch.ids.shape[1] for batch in batches)
    some = batches[0].ids
    return Batch(
        ids=torch.cat([_filled(batch.ids, longest, pad) for batch in batches]),
        places=torch.cat([_filled(batch.places.expand(len(batch.ids), -1), longest, 0) for batch in batches]),
        prefix=torch.cat([some.new_full((len(batch.ids),), batch.prefix) for batch in batches]),
        lengths=torch.cat([some.new_full((len(batch.ids),), batch.ids.shape[1]) for batch in batches]),
        features=None if batches[0].features is None else torch.cat([batch.features for batch in batches]),
    )


def _filled(x: Int[Tensor, "batch length"], length: int, value: int) -> Int[Tensor, "batch longest"]:
    return torch.nn.functional.pad(x, (0, length - x.shape[1]), value=value)
