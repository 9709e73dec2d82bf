"""The networks of FVD, the Inception Score of videos and LPIPS, as far as a user gives their weights."""

import importlib.util
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_modules.metrics import i3d as i3d_file
from lightning_modules.metrics.c3d import c3d as load_c3d
from lightning_modules.metrics.i3d import i3d as load_i3d
from lightning_modules.metrics.video_published import NOT_COMPUTED


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
