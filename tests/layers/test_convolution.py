import pytest
import torch
import torch.nn.functional as F

from lightning_modules.layers.convolution import PreActivationBlock, SmallConvNet, WideResNet


def test_small_conv_net_strides_2_2_1():
    network = SmallConvNet(in_channels=1, width=4, num_classes=10)
    assert network.features(torch.zeros(2, 1, 28, 28)).shape == (2, 8, 7, 7)


def test_identity_block_adds_its_input_unchanged():
    block = PreActivationBlock(4, 4, stride=1).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    features = torch.randn(2, 4, 5, 5)
    assert block(features).equal(features)


def test_shortcut_starts_from_the_activated_input():
    block = PreActivationBlock(4, 8, stride=2).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    features = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(block(features), block.shortcut(F.relu(block.norm1(features))))


@pytest.mark.parametrize("depth", [4, 15, 18])
def test_wide_resnet_refuses_a_depth_that_has_no_whole_blocks(depth):
    with pytest.raises(ValueError, match=rf"depth \({depth}\)"):
        WideResNet(depth, widen_factor=1, num_classes=10)
