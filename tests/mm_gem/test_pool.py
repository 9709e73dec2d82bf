"""PoolAggregator against plain average pooling, and against bilinear samples of `torch`."""

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.mm_gem.pool import PoolAggregator, bin_weights

SIDE, DIM = 8, 6
WHOLE = [0.0, 0.0, 1.0, 1.0]


@pytest.fixture
def features():
    return torch.randn(3, SIDE**2, DIM, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("grid", [1, 2, 4, 8])
def test_the_whole_picture_is_pooled_as_by_average_pooling_and_is_the_region_of_all(features, grid):
    pool = PoolAggregator(DIM, grid=grid)
    squares = features.transpose(1, 2).unflatten(2, (SIDE, SIDE))
    expected = F.adaptive_avg_pool2d(squares, grid).flatten(2).transpose(1, 2)
    found = pool(features)
    assert found.shape == (3, pool.tokens, DIM)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(found, pool(features, torch.tensor([WHOLE] * 3)))


@pytest.mark.parametrize("grid", [1, 2, 3])
def test_a_region_is_the_mean_of_bilinear_samples(features, grid):
    boxes = torch.tensor([[0.1, 0.2, 0.45, 0.9], [0.0, 0.0, 0.05, 0.05], [0.5, 0.5, 1.0, 1.0]])
    samples = -(-SIDE // grid)
    steps = (torch.arange(grid * samples) + 0.5) / (grid * samples)
    x = boxes[:, :1] + (boxes[:, 2:3] - boxes[:, :1]) * steps
    y = boxes[:, 1:2] + (boxes[:, 3:] - boxes[:, 1:2]) * steps
    at = torch.stack([x[:, None].expand(-1, len(steps), -1), y[..., None].expand(-1, -1, len(steps))], -1) * 2 - 1
    squares = features.transpose(1, 2).unflatten(2, (SIDE, SIDE))
    drawn = F.grid_sample(squares, at, mode="bilinear", padding_mode="border", align_corners=False)
    expected = F.avg_pool2d(drawn, samples).flatten(2).transpose(1, 2)
    torch.testing.assert_close(PoolAggregator(DIM, grid=grid)(features, boxes), expected, rtol=1e-4, atol=1e-5)


def test_a_region_of_whole_patches_reads_little_of_the_others():
    features = torch.zeros(1, SIDE, SIDE, 1)
    features[:, :4, :4] = 1
    quadrants = torch.tensor([[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]])
    found = PoolAggregator(1, grid=1)(features.flatten(1, 2).expand(4, -1, -1), quadrants).flatten()
    assert found[0] > 0.85 and found[1:].max() < 0.1


def test_weights_of_a_bin_add_up_to_one():
    weights = bin_weights(torch.tensor([0.0, 0.3]), torch.tensor([1.0, 0.31]), bins=3, cells=7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3))


def test_attention_over_tokens_keeps_their_number_and_learns(features):
    pool = PoolAggregator(DIM, grid=2, refine="attention", heads=2)
    found = pool(features)
    assert found.shape == (3, 4, DIM)
    found.square().sum().backward()
    assert all(parameter.grad is not None for parameter in pool.parameters())
    assert not list(PoolAggregator(DIM, grid=2).parameters())


@pytest.mark.parametrize(
    ("box", "patches", "message"),
    [
        ([0.5, 0.0, 0.5, 1.0], 64, r"box 1 is \[0.5, 0.0, 0.5, 1.0\], expected left < right"),
        ([0.0, 0.0, 1.5, 1.0], 64, "box 1 is"),
        ([0.0, 0.0, float("nan"), 1.0], 64, "box 1 is"),
        (WHOLE, 65, "65 patches make no square"),
    ],
)
def test_boxes_and_maps_that_cannot_be_are_refused(box, patches, message):
    with pytest.raises(ValueError, match=message):
        PoolAggregator(DIM, grid=2)(torch.zeros(2, patches, DIM), torch.tensor([WHOLE, box]))
    with pytest.raises(ValueError, match=r"pool.heads \(4\) must divide the 6 features"):
        PoolAggregator(DIM, grid=2, refine="attention", heads=4)
