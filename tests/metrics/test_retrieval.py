import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_reciprocal_rank

from lightning_modules.metrics import retrieval as metrics
from tests.reference import retrieval as slow


def similarities(texts=40, videos=40, seed=0, signal=1.0):
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(texts, videos))
    found[np.arange(texts), np.arange(texts) % videos] += signal
    return found.astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    texts=st.integers(1, 12), videos=st.integers(1, 9), levels=st.integers(1, 4), seed=st.integers(0, 10**6),
    single=st.booleans(),
)  # fmt: skip
def test_ranks_equal_the_loops_also_where_there_are_ties(texts, videos, levels, seed, single):
    rng = np.random.default_rng(seed)
    similarity = rng.integers(0, levels, (texts, videos)).astype(np.float32 if single else np.float64)
    text_ids, video_ids = rng.integers(0, videos, texts), rng.permutation(videos)
    found = metrics.ranks(similarity, text_ids, video_ids)
    assert found.tolist() == slow.ranks(similarity, text_ids, video_ids)
    described = np.isin(video_ids, text_ids)  # videos with a caption
    found = metrics.ranks(similarity.T[described], video_ids[described], text_ids)
    assert found.tolist() == slow.ranks(similarity.T[described], video_ids[described], text_ids)


@pytest.mark.parametrize("captions", [1, 3])
def test_recalls_equal_torchmetrics(captions):
    similarity = similarities(texts=30 * captions, videos=30) + 10  # torchmetrics takes no item below zero for a hit
    text_ids, video_ids = np.arange(30 * captions) % 30, np.arange(30)
    found = metrics.retrieval(similarity, text_ids, video_ids)
    belong = torch.from_numpy(text_ids[:, None] == video_ids)
    for direction, scores, target in (
        ("text_to_video", torch.from_numpy(similarity), belong),
        ("video_to_text", torch.from_numpy(similarity.T.copy()), belong.T),
    ):
        for k in (1, 5, 10):
            hits = [retrieval_hit_rate(row, own, top_k=k).item() for row, own in zip(scores, target, strict=True)]
            assert found[f"{direction}/recall_at_{k}_percent"] == pytest.approx(100 * np.mean(hits))
        reciprocal = [retrieval_reciprocal_rank(row, own).item() for row, own in zip(scores, target, strict=True)]
        assert found[f"{direction}/mean_reciprocal_rank_percent"] == pytest.approx(100 * np.mean(reciprocal))
        first = np.round(1 / np.array(reciprocal))
        assert found[f"{direction}/mean_rank"] == pytest.approx(first.mean())
        assert found[f"{direction}/median_rank"] == np.median(first)


def test_a_perfect_model_and_one_that_says_the_same_of_everything():
    perfect, same = metrics.retrieval(np.eye(20, dtype=np.float32)), metrics.retrieval(np.zeros((20, 20)))
    for direction in ("text_to_video", "video_to_text"):
        assert perfect[f"{direction}/recall_at_1_percent"] == 100 and perfect[f"{direction}/mean_rank"] == 1
        assert same[f"{direction}/recall_at_10_percent"] == 0 and same[f"{direction}/median_rank"] == 20


def test_the_best_of_a_videos_captions_counts_and_its_others_do_not_stand_in_the_way():
    similarity = np.array([[0.9, 0.1], [0.8, 0.1], [0.1, 0.0], [0.7, 0.2]])  # captions 0 to 2 are of video 0
    found = metrics.ranks(similarity.T, np.array([0, 1]), np.array([0, 0, 0, 1]))
    assert found.tolist() == [1, 1]
    assert metrics.ranks(similarity, np.array([0, 0, 0, 1]), np.array([0, 1])).tolist() == [1, 1, 1, 2]


def test_one_caption_may_have_several_videos():
    similarity = np.array([[0.1, 0.9, 0.5], [0.3, 0.2, 0.6]])
    found = metrics.retrieval(similarity, np.array([7, 8]), np.array([7, 8, 7]))
    assert found["text_to_video/mean_rank"] == (2 + 3) / 2
    assert found["video_to_text/mean_rank"] == (2 + 2 + 2) / 3


def test_many_queries_are_ranked_block_by_block(monkeypatch):
    similarity, ids = similarities(), np.arange(40)
    whole = metrics.ranks(similarity, ids, ids)
    monkeypatch.setattr(metrics, "BLOCK", 7)
    np.testing.assert_array_equal(metrics.ranks(similarity, ids, ids), whole)


def test_dual_softmax_is_that_of_the_loops():
    similarity = similarities(5, 4) / 10
    found = metrics.dual_softmax(similarity)
    np.testing.assert_allclose(found, slow.dual_softmax(similarity, math.exp), rtol=1e-12)
    np.testing.assert_allclose(metrics.dual_softmax(similarity.T, over="videos"), found.T, rtol=1e-12)
    assert np.isfinite(metrics.dual_softmax(1e4 * similarity)).all()


def test_dual_softmax_lets_queries_compete_for_a_video():
    """Video 0 is like everything; text 0 has it, so text 1 gets its own."""
    similarity = np.array([[0.9, 0.2], [0.6, 0.5]])
    assert metrics.retrieval(similarity)["text_to_video/recall_at_1_percent"] == 50
    assert metrics.retrieval(metrics.dual_softmax(similarity))["text_to_video/recall_at_1_percent"] == 100


def test_the_official_matrix_changes_nothing_from_video_to_text():
    similarity = np.abs(similarities(signal=0.5)) / 10
    plain, official = metrics.retrieval(similarity), metrics.retrieval(metrics.dual_softmax(similarity))
    own = metrics.retrieval(metrics.dual_softmax(similarity, over="videos"))
    for name in ("recall_at_1_percent", "median_rank", "mean_rank"):
        assert official[f"video_to_text/{name}"] == plain[f"video_to_text/{name}"]
    assert official["text_to_video/mean_rank"] != plain["text_to_video/mean_rank"]
    assert own["video_to_text/mean_rank"] != plain["video_to_text/mean_rank"]


def test_ceiling_of_who_sees_the_group_alone():
    assert metrics.blind_ceiling(np.arange(48) // 2, np.arange(48)) == 0.5
    assert metrics.blind_ceiling(np.array([0, 0, 0, 1]), np.array([4, 4, 5, 6])) == 0.75
    assert metrics.blind_ceiling(np.arange(5), np.arange(5)) == 1
    assert metrics.blind_ceiling(np.zeros(5, int), np.arange(5)) == 0.2


@pytest.mark.parametrize(("change", "message"), [
    (lambda s, t, v: (np.where(s == s.max(), np.nan, s), t, v), "similarity has NaN among queries 0 to 3"),
    (lambda s, t, v: (s, t[:3], v), r"shape \(4, 4\), but there are ids of 3 queries and of 4 items"),
    (lambda s, t, v: (s, t, v + 1), "1 queries have no item of their own, the first is query 0 with id 0"),
])  # fmt: skip
def test_what_cannot_be_ranked_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        metrics.ranks(*change(similarities(4, 4), np.arange(4), np.arange(4)))


def test_a_ceiling_of_nothing_is_refused():
    with pytest.raises(ValueError, match="0 groups and 0 answers"):
        metrics.blind_ceiling(np.arange(0), np.arange(0))
    with pytest.raises(ValueError, match="2 groups and 3 answers"):
        metrics.blind_ceiling(np.arange(2), np.arange(3))
