import importlib.util

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from lightning_modules.metrics import generation
from lightning_modules.metrics.generation import fd_world, frechet_distance, match_objects, scene_agreement


def features(samples=400, width=12, seed=0, mean=0.0, scale=1.0):
    rng = np.random.default_rng(seed)
    return (mean + scale * rng.normal(size=(samples, width)) @ rng.normal(size=(width, width))).astype(np.float32)


def through_scipy(one, other):
    (a, c), (b, d) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (one.astype(float), other.astype(float)))
    return ((a - b) ** 2).sum() + np.trace(c + d - 2 * sqrtm(c @ d).real)


class Same(torch.nn.Module):
    """A network whose features are the picture itself."""

    num_features = 12

    def forward(self, images):
        return images.flatten(1).double()


def test_as_scipy_and_torchmetrics_compute_it():
    one, other = features(seed=1), features(seed=2, mean=0.3, scale=1.4)
    assert frechet_distance(one, other) == pytest.approx(through_scipy(one, other), rel=1e-9)
    pictures = [torch.randint(0, 256, (64, 3, 2, 2), generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    pictures[1] = pictures[1] // 2
    metric = FrechetInceptionDistance(Same())
    for number, batch in enumerate(pictures):
        metric.update(batch.byte(), real=number == 0)
    theirs = float(metric.compute())
    ours = frechet_distance(*(batch.flatten(1).double().numpy() for batch in pictures))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_closed_forms():
    one = features()
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(one, one + np.float32(2)) == pytest.approx(4 * 12, rel=1e-5)  # a shift: its square
    spread = np.trace(np.cov(one.astype(float), rowvar=False))
    assert frechet_distance(one, 3 * one) == pytest.approx(
        (3 - 1) ** 2 * spread + 4 * (one.mean(0) ** 2).sum(), rel=1e-5
    )
    a, b = (np.random.default_rng(s).normal(size=(500, 1)) * (s + 1) for s in (0, 1))
    assert frechet_distance(a, b) == pytest.approx((a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 3))
def test_symmetric_not_negative_and_free_of_the_axes(seed, width, dead):
    one, other = (features(40, width, seed + s, mean=s) for s in (0, 1))
    one, other = (np.pad(x, ((0, 0), (0, dead))) for x in (one, other))  # constant features: singular covariances
    found = frechet_distance(one, other)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(width + dead, width + dead)))[0]
    assert found >= 0 and found == pytest.approx(frechet_distance(other, one), rel=1e-7, abs=1e-9)
    assert found == pytest.approx(frechet_distance(one @ rotation, other @ rotation), rel=1e-5, abs=1e-6)


def test_a_distance_that_would_mean_nothing_is_refused():
    with pytest.raises(ValueError, match=r"12 samples are too few .* 12 features.*at least 13"):
        frechet_distance(features(12), features())
    with pytest.raises(ValueError, match="there are 12 and 8"):
        frechet_distance(features(), features(width=8))
    with pytest.raises(ValueError, match="hold NaN"):
        frechet_distance(np.where(np.eye(400, 12) > 0, np.nan, features()), features())
    with pytest.raises(ValueError, match="all features are constant"):
        frechet_distance(np.full((40, 3), 0.5), np.full((50, 3), 0.7))


def test_samples_that_are_all_alike_are_far_from_real_ones():
    real, alike = features(width=3), np.full((40, 3), 0.5, np.float32)
    expected = ((real.mean(0) - 0.5) ** 2).sum() + np.trace(np.cov(real, rowvar=False))
    assert frechet_distance(alike, real) == pytest.approx(expected, rel=1e-4)


def test_the_floor_stands_beside_the_distance_at_the_same_size():
    real = features(2000, seed=5)
    perfect, shifted = (fd_world(made, real) for made in (real[:1500], real[:1500] + np.float32(1)))
    assert perfect["fd_world_samples"] == 1000
    assert perfect["fd_world_real"] == shifted["fd_world_real"] > 0
    assert shifted["fd_world"] > 10 * shifted["fd_world_real"]
    assert fd_world(real[:600], real)["fd_world_samples"] == 600
    assert fd_world(real[:600], real)["fd_world_real"] > perfect["fd_world_real"]  # fewer samples, a higher floor


def test_nothing_is_called_fid_without_its_network(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"FID needs torch-fidelity .*fd_world .* is not FID"):
        generation.make_fid()


def test_nothing_is_called_inception_score_without_its_network(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"Inception Score needs torch-fidelity.*is_world .* another number"):
        generation.make_inception_score()


