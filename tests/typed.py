"""Types what a guide says in a quick test, with a small predictor in the place of a trained arm."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from lightning_modules import predictors
from lightning_modules.datasets.video.drawn import encode
from stages import predict

ROOT = Path(__file__).parent.parent


def blocks(stem: str, language: str) -> list[str]:
    """The blocks of a language in the guide of a paper."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / f"docs/papers/{stem}.md").read_text(), re.DOTALL)


def typed(stem: str, loaded: Callable[[], predictors.Predictor], folder: Path, monkeypatch) -> None:
    """Runs the commands and the Python of a guide in a folder that has the files which guides speak of.

    `predict` runs in this process, with what is loaded; all other lines run in bash.
    """
    monkeypatch.chdir(folder)
    monkeypatch.setattr(predictors, "load", lambda _: loaded())
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "my-picture.png")
    encode(folder / "my-videos/first.mp4", 8)
    for line in "".join(blocks(stem, "bash")).splitlines():
        if " -m stages.predict " in line:
            monkeypatch.setattr(sys, "argv", ["predict", *line.partition(" -m stages.predict ")[2].split()])
            predict.main()
        else:
            subprocess.run(["bash", "-ec", line], check=True)
    for block in blocks(stem, "python"):
        exec(compile(block, f"docs/papers/{stem}.md", "exec"), {})
