"""Encoder and generator: sizes of embeddings, bounds of flows, and what an embedding can say where."""

import pytest
import torch

from lightning_modules.fgla.network import Appearance, MotionEncoder, MotionGenerator, Refinement, resized

ENCODER = {"size": 16, "widths": [8, 8], "sees": ["flow"], "grid": 4, "code_dim": 2, "variational": False}
GENERATOR = {"size": 16, "widths": [8, 8, 8], "blocks": 1, "code_dim": 2, "injection": "concat", "reach": 0.125,
             "mask": True}  # fmt: skip


@pytest.mark.parametrize(("grid", "code_dim"), [(1, 32), (2, 8), (4, 2)])
def test_embeddings_of_one_size_are_one_vector_or_a_grid(grid, code_dim):
    encoder = MotionEncoder(**ENCODER | {"grid": grid, "code_dim": code_dim})
    code = encoder(torch.randn(3, 2, 16, 16))
    assert code.mean.shape == (3, code_dim, grid, grid) and code.mean[0].numel() == 32 and code.logvar is None


def test_an_embedding_on_a_grid_says_where_and_one_vector_does_not():
    """A change of the flow in the left half leaves the right column of a grid as it is, but for the encoder's reach."""
    torch.manual_seed(0)
    flow = torch.randn(1, 2, 64, 64)
    other = flow.clone()
    other[..., :8] += 1
    for grid, kept in ((4, True), (1, False)):
        torch.manual_seed(0)
        encoder = MotionEncoder(**ENCODER | {"size": 64, "grid": grid})
        for part in encoder.modules():
            if isinstance(part, torch.nn.GroupNorm):
                part.forward = lambda x: x  # it sees all places
        one, two = encoder(flow).mean, encoder(other).mean
        assert torch.equal(one[..., -1], two[..., -1]) == kept
        assert not torch.equal(one[..., 0], two[..., 0])


def test_one_vector_says_where_if_it_is_made_of_all_places_and_not_of_their_mean():
    """Features that are moved to other places leave their mean as it is."""
    features, told = torch.randn(1, 8, 4, 4), {}
    for pooling in ("mean", "linear"):
        encoder = MotionEncoder(**ENCODER | {"grid": 1, "code_dim": 5, "pooling": pooling})
        one, moved = (encoder.head(encoder.pool(x)) for x in (features, features.flip(-1)))
        assert one.shape == (1, 5, 1, 1)
        told[pooling] = not torch.allclose(one, moved, atol=1e-5)
    assert told == {"mean": False, "linear": True}


@pytest.mark.parametrize("injection", ["concat", "spade"])
@pytest.mark.parametrize("mask", [False, True])
def test_flows_stay_within_their_reach_and_follow_the_embedding(injection, mask):
    torch.manual_seed(0)
    generator = MotionGenerator(**GENERATOR | {"injection": injection, "mask": mask})
    with torch.no_grad():
        generator.head.weight.mul_(100)
    picture = torch.rand(2, 3, 16, 16)
    one, two = (generator(picture, torch.randn(2, 2, 4, 4)) for _ in range(2))
    assert one.shape == (2, 2, 16, 16) and one.abs().max() <= 2 and one.abs().max() > 1
    assert not torch.allclose(one, two)


def test_flows_keep_their_digits_in_mixed_precision():
    generator = MotionGenerator(**GENERATOR)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert generator(torch.rand(1, 3, 16, 16), torch.randn(1, 2, 4, 4)).dtype == torch.float32


def test_the_bound_of_animating_landscape():
    """Card: tanh / 64 in units of half a picture is 255/2/64 pixels of 256: within one part in 255 of 256/128."""
    with torch.device("meta"):
        generator = MotionGenerator(**GENERATOR | {"size": 256, "reach": 1 / 128})
    assert generator.reach == pytest.approx(255 / 2 / 64, rel=1 / 254)


def test_sizes_on_the_meta_device():
    with torch.device("meta"):
        encoder = MotionEncoder(size=256, widths=[64, 128, 256, 256], sees=["flow", "frames"], grid=8, code_dim=8,
                                variational=True)  # fmt: skip
        code = encoder(torch.empty(1, 8, 256, 256))
    assert code.mean.shape == code.logvar.shape == (1, 8, 8, 8) and code.mean.numel() == 512
    expected = sum(a * b * 16 + 3 * b for a, b in ((8, 64), (64, 128), (128, 256), (256, 256))) + 256 * 16 + 16
    assert sum(p.numel() for p in encoder.parameters()) == expected


def test_codes_are_resized_bilinearly():
    code = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(code, size=16, mode="bilinear", align_corners=False)
    torch.testing.assert_close(resized(code, 16), expected)
    assert torch.equal(resized(code[..., :1, :1], 5), code[..., :1, :1].expand(2, 3, 5, 5))


def test_what_finishes_frames_changes_nothing_at_first():
    frame = torch.rand(2, 3, 16, 16)
    assert torch.equal(Refinement(width=4)(frame, torch.randn(2, 2, 16, 16)), frame)
    appearance = Appearance(width=4, code_dim=3)
    assert torch.equal(appearance(frame, appearance.encode(frame, frame.flip(0))), frame)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"grid": 3}, r"encoder\.grid is 3, but 2 stages that halve 16 pixels leave 4: the grid must divide that"),
        ({"grid": 8}, r"encoder\.grid is 8"),
        ({"widths": [8] * 5}, r"5 stages that halve 16 pixels leave 0\.5"),
        ({"sees": []}, r"encoder\.sees is \[\], expected one or more of flow, frames and own"),
        ({"sees": ["flow", "flow"]}, r"expected one or more"),
    ],
)
def test_encoders_that_cannot_be_built_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        MotionEncoder(**ENCODER | changed)