def test_is_world_counts_pictures_that_are_clear_and_different():
    clear = np.eye(4)
    assert generation.is_world([clear]) == pytest.approx(4)
    assert generation.is_world([np.full((4, 4), 0.25)]) == pytest.approx(1)  # nothing is clear
    assert generation.is_world([clear[[2, 2, 2]]]) == pytest.approx(1)  # all alike
    assert generation.is_world([clear[[0, 1, 0, 1]]]) == pytest.approx(2)
    assert generation.is_world([clear[[0, 0, 1, 1]], clear[[0, 1, 0, 1]]]) == pytest.approx(4)  # all combinations
    assert generation.is_world([clear, clear]) == pytest.approx(4)  # one head tells the other
    for wrong in (np.zeros((0, 3)), np.full((2, 3), 0.5), np.array([[1.5, -0.5]])):
        with pytest.raises(ValueError, match="expected some, each at least 0 and with the sum 1"):
            generation.is_world([wrong])


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore` will save all extracted features")
@pytest.mark.filterwarnings("ignore:std")  # of one part
def test_is_world_is_the_formula_of_the_inception_score():
    class Logits(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :5].float() / 40

    pictures = torch.randint(0, 256, (30, 3, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    theirs = InceptionScore(Logits(), splits=1)
    theirs.update(pictures)
    odds = Logits()(pictures).softmax(1).numpy()
    assert generation.is_world([odds]) == pytest.approx(theirs.compute()[0].item(), rel=1e-5)


def test_captions_that_a_picture_is_told_apart_from_are_the_official_ones():
    """Facts: `random.seed(42)` and the official evaluate_images.py, on 30,000 captions and on 100."""
    found = generation.other_captions(30_000)
    assert found.shape == (30_000, 99)
    assert found[0, :4].tolist() == [20953, 3649, 820, 24300] and found[0].sum() == 1372413
    assert found[1, :4].tolist() == [21961, 8749, 22998, 22399] and found[1].sum() == 1563325
    few = generation.other_captions(100)
    assert few[57, :5].tolist() == [64, 17, 81, 67, 69] and few[99] @ np.arange(99) == 242650
    assert all(sorted({row, *others}) == list(range(100)) for row, others in enumerate(few.tolist()))
    with pytest.raises(ValueError, match="at least 100 pictures, but there are 99"):
        generation.other_captions(99)


def test_r_precision_by_hand():
    similar = np.array([[3, 2, 1], [2, 3, 1], [5, 5, 5], [1, 0, -np.inf]], dtype=np.float32)
    assert generation.r_precision(similar) == 0.75
    for wrong in (np.zeros((0, 3)), np.array([[np.nan, 1.0]])):
        with pytest.raises(ValueError, match="expected some, those of own captions finite"):
            generation.r_precision(wrong)


def test_clip_score_by_hand():
    cosines = np.array([0.96, -1.0], dtype=np.float32)
    assert generation.clip_score(cosines) == pytest.approx(2.5 * 0.96 / 2)
    assert generation.clip_score(100 * cosines) == pytest.approx(250 * 0.96 / 2)
    for wrong in (np.array([0.5, np.nan]), np.zeros(0)):
        with pytest.raises(ValueError, match="expected at least one and all of them finite"):
            generation.clip_score(wrong)


def rows(*values):
    return np.array(values)


def test_objects_are_matched_to_their_best():
    real = {"color": rows([1, 2, -1]), "shape": rows([5, 6, -1])}
    assert match_objects({"color": rows([2, 1]), "shape": rows([6, 5])}, real).tolist() == [[1, 0]]
    assert match_objects({"color": rows([9, 1]), "shape": rows([9, -1])}, real).tolist() == [[-1, 0]]
    twice = {"color": rows([1, 1]), "shape": rows([5, 5])}
    assert match_objects(twice, real).tolist() == [[0, -1]]
    alike = {"color": rows([1, 1, -1]), "shape": rows([5, 6, -1])}
    assert match_objects({"color": rows([1, 1]), "shape": rows([-1, -1])}, alike).tolist() == [[0, 1]]
    assert match_objects({"color": np.zeros((1, 0), int), "shape": np.zeros((1, 0), int)}, real).shape == (1, 0)


def test_agreement_by_hand():
    real = {"place": rows(3, 1), "color": rows([1, 2], [4, -1]), "shape": rows([5, 6], [7, -1])}
    said = {"place": rows(3, -1), "color": rows([2, 1, 1], [4, -1, -1]), "shape": rows([6, 0, 5], [-1, -1, -1]),
            "loose": rows(0, 1)}  # fmt: skip
    found = scene_agreement(said, real)
    # The first says 7 things, 5 of them right: place, second object whole, first one whole; one object too many.
    assert found["precision"] == pytest.approx((1 + 2 + 2 + 1) / (7 + 2))
    assert found["recall"] == pytest.approx(6 / 8)
    assert found["exact"] == 0
    assert found["recall_color"] == 1 and found["recall_shape"] == pytest.approx(2 / 3)
    assert found["recall_place"] == pytest.approx(1 / 2)


def test_saying_nothing_has_no_precision():
    real = {"place": rows(3), "color": rows([1, 2])}
    said = {"place": rows(-1), "color": rows([-1, -1]), "loose": rows(0)}
    assert scene_agreement(said, real) == {
        "precision": 0.0, "recall": 0.0, "exact": 0.0, "recall_color": 0.0, "recall_place": 0.0
    }  # fmt: skip
