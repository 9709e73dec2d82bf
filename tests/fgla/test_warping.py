"""Warping: closed forms, and one resampling for many steps."""

import pytest
import torch

from lightning_modules.fgla.warping import accumulate, animated, further, mirrored, warp


def constant(x, y, batch=2, size=8):
    return torch.tensor([float(x), float(y)]).view(1, 2, 1, 1).expand(batch, 2, size, size).contiguous()


@pytest.fixture
def image():
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_no_flow_changes_nothing(image):
    assert torch.equal(warp(image, constant(0, 0)), image)


@pytest.mark.parametrize(("x", "y"), [(1, 0), (0, -2), (-3, 2)])
def test_whole_pixels_are_a_roll_but_at_the_borders(image, x, y):
    inside = (slice(None), slice(None), slice(3, 5), slice(3, 5))
    assert torch.equal(warp(image, constant(x, y))[inside], image.roll((-y, -x), (2, 3))[inside])


def test_half_a_pixel_is_the_mean_of_two(image):
    found = warp(image, constant(0.5, 0))
    torch.testing.assert_close(found[..., :-1], (image[..., :-1] + image[..., 1:]) / 2)


def test_it_is_what_grid_sample_computes(image):
    flow = 6 * torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    at = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="xy"), -1) + flow.permute(0, 2, 3, 1)
    expected = torch.nn.functional.grid_sample(
        image, at * (2 / 7) - 1, mode="bilinear", padding_mode="reflection", align_corners=True
    )
    torch.testing.assert_close(warp(image, flow), expected, atol=1e-5, rtol=1e-5)


def test_its_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    image = torch.rand(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    flow = (0.7 * torch.randn(1, 2, 4, 4, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(warp, (image, flow))


def test_beyond_the_borders_a_picture_is_mirrored():
    at = torch.tensor([[[-1.0, -3.5, 0.0, 3.0, 4.0, 6.0, 7.5]]])
    assert mirrored(at, 4).flatten().tolist() == [1.0, 2.5, 0.0, 3.0, 2.0, 0.0, 1.5]
    assert mirrored(at, 1).abs().max() == 0


def test_constant_flows_add_up():
    flows = torch.stack([constant(1, 0), constant(0.5, -1), constant(-2, 0.25)], 1)
    totals = accumulate(flows)
    torch.testing.assert_close(totals[:, -1], constant(-0.5, -0.75))
    torch.testing.assert_close(further(constant(1, 2), constant(3, 4)), constant(4, 6))


def test_many_steps_blur_once_where_frame_by_frame_they_blur_again_and_again():
    """With half pixels, back and forth, the picture comes back; warped frame by frame it is a mean of many pixels."""
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    flows = torch.stack([constant(0.5, 0), constant(-0.5, 0)] * 4, 1)
    inside = (Ellipsis, slice(None), slice(3, 5))
    at_once, by_frame = (animated(image, flows, by_frame=way)[:, :, -1] for way in (False, True))
    torch.testing.assert_close(at_once[inside], image[inside])
    assert (by_frame - image)[inside].abs().mean() > 0.1
    torch.testing.assert_close(animated(image, flows)[:, :, 0], animated(image, flows, by_frame=True)[:, :, 0])
