"""What the guide of CamViG tells a user to type has the results that it speaks of."""

import numpy as np
import torch

from lightning_modules.camvig.module import CamViG
from lightning_modules.camvig.predictor import Animator
from tests.camvig.test_module import config
from tests.typed import typed


def test_commands_and_python_of_the_guide_have_results(tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    typed("camvig", lambda: Animator(CamViG(**config())), tmp_path, monkeypatch)
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    for name in ("pan-left", "truck-right", "pedestal-up", "dolly-in", "orbit-right"):
        assert {f"films/0-my-picture-{name}-film.mp4", f"films/0-my-picture-{name}-path.npy", f"{name}.mp4"} <= made
    assert {"walks/0-my-picture-walk-film.mp4", "walks/0-my-picture-walk-frames.png"} <= made
    path = np.load(tmp_path / "walks/0-my-picture-walk-path.npy")
    assert path.shape == (4, 6) and (np.diff(path[:, 0]) > 0).all() and not path[:, 1:].any()  # to the right
    assert "truck right" in capsys.readouterr().out
