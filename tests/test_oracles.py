"""Sizes and costs of published networks, counted on the meta device: a network that is not the paper's is found here.

Figures of EfficientNet, ResNet, MobileNetV2 and ViT: the same count over torchvision's definitions; parameters also as
published. Figures of wide residual networks: counted from their definition (WRN paper, Table 1); 36.5 M parameters of
WRN-28-10 and 11.0 M of WRN-16-8 are published.
"""

import pytest
import torch

from lightning_modules import pretrained
from lightning_modules.layers.convolution import SmallConvNet, WideResNet
from lightning_modules.metrics.compute import count_macs, count_parameters


def on_meta(name):
    with torch.device("meta"):
        return pretrained.load(name)


@pytest.mark.parametrize(
    ("name", "size", "parameters", "giga_macs"),
    [
        ("google/efficientnet-b0", 224, 5_288_548, "0.3858"),
        ("google/efficientnet-b1", 240, 7_794_184, "0.6868"),
        ("google/efficientnet-b2", 260, 9_109_994, "0.9936"),
        ("google/efficientnet-b3", 300, 12_233_232, "1.8271"),
        ("google/efficientnet-b4", 380, 19_341_616, "4.3938"),
        pytest.param("google/efficientnet-b5", 456, 30_389_784, "10.2664", marks=pytest.mark.slow),
        pytest.param("google/efficientnet-b6", 528, 43_040_704, "19.0676", marks=pytest.mark.slow),
        pytest.param("google/efficientnet-b7", 600, 66_347_960, "37.7459", marks=pytest.mark.slow),
        # v1.5: the stride is in the 3x3 convolution
        ("microsoft/resnet-50", 224, 25_557_032, "4.089"),
        ("microsoft/resnet-101", 224, 44_549_160, "7.801"),
        pytest.param("microsoft/resnet-152", 224, 60_192_808, "11.514", marks=pytest.mark.slow),
        ("google/vit-base-patch16-224", 224, 86_567_656, "17.56"),
        ("google/vit-base-patch16-384", 384, 86_859_496, "55.48"),
        pytest.param("google/vit-large-patch16-224", 224, 304_326_632, "61.55", marks=pytest.mark.slow),
        pytest.param("google/vit-large-patch16-384", 384, 304_715_752, "191.07", marks=pytest.mark.slow),
    ],
)
def test_hub_classifiers(name, size, parameters, giga_macs):
    network = on_meta(name)
    digits = len(giga_macs.partition(".")[2])
    assert count_parameters(network) == parameters
    assert f"{count_macs(network, (3, size, size)) / 1e9:.{digits}f}" == giga_macs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "giga_macs"),
    [
        ("google/efficientnet-b1", 300, "1.083"),
        ("google/efficientnet-b2", 380, "1.924"),
        ("google/efficientnet-b3", 456, "4.179"),
        ("google/efficientnet-b4", 600, "10.971"),
        ("google/efficientnet-b5", 600, "17.192"),
        ("google/efficientnet-b6", 600, "24.524"),
    ],
)
def test_second_resolutions_of_self_cascades(name, size, giga_macs):
    assert f"{count_macs(on_meta(name), (3, size, size)) / 1e9:.3f}" == giga_macs


@pytest.mark.parametrize(
    ("multiplier", "size", "giga_macs"),
    [("1.0", 160, "0.1541"), ("1.0", 192, "0.2213"), ("1.0", 224, "0.3008"), ("1.4", 224, "0.5822")],
)
def test_mobilenet_v2(multiplier, size, giga_macs):
    network = on_meta(f"google/mobilenet_v2_{multiplier}_224")
    # The published heads have a 1001st class, background: 1,280 (1,792) MACs and as many parameters plus a bias more
    # than with 1000 classes, which does not show in the printed digits.
    assert network.model.classifier.out_features == 1001
    assert f"{count_macs(network, (3, size, size)) / 1e9:.4f}" == giga_macs


@pytest.mark.parametrize(
    ("depth", "widen_factor", "mega_parameters", "mega_macs"),
    [
        (10, 1, "0.078", "12.5"),
        (10, 2, "0.304", "44.5"),
        (10, 4, "1.199", "166.1"),
        (10, 8, "4.765", "642.2"),
        (10, 10, "7.435", "996.6"),
        (16, 1, "0.175", "26.7"),
        (16, 2, "0.692", "101.1"),
        (16, 4, "2.749", "392.6"),
        (16, 8, "10.961370", "1548.145664"),
        (16, 10, "17.117", "2412.2"),
        (22, 1, "0.272", "40.8"),
        (22, 2, "1.080", "157.7"),
        (22, 4, "4.299", "619.1"),
        (22, 8, "17.158", "2454.1"),
        (22, 10, "26.798", "3827.8"),
        (28, 1, "0.369", "55.0"),
        (28, 2, "1.468", "214.4"),
        (28, 4, "5.849", "845.6"),
        (28, 8, "23.355", "3360.1"),
        (28, 10, "36.479194", "5243.328768"),
        (40, 1, "0.564", "83.3"),
        (40, 2, "2.244", "327.6"),
        (40, 4, "8.949", "1298.6"),
        (40, 8, "35.748", "5172.0"),
        (40, 10, "55.842", "8074.5"),
    ],
)
def test_wide_residual_networks(depth, widen_factor, mega_parameters, mega_macs):
    with torch.device("meta"):
        network = WideResNet(depth, widen_factor, num_classes=10)
    for found, printed in ((count_parameters(network), mega_parameters), (count_macs(network, (3, 32, 32)), mega_macs)):
        assert f"{found / 1e6:.{len(printed.partition('.')[2])}f}" == printed


@pytest.mark.parametrize(
    ("width", "macs"),
    [(4, 49_472), (8, 183_616), (11, 339_790), (16, 705_920), (23, 1_440_766), (32, 2_766_592), (64, 10_952_192)],
)
def test_small_convolutional_networks(width, macs):
    assert count_macs(SmallConvNet(1, width, 10), (1, 28, 28)) == macs
