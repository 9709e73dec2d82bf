"""Convolutional classifiers: a three-layer one for small images, and wide residual networks."""

from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class SmallConvNet(nn.Module):
    """Three 3x3 convolutions of `width`, `2 width` and `2 width` channels (strides 2, 2, 1), pooled and classified.

    Its cost grows with the square of the width, which makes a ladder of widths a family of classifiers.
    """

    def __init__(self, in_channels: int, width: int, num_classes: int):
        super().__init__()
        self.features = nn.Sequential(
            _convolution(in_channels, width, stride=2),
            _convolution(width, 2 * width, stride=2),
            _convolution(2 * width, 2 * width, stride=1),
        )
        self.classifier = nn.Linear(2 * width, num_classes)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits, for images of any size."""
        return self.classifier(self.features(images).mean((2, 3)))


def _convolution(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class PreActivationBlock(nn.Module):
    """Two 3x3 convolutions, each after BN-ReLU; a 1x1 shortcut from the activated input where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = None
        if in_channels != out_channels or stride != 1:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, features: Float[Tensor, "batch i height width"]) -> Float[Tensor, "batch o h w"]:
        """The residual path carries raw features, except through a shortcut."""
        activated = F.relu(self.norm1(features))
        residual = features if self.shortcut is None else self.shortcut(activated)
        return residual + self.conv2(F.relu(self.norm2(self.conv1(activated))))


class WideResNet(nn.Module):
    """Wide residual network WRN-`depth`-`widen_factor` for 32x32 images (Zagoruyko and Komodakis, 1605.07146, Table 1).

    Three groups of `(depth - 4) / 6` pre-activation blocks with 16k, 32k and 64k channels; no dropout.

    Raises:
        ValueError: the depth is not 6 n + 4.
    """

    def __init__(self, depth: int, widen_factor: int, num_classes: int):
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth ({depth}) of a WideResNet must be 6 n + 4 with n >= 1: 10, 16, 22, 28, 40.")
        channels = [16, 16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        self.stem = nn.Conv2d(3, channels[0], 3, padding=1, bias=False)
        self.groups = nn.Sequential(
            *(
                _group(i, o, stride, num_blocks=(depth - 4) // 6)
                for (i, o), stride in zip(pairwise(channels), (1, 2, 2), strict=True)
            )
        )
        self.norm = nn.BatchNorm2d(channels[-1])
        self.classifier = nn.Linear(channels[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Logits, for images of any size."""
        features = F.relu(self.norm(self.groups(self.stem(images))))
        return self.classifier(features.mean((2, 3)))


def _group(in_channels: int, out_channels: int, stride: int, num_blocks: int) -> nn.Sequential:
    others = (PreActivationBlock(out_channels, out_channels, stride=1) for _ in range(num_blocks - 1))
    return nn.Sequential(PreActivationBlock(in_channels, out_channels, stride), *others)
