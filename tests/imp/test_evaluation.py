"""Scores from stored predictions."""

import numpy as np
import pytest

from lightning_modules.imp.evaluation import evaluate, probed, recall, scored, specialised, zero_shot
from lightning_modules.metrics.specialisation import mutual_information
from lightning_modules.runs import Run

MODALITIES = {"clips": ["vision"], "pairs": ["vision", "text"], "texts": ["text"]}


@pytest.fixture
def arrays():
    eye = np.eye(4, dtype=np.float32)
    draw = np.random.default_rng(0)
    labels = np.arange(8) % 2
    features = (labels[:, None] * 2 - 1) * np.ones((8, 3), np.float32) + draw.normal(0, 0.1, (8, 3)).astype(np.float32)
    return {
        "clips/logits": np.array([[1, 0], [0, 1], [1, 0], [1, 0]] * 2, np.float32),
        "clips/labels": labels,
        "clips/features": features,
        "clips/probe_features": features,
        "clips/probe_labels": labels,
        "clips/prompted": np.array([[1, 0], [0, 1]] * 4, np.float32),
        "clips/prompts": np.eye(2, dtype=np.float32),
        "pairs/vision_to_text": eye,
        "pairs/text_to_vision": eye[[0, 1, 3, 2]],
        "texts/words": np.array([[1, 2], [2, 2]], np.float32),
        "shown/pairs/images": draw.integers(0, 256, (4, 3, 8, 8)).astype(np.uint8),
        "shown/pairs/texts": np.frombuffer(b"ab\0cd\0ef\0gh\0", np.uint8).reshape(4, 3),
        "experts/vision/probability": np.array([[1.0, 0.0]]),
        "experts/text/probability": np.array([[0.0, 1.0]]),
        "experts/vision/first": np.array([[0.5, 0.5]]),
        "experts/text/first": np.array([[0.5, 0.5]]),
    }


def test_each_task_has_one_score(arrays):
    found = scored(arrays, MODALITIES, candidates=4)
    assert found["clips_accuracy_percent"] == 75.0
    assert found["masked_word_accuracy_percent"] == 75.0
    assert found["pairs_recall_at_1_percent"] == 50.0
    assert found["mean_score_percent"] == pytest.approx((75 + 75 + 50) / 3)


def test_rows_find_their_own_among_candidates(arrays):
    found = recall(arrays, "pairs", ["vision", "text"], candidates=2)
    assert found == {"vision_to_text/recall_at_1_percent": 50.0, "text_to_vision/recall_at_1_percent": 50.0}


def test_classes_are_found_by_texts_and_by_a_probe(arrays):
    assert zero_shot(arrays) == {"clips_zero_shot_percent": 100.0}
    assert probed(arrays, 1e-3) == {"clips_probe_percent": 100.0}


def test_experts_that_divide_two_modalities_tell_one_bit(arrays):
    assert specialised(arrays) == {"expert_information_bits": pytest.approx(1.0), "expert_first_choice_bits": 0.0}
    assert specialised({}) == {}


@pytest.mark.parametrize(
    ("shares", "bits"),
    [
        ([[0.5, 0.5], [0.5, 0.5]], 0.0),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.log2(3)),
        ([[0.75, 0.25], [0.25, 0.75]], 0.1887),
    ],
)
def test_information_is_that_of_the_definition(shares, bits):
    assert mutual_information(np.array(shares, float)) == pytest.approx(bits, abs=1e-4)


def test_shares_that_do_not_sum_to_one_are_refused():
    with pytest.raises(ValueError, match=r"shares have the sums \[1.5\]"):
        mutual_information(np.array([[1.0, 0.5]]))


def test_an_evaluation_has_numbers_figures_and_galleries(arrays, monkeypatch, tmp_path):
    facts = {"modalities": MODALITIES, "parameters": 10, "active_parameters": 6, "encoder_parameters": 8}
    monkeypatch.setattr(Run, "predictions", lambda self: arrays)
    run = Run(tmp_path, 0)
    run.__dict__["facts"] = facts
    found = evaluate([run], "world_many", candidates=4)
    assert found.metrics[0]["world_many/active_parameters"] == 6
    assert [figure.id for figure in found.figures] == ["scores", "experts"]
    assert [gallery.id for gallery in found.galleries] == ["nearest-pairs"]
    assert len(found.galleries[0].rows) == 4
    assert [exhibit.text for exhibit in found.galleries[0].rows[2][1:]] == [[("ef", None)], [("gh", False)]]


def test_large_clips_are_shown_smaller(arrays, monkeypatch, tmp_path):
    large = arrays | {"shown/pairs/video": np.zeros((4, 3, 5, 256, 256), np.uint8)}
    del large["shown/pairs/images"]
    monkeypatch.setattr(Run, "predictions", lambda self: large)
    run = Run(tmp_path, 0)
    run.__dict__["facts"] = {"modalities": MODALITIES, "parameters": 1, "active_parameters": 1, "encoder_parameters": 1}
    assert evaluate([run], "world_many").galleries[0].rows[0][0].picture is not None


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(ValueError, match="there is no run to evaluate"):
        evaluate([], "world_many")
