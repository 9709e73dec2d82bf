import os
from pathlib import Path

import pytest

from lightning_modules.datasets.download import MIRROR_VARIABLE


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The folder of published data that `REPRISE_MIRROR` names."""
    if MIRROR_VARIABLE not in os.environ:
        pytest.skip(f"{MIRROR_VARIABLE} names no folder with published data")
    return Path(os.environ[MIRROR_VARIABLE])


@pytest.fixture(scope="session")
def nlg_eval(mirror):
    """The example of nlg-eval: sentences and references, whose scores its README prints."""
    folder = mirror / "caption-metric-oracles"
    said, *known = ((folder / f"{name}.txt").read_text().splitlines() for name in ("hyp", "ref1", "ref2"))
    return dict(enumerate(said)), {number: list(each) for number, each in enumerate(zip(*known, strict=True))}
