"""Numbers of generated videos that bear published names: FVD, the Inception Score, LPIPS.

Each belongs to one certain network with its published weights, which are the user's to give (`PublishedNetworks`).
Numbers of other networks have other names (`fvd_world`).
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_modules.metrics import i3d as i3d_file
from lightning_modules.metrics.c3d import c3d as load_c3d
from lightning_modules.metrics.generation import frechet_distance, is_world
from lightning_modules.metrics.i3d import i3d as load_i3d

NOT_COMPUTED = {
    "fvd": "it needs the weights of I3D (Kinetics-400), which are the user's to give (model.published.i3d), and more "
    "than 400 clips of at least 9 frames; fvd_world is no FVD",
    "inception_score": "it needs the weights and the mean of C3D (UCF-101), which are the user's to give "
    "(model.published.c3d and c3d_mean), and clips of 16 frames",
    "lpips": "it needs the package lpips, which brings torchvision (see CONTRIBUTING.md, Dependencies), and "
    "model.published.lpips",
}


class PublishedNetworks:
    """The networks whose weights a user gave; nothing where none were.

    Args:
        i3d: file of the weights of I3D, see `metrics.i3d`.
        c3d: file of those of C3D, see `metrics.c3d`.
        c3d_mean: file of its mean.
        lpips: whether LPIPS is computed, by the package of that name, with AlexNet.
        device: where they run.

    Raises:
        ModuleNotFoundError: LPIPS is asked for and not installed.
        ValueError: a file is not there or not what it should be, or one of C3D's two is missing.
    """

    def __init__(
        self, *, i3d: str | None = None, c3d: str | None = None, c3d_mean: str | None = None, lpips: bool = False,
        device: torch.device | str = "cpu",
    ):  # fmt: skip
        if (c3d is None) != (c3d_mean is None):
            raise ValueError(f"c3d is {c3d} and c3d_mean is {c3d_mean}: C3D needs both files, or give none.")
        self.i3d = load_i3d(Path(i3d)).to(device) if i3d else None
        self.c3d = load_c3d(Path(c3d), Path(c3d_mean)).to(device) if c3d else None
        self.lpips = _lpips().to(device) if lpips else None

    @torch.no_grad()
    def seen(self, video: Float[Tensor, "b 3 frames h w"]) -> dict[str, Float[Tensor, "b _"]]:
        """What I3D (`i3d`) and C3D (`c3d`) see in clips, whose pixels are from 0 to 1."""
        found = {}
        if self.i3d is not None:
            found["i3d"] = i3d_file.features(self.i3d, video)
        if self.c3d is not None:
            found["c3d"] = self.c3d(video)
        return found

    @torch.no_grad()
    def compared(
        self, video: Float[Tensor, "b 3 frames h w"], truth: Float[Tensor, "b 3 frames h w"]
    ) -> dict[str, Float[Tensor, " b"]]:
        """`lpips` of each clip against another, the mean over its frames."""
        if self.lpips is None:
            return {}
        frames = [2 * x.transpose(1, 2).flatten(0, 1) - 1 for x in (video, truth)]
        return {"lpips": self.lpips(*frames).view(len(video), -1).mean(1)}


def _lpips() -> torch.nn.Module:
    if importlib.util.find_spec("lpips") is None:
        raise ModuleNotFoundError(f"model.published.lpips is true, but LPIPS is not there: {NOT_COMPUTED['lpips']}.")
    import lpips

    return lpips.LPIPS(net="alex", verbose=False).eval().requires_grad_(False)


def fvd(
    generated: Float[np.ndarray, "generated features"], real: Float[np.ndarray, "real features"], seed: int = 0
) -> dict[str, float]:
    """Fréchet Video Distance, beside that of one half of the real clips from the other; nothing of too few clips.

    The distance grows as clips get fewer, so `fvd_real`, of half as many, is more than the floor of `fvd`.

    Args:
        generated: features that I3D gives of generated clips.
        real: of real ones.
        seed: of the halves.
    """
    width, found = real.shape[1], {}
    if min(len(generated), len(real)) > width:
        found["fvd"] = frechet_distance(generated, real)
    if len(real) // 2 > width:
        order = np.random.default_rng(seed).permutation(len(real))
        found["fvd_real"] = frechet_distance(*np.array_split(real[order], 2))
    return found


def inception_score(logits: Float[np.ndarray, "samples classes"], parts: int = 1) -> float:
    """Inception Score of clips from the logits of C3D, the mean over equal parts, from 1 to the number of classes.

    Raises:
        ValueError: there are fewer clips than parts.
    """
    if len(logits) < parts:
        raise ValueError(f"{len(logits)} clips cannot be cut into {parts} parts.")
    logits = logits.astype(np.float64)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    odds /= odds.sum(1, keepdims=True)
    return float(np.mean([is_world([part]) for part in np.array_split(odds, parts)]))
