"""What is said of trained networks, from what they stored."""

import numpy as np
import pytest

from lightning_modules.movinet.evaluation import evaluate
from lightning_modules.runs import Run

# Three members, two clips. Of the first clip, class 0: two members are right and little sure, one is wrong and sure.
LOGITS = np.array([[[1.0, 0.0], [1.0, 0.0], [0.0, 4.0]], [[0.0, 2.0], [0.0, 2.0], [0.0, 2.0]]], np.float32)


class Stored(Run):
    def __init__(self, arrays, facts, seed=5):
        object.__setattr__(self, "arrays", arrays)
        object.__setattr__(self, "seed", seed)
        self.__dict__["facts"] = facts

    def predictions(self):
        return self.arrays


def run_of(logits, seed=0):
    facts = {"macs_per_clip": 6_000_000, "parameters": 30, "peak_bytes": {"8": 100}, "causal": False}
    return Stored({"logits/test": logits, "labels/test": np.array([0, 1])}, facts, seed)


def test_metrics_of_two_members():
    labels = np.array([0, 1, 2, 3])
    logits = np.zeros((4, 2, 4), dtype=np.float32)
    for row, (first, second) in enumerate([(0, 0), (0, 0), (2, 1), (3, 3)]):
        logits[row, 0, first] += 3
        logits[row, 1, second] += 1
    frames = np.stack([logits[:, 1], logits[:, 0]], axis=1)
    arrays = {
        "logits/test": logits, "labels/test": labels, "each_frame/test": frames, "streamed/test": frames[:2] + 3e-4,
    }  # fmt: skip
    facts = {"macs_per_clip": 10, "parameters": 3, "causal": True, "stride": 2, "peak_bytes": {"8": 100, "16": 100}}
    result = evaluate([Stored(arrays, facts)], "clips")
    found = result.metrics[5]
    assert found["clips/top1_percent"] == 75
    assert found["clips/member/top1_percent"] == pytest.approx((75 + 50) / 2)
    assert found["clips/pair/top1_percent"] == 100 and found["clips/order/top1_percent"] == 75
    assert found["clips/stream/largest_difference"] == pytest.approx(1e-4, rel=1e-3)
    assert found["clips/peak_bytes@16"] == 100
    over_time = next(figure for figure in result.figures if figure.id == "accuracy_over_time")
    assert over_time.series[0].y == [50.0, 75.0]


def test_members_are_combined_by_each_rule():
    evaluation = evaluate([run_of(LOGITS)], "x")
    found = evaluation.metrics[0]
    assert found["x/vote/top1_percent"] == 100, "the majority is right"
    assert found["x/top1_percent"] == found["x/probabilities/top1_percent"] == 50, "the sure one outweighs it"
    assert found["x/member/top1_percent"] == pytest.approx(100 * 5 / 6)
    assert found["x/members"] == 3


def test_the_figure_shows_what_the_ensemble_costs_and_adds():
    figure = next(f for f in evaluate([run_of(LOGITS), run_of(LOGITS, 1)], "x").figures if f.id == "ensemble")
    shown = {series.name: (series.x, series.y) for series in figure.series}
    assert shown["one of them"] == ([2.0], [pytest.approx(100 * 5 / 6)])
    assert shown["majority"] == ([6.0], [100.0]), "three networks cost three times as much"


def test_one_network_is_no_ensemble():
    evaluation = evaluate([run_of(LOGITS[:, :1])], "x")
    assert not any("vote" in name or "member/" in name for name in evaluation.metrics[0])
    assert "ensemble" not in [figure.id for figure in evaluation.figures]


def test_clips_are_shown_with_what_is_said_of_them():
    run = run_of(LOGITS)
    assert not evaluate([run], "x").galleries, "nothing was kept to be shown"
    run.arrays["shown/test"] = np.random.default_rng(0).integers(256, size=(2, 12, 8, 8, 3)).astype(np.uint8)
    (gallery,) = evaluate([run], "world_actions").galleries
    assert [exhibit.label for exhibit in gallery.rows[0]] == ["left", "at its end"]
    assert [row[-1].text for row in gallery.rows] == [[("right", False)], [("right", True)]]
    run.arrays["each_frame/test"] = np.eye(2, dtype=np.float32)[[[0, 0, 0, 0, 0, 1], [0, 0, 0, 1, 1, 1]]]
    run.arrays["streamed/test"], run.facts["stride"] = run.arrays["each_frame/test"], 2
    first = evaluate([run], "x").galleries[0].rows[0]
    assert [exhibit.label for exhibit in first] == ["class 0", "while it runs", "at its end"]
    numbers, answers = first[1].text[::2], first[1].text[1::2]
    assert [text for text, _ in numbers] == [" frame 1: ", " frame 5: ", " frame 7: ", " frame 11: "]
    assert answers == [("class 0", True)] * 3 + [("class 1", False)]
