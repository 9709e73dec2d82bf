"""StyleGAN2's generator: sizes, the layout of checkpoints, and what the port that writes these computes.

The figures are those of rosinality/stylegan2-pytorch (bef283a), run in float32 on the CPU with weights of `filled`.
"""

import pytest
import torch

from lightning_modules.hd_vila.generator import StyleGenerator, load_stylegan, read_stylegan
from lightning_modules.metrics.compute import count_parameters
from tests.hd_vila.reference import filled

PICTURE = [0.38975638, 0.46499863, 0.77741408, 0.68707192, -0.55542374, -0.34609431]  # every 37th value
DEVIATION = 0.51210046
GRADIENTS = {  # norms, of the mean of all squares
    "input.input": 0.00021413929,
    "conv1.conv.weight": 0.0033081986,
    "convs.0.conv.modulation.weight": 0.00023568823,
    "convs.1.noise.weight": 5.2034484e-05,
    "to_rgbs.0.conv.weight": 0.01016278,
}
WIDTHS = [512, 512, 512, 512, 512, 256, 128, 64, 32]


def test_the_parameters_of_1024_pixels_are_nvidias_without_the_mapping():
    """30,370,060 with eight layers of 512 x 512 that draw codes."""
    with torch.device("meta"):
        generator = StyleGenerator(size=1024, style_dim=512, widths=WIDTHS)
    assert generator.codes == 18 and generator.start == 4
    assert count_parameters(generator) + 8 * (512 * 512 + 512) == 30_370_060


def test_it_draws_what_the_port_draws():
    generator = StyleGenerator(size=8, style_dim=512, widths=[512, 512])
    weights = {name: x for name, x in generator.state_dict().items() if not name.endswith("kernel")}
    generator.load_state_dict(filled(weights), strict=False)
    codes = torch.cos(0.3 * torch.arange(2 * 4 * 512, dtype=torch.float64)).reshape(2, 4, 512).float()
    picture = generator(codes)
    picture.square().mean().backward()
    assert picture.shape == (2, 3, 8, 8)
    assert picture.flatten()[::37][:6].tolist() == pytest.approx(PICTURE, rel=1e-5)
    assert picture.std().item() == pytest.approx(DEVIATION, rel=1e-5)
    found = {name: x.grad.norm().item() for name, x in generator.named_parameters() if name in GRADIENTS}
    assert found == pytest.approx(GRADIENTS, rel=1e-5)


def test_a_checkpoint_is_loaded_whole_but_for_what_draws_codes(tmp_path):
    generator, other = (StyleGenerator(size=8, style_dim=16, widths=[8, 4]) for _ in range(2))
    state = generator.state_dict()
    path = tmp_path / "stylegan.pt"
    torch.save({"g_ema": {**state, "style.1.weight": torch.ones(16, 16)}, "latent_avg": torch.ones(16)}, path)
    load_stylegan(other, read_stylegan(path))
    codes = torch.randn(2, 4, 16)
    assert torch.equal(other(codes), generator(codes))
    with pytest.raises(ValueError, match=r"the StyleGAN2 generator.*convs\.0"):
        load_stylegan(StyleGenerator(size=8, style_dim=16, widths=[8, 8]), read_stylegan(path))
    torch.save(state, path)
    with pytest.raises(ValueError, match="expected a mapping with an entry g_ema"):
        read_stylegan(path)


def test_sizes_that_are_no_power_of_two_times_the_first_are_refused():
    with pytest.raises(ValueError, match=r"size \(30\) must be a multiple of 4: widths has 3 levels"):
        StyleGenerator(size=30, style_dim=16, widths=[8, 8, 8])
