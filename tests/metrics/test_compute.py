import pytest
import torch
from torch import nn

from lightning_modules.metrics.compute import count_macs, count_parameters, latency


def test_convolution_by_hand():
    # 32 x 32 places, 3 x 3 x 3 inputs, 16 outputs; the bias is free
    assert count_macs(nn.Conv2d(3, 16, 3, padding=1), (3, 32, 32)) == 442_368


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)

    def forward(self, images):
        tokens = images.flatten(1, 2)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


@pytest.mark.parametrize("training", [True, False])
def test_attention_by_hand(training):
    tokens, dim = 50, 64
    expected = 4 * tokens * dim * dim + 2 * tokens * tokens * dim
    assert expected == 1_139_200
    with torch.no_grad():  # the fused path, which the counter does not see, would be taken here
        assert count_macs(Attention().train(training), (5, 10, 64)) == expected


def test_counting_leaves_the_module_as_it_was():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {key: x.clone() for key, x in module.state_dict().items()}
    count_macs(module, (3, 8, 8))
    assert module.training
    assert all(x.equal(before[key]) for key, x in module.state_dict().items())


def test_parameters_include_biases_but_no_running_statistics():
    assert count_parameters(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))) == 3 * 4 + 4 + 2 * 4


def test_latency_grows_with_the_batch():
    times = latency(nn.Conv2d(3, 32, 5), torch.zeros(3, 64, 64), batch_sizes=[1, 32])
    assert 0 < times[1] < times[32]
