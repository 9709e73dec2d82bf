"""Scores of single frames, of which codecs' studies report the mean."""

import pytest
import torch

from lightning_modules.metrics.frames import AT_ONCE, SMALLEST, frame_scores, ms_ssim
from lightning_modules.metrics.video import psnr
from lightning_modules.metrics.video_networks import PublishedNetworks


def noisy(frames, size):
    draw = torch.Generator().manual_seed(0)
    truth = torch.rand(frames, 3, size, size, generator=draw)
    level = torch.linspace(0.01, 0.2, frames).view(-1, 1, 1, 1)
    return (truth + level * torch.randn(truth.shape, generator=draw)).clamp(0, 1), truth


def test_the_psnr_of_a_video_is_the_mean_over_its_frames():
    video, truth = noisy(AT_ONCE + 2, 16)
    found = frame_scores(video, truth, PublishedNetworks())
    each = [psnr(a[None, :, None], b[None, :, None]).item() for a, b in zip(video, truth, strict=True)]
    assert found == {"psnr": pytest.approx(sum(each) / len(each), rel=1e-5)}


def test_ms_ssim_is_that_of_each_frame_where_frames_are_large_enough():
    video, truth = noisy(2, SMALLEST)
    found = ms_ssim(video, truth)
    assert found[0] > found[1] > 0 and ms_ssim(truth, truth).tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
    assert frame_scores(video, truth, PublishedNetworks())["ms_ssim"] == pytest.approx(found.mean().item(), rel=1e-5)
    with pytest.raises(ValueError, match="frames have 160 x 176 pixels, expected at least 176 each way"):
        ms_ssim(video[..., :160], truth[..., :160])


def test_lpips_is_the_networks():
    video, truth = noisy(3, 8)
    networks = PublishedNetworks()
    networks.lpips = lambda one, other: (one - other).abs().mean((1, 2, 3))
    assert frame_scores(video, truth, networks)["lpips"] == pytest.approx(
        2 * (video - truth).abs().mean().item(), rel=1e-5
    )
