"""The files of `conf/`, read once for all tests of a process: each call of Hydra, and each look at all files, costs."""

import functools

from lightning_modules.files import ROOT
from stages import composing
from stages.plan import PRESETS, load_plan


@functools.cache
def read_all() -> None:
    """Read what the plans name. From then on, files of the repository itself are taken as unchanged.

    Tests that change files do so in a folder of their own, which they put in the place of `composing.ROOT`.
    """
    stamp = composing._stamp
    own = stamp()
    composing._stamp = lambda: own if composing.ROOT == ROOT else stamp()
    for plan in map(load_plan, PRESETS):
        composing._read_all(plan, plan.papers)
