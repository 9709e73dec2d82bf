"""Multi-layer perceptron of one width."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn


class MLP(nn.Module):
    """`depth` hidden ReLU layers of the same width, then a linear classifier; images are flattened.

    The weights may carry a leading member axis (see `layers.stack.Stack`): then the images do too, and every member
    sees its own batch.

    Args:
        in_features: values per image (channels x height x width).
        depth: number of hidden layers, so that `depth + 1` matrices are learned.
    """

    def __init__(self, in_features: int, width: int, depth: int, num_classes: int):
        super().__init__()
        sizes = [in_features, *[width] * depth, num_classes]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))
        for layer in self.layers:  # He's: under torch's default some nets of five narrow layers never learn
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, images: Float[Tensor, "*member batch channels height width"]) -> Float[Tensor, "*member batch c"]:
        """Logits; the member axis is there where the weights have it."""
        features = images.flatten(-3)
        for layer in self.layers[:-1]:
            features = _affine(layer, features).relu()
        return _affine(self.layers[-1], features)


def _affine(layer: nn.Linear, x: Float[Tensor, "*member batch i"]) -> Float[Tensor, "*member batch o"]:
    if layer.weight.ndim == 2:
        return layer(x)
    return torch.baddbmm(layer.bias.unsqueeze(1), x, layer.weight.mT)
