"""The schedule of the official code: a linear stretch, then a linear warm-up, then half a cosine."""

import math

from lightning_modules.base import Schedule


def pre_warmup_cosine(
    *,
    peak: float,
    start: float,
    end: float,
    warmup_steps: int,
    decay_steps: int,
    pre_warmup_steps: int = 0,
    pre_warmup_start: float = 0.0,
) -> Schedule:
    """The factor on `peak` at each step.

    Args:
        peak: the highest rate.
        start: at the beginning of the warm-up.
        end: at the end of the cosine, and after it.
        warmup_steps: of the warm-up.
        decay_steps: of warm-up and cosine together; they begin after `pre_warmup_steps`, so that the cosine ends later
            by as many steps.
        pre_warmup_steps: of a first stretch from `pre_warmup_start` to `start`.
        pre_warmup_start: see there.

    Raises:
        ValueError: the warm-up is longer than warm-up and cosine together.
    """
    if warmup_steps > decay_steps:
        raise ValueError(f"a warm-up of {warmup_steps} steps does not fit into {decay_steps}: shorten it.")

    def factor(step: int) -> float:
        if step < pre_warmup_steps:
            return (pre_warmup_start + (start - pre_warmup_start) * step / pre_warmup_steps) / peak
        done = step - pre_warmup_steps
        if done < warmup_steps:
            return (start + (peak - start) * done / warmup_steps) / peak
        progress = min(1.0, (done - warmup_steps) / max(1, decay_steps - warmup_steps))
        return (end + (peak - end) * 0.5 * (1 + math.cos(math.pi * progress))) / peak

    return factor
