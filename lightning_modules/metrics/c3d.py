"""C3D, trained on UCF-101, whose answers the Inception Score of videos reads (Tran et al. 2015; Saito et al. 2020).

Weights are the user's to give: `conv3d_deepnetA_ucf.npz` of pfnet-research/tgan2, with Chainer's names, and the mean
clip beside it, `mean2.npz`. Frames are BGR, from 0 to 255, 112 pixels wide, less the mean (c3d_ucf101.py there, and
inception_score.py in google-research/magvit).
"""

import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_modules.layers.published import load_strictly

CLASSES, FRAMES, SIDE, BORDER = 101, 16, 112, 8  # BORDER: pixels at the top and the left of the mean that are cut off
CONVOLUTIONS = {  # channels, and whether maxima follow: of space alone, or of time too
    "conv1a": (3, 64, (1, 2, 2)), "conv2a": (64, 128, (2, 2, 2)),
    "conv3a": (128, 256, None), "conv3b": (256, 256, (2, 2, 2)),
    "conv4a": (256, 512, None), "conv4b": (512, 512, (2, 2, 2)),
    "conv5a": (512, 512, None), "conv5b": (512, 512, (2, 2, 2)),
}  # fmt: skip


class C3D(nn.Module):
    """Eight convolutions and three linear layers, named as in TGAN2's code.

    `width` divides all widths, for tests.
    """

    def __init__(self, classes: int = CLASSES, width: int = 1):
        super().__init__()
        for name, (channels, out, _) in CONVOLUTIONS.items():
            self.add_module(
                name, nn.Conv3d(channels if channels == 3 else channels // width, out // width, 3, padding=1)
            )
        self.fc6 = nn.Linear(512 // width * 16, 4096 // width)
        self.fc7 = nn.Linear(4096 // width, 4096 // width)
        self.fc8 = nn.Linear(4096 // width, classes)
        self.register_buffer("mean", torch.zeros(3, FRAMES, SIDE, SIDE))

    def forward(self, video: Float[Tensor, "b 3 frames h w"]) -> Float[Tensor, "b classes"]:
        """Logits of clips, whose pixels are from 0 to 1.

        Raises:
            ValueError: a clip has another number of frames.
        """
        if video.shape[2] != FRAMES:
            raise ValueError(f"clips have {video.shape[2]} frames, but C3D needs {FRAMES}: IS cannot be computed.")
        frames = F.interpolate(
            video.flip(1).transpose(1, 2).flatten(0, 1), (SIDE, SIDE), mode="bilinear", align_corners=True
        )
        x = 255 * frames.unflatten(0, (-1, FRAMES)).transpose(1, 2) - self.mean
        for name, (_, _, maxima) in CONVOLUTIONS.items():
            x = F.relu(self.get_submodule(name)(x))
            if name == "conv5b":
                x = F.pad(x, (0, 1, 0, 1))  # 7 pixels become 4
            if maxima is not None:
                x = F.max_pool3d(x, maxima, maxima)
        x = F.relu(self.fc7(F.relu(self.fc6(x.flatten(1)))))
        return self.fc8(x)


def c3d(path: Path, mean: Path, width: int = 1) -> C3D:
    """The network with the weights and the mean of files, to be evaluated.

    Args:
        path: the weights.
        mean: the mean clip.
        width: see `C3D`.

    Raises:
        ValueError: a file is not there, is damaged, or has not exactly these weights.
    """
    network = C3D(width=width)
    state = {name.replace("/W", ".weight").replace("/b", ".bias"): x for name, x in _arrays(path).items()}
    means = _arrays(mean)
    if "mean" not in means or means["mean"].ndim < 4:
        raise ValueError(
            f"{mean} has {', '.join(means) or 'nothing'}, expected an array `mean` of channels, frames, pixels."
        )
    cut = slice(BORDER, BORDER + SIDE)
    state["mean"] = means["mean"].reshape(-1, *means["mean"].shape[-3:])[:, :, cut, cut].contiguous()
    load_strictly(network, state, f"the weights of C3D in {path}")
    return network.eval().requires_grad_(False)


def _arrays(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name].astype(np.float32)) for name in file.files}
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: fetch it, or correct its path in conf/.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no npz file of arrays, or is damaged: fetch it again. ({error})") from error
