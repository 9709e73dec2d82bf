"""FVD, the Inception Score and LPIPS: their formulas, and what is said where they cannot be computed."""

import importlib.util

import numpy as np
import pytest
import torch

from lightning_modules.metrics.video_networks import PublishedNetworks
from lightning_modules.metrics.video_published import fvd, inception_score
from lightning_modules.video_tokens.evaluation import not_computed, published


def test_fvd_is_the_frechet_distance_of_all_clips_beside_that_of_the_halves_of_the_real_ones():
    """Of Gaussians with one spread in each direction: |3 - 0|^2 in four features, and no distance of the real ones."""
    draw = np.random.default_rng(0)
    real, made = draw.normal(size=(4000, 4)), 3 + draw.normal(size=(2000, 4))
    found = fvd(made, real)
    assert found["fvd"] == pytest.approx(36, rel=0.03) and 0 < found["fvd_real"] < 0.05
    wide = fvd(2 * draw.normal(size=(4000, 1)), real[:, :1])
    assert wide["fvd"] == pytest.approx(1, rel=0.1)  # (2 - 1)^2


def test_of_too_few_clips_there_is_no_fvd():
    draw = np.random.default_rng(0)
    assert fvd(draw.normal(size=(8, 8)), draw.normal(size=(20, 8))).keys() == {"fvd_real"}
    assert fvd(draw.normal(size=(9, 8)), draw.normal(size=(9, 8))).keys() == {"fvd"}


def test_the_inception_score_counts_what_is_clear_and_different():
    sure = 50 * np.eye(4)[np.arange(40) % 4]
    assert inception_score(sure) == pytest.approx(4)
    assert inception_score(sure, parts=2) == pytest.approx(4)
    assert inception_score(np.zeros((40, 4))) == pytest.approx(1)
    assert inception_score(50 * np.eye(4)[np.zeros(40, int)]) == pytest.approx(1)
    half = np.log([[0.75, 0.25], [0.25, 0.75]])
    assert inception_score(half) == pytest.approx(np.exp(np.log(2) + 0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    with pytest.raises(ValueError, match="2 clips cannot be cut into 10 parts"):
        inception_score(half, parts=10)


def test_without_files_nothing_is_computed_and_the_reasons_are_told():
    networks = PublishedNetworks()
    assert networks.seen(torch.zeros(1, 3, 16, 8, 8)) == networks.compared(*[torch.zeros(1, 3, 16, 8, 8)] * 2) == {}
    reasons = not_computed({0: {"ucf101/cg/fvd_world": 1.0}})
    assert reasons.keys() == {"fvd", "inception_score", "lpips"} and "model.published.i3d" in reasons["fvd"]
    assert not_computed({0: {"ucf101/cg/fvd": 1.0, "ucf101/cg/fvd_real": 1.0}}).keys() == {"inception_score", "lpips"}


def test_what_the_networks_saw_becomes_numbers():
    draw = np.random.default_rng(0)
    made = {"i3d": draw.normal(size=(30, 4)), "c3d": 50 * np.eye(4)[np.arange(30) % 4], "lpips": np.array([0.1, 0.3])}
    found = published({"i3d/real": draw.normal(size=(30, 4))}, made)
    assert found.keys() == {"fvd", "fvd_real", "inception_score", "lpips"}
    assert found["lpips"] == pytest.approx(0.2) and found["inception_score"] == pytest.approx(4, rel=0.01)
    assert published({}, dict.fromkeys(made)) == {}


def test_networks_that_cannot_be_had_are_refused():
    with pytest.raises(ValueError, match=r"c3d is weights.npz and c3d_mean is None: C3D needs both files"):
        PublishedNetworks(c3d="weights.npz")
    with pytest.raises(ValueError, match=r"i3d.pt does not exist"):
        PublishedNetworks(i3d="i3d.pt")
    if importlib.util.find_spec("lpips") is None:
        with pytest.raises(ModuleNotFoundError, match=r"model.published.lpips is true, but LPIPS is not there"):
            PublishedNetworks(lpips=True)
