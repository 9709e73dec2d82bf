import torch
from torch import nn

from lightning_modules.layers.mlp import MLP


def test_equals_a_sequence_of_linear_layers():
    mlp = MLP(in_features=18, width=5, depth=2, num_classes=4)
    first, second, last = mlp.layers
    plain = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), last)
    images = torch.randn(7, 2, 3, 3)
    torch.testing.assert_close(mlp(images), plain(images))


def test_depth_counts_hidden_layers():
    mlp = MLP(in_features=64, width=16, depth=5, num_classes=10)
    assert [tuple(layer.weight.shape) for layer in mlp.layers] == [(16, 64), *[(16, 16)] * 4, (10, 16)]


def test_signals_keep_their_size_through_depth():
    torch.manual_seed(0)
    images = torch.randn(256, 1, 16, 16)
    assert 0.3 < MLP(in_features=256, width=64, depth=10, num_classes=64)(images).std() < 3
