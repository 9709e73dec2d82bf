"""The comparison of text-video models, on made-up features."""

import json

import numpy as np
import pytest
from safetensors.numpy import load, save_file

from lightning_modules.files import sha256
from lightning_modules.runs import find_runs
from lightning_modules.tasks.retrieval import ceiling, evaluate, motion_accuracy, one_to_one

LABELS = np.array([0, 1, 2, 3, 0, 1, 2, 3])  # two looks of two directions each, two clips of each caption
OPTIONS = dict(alike=2, reversed_pairs=True, split="test", export=None, tokenizer=None)


def write(folder, wrong=(), belongs=LABELS, macs=2_000_000):
    """A run whose videos look like their own text, those numbered `wrong` like that of the other direction."""
    folder.mkdir(parents=True)
    texts = np.eye(4, dtype=np.float32)
    seen = belongs ^ np.isin(np.arange(8), wrong)
    predictions = {
        "texts": texts,
        "videos": texts[seen],
        "videos@2": texts[belongs ^ 1],
        "belongs": belongs,
        "labels": belongs,
    }
    save_file(
        {f"{name}/test": np.ascontiguousarray(x) for name, x in predictions.items()}, folder / "predictions.safetensors"
    )
    save_file({"w": np.full(2, len(wrong), np.float32)}, folder / "weights.safetensors")
    digests = {f"{name}_sha256": sha256(folder / f"{name}.safetensors") for name in ("predictions", "weights")}
    (folder / "facts.json").write_text(json.dumps({"macs_per_video": macs, "model": {"frames": 3}, **digests}))
    (folder / "history.csv").write_text("step,finetune/loss\n0,3.0\n9,1.0\n")


@pytest.fixture
def folder(tmp_path):
    for seed in (0, 1):
        write(tmp_path / f"vip/finetune/seed-{seed}", wrong=[0] * seed)
        write(tmp_path / f"vip/zero_shot/seed-{seed}", wrong=range(4))
        write(tmp_path / f"mean/finetune/seed-{seed}", wrong=range(4), macs=3_000_000)
        write(tmp_path / f"mean/zero_shot/seed-{seed}", wrong=range(8), macs=3_000_000)
    return tmp_path


def test_recall_of_each_arm_and_protocol_in_both_directions(folder):
    metrics = evaluate(find_runs(folder), "clips", **OPTIONS).metrics
    back, forth = "video_to_text/recall_at_1_percent", "text_to_video/recall_at_1_percent"
    assert metrics[0][f"clips/finetune/{back}@vip"] == metrics[0][f"clips/finetune/{forth}@vip"] == 100
    assert metrics[1][f"clips/finetune/{back}@vip"] == 100 * 7 / 8
    assert metrics[1][f"clips/finetune/{forth}@vip"] == 75  # the wrong clip is as like the other text as its own: a tie
    assert metrics[0][f"clips/zero_shot/{back}@mean"] == 0
    assert metrics[1]["clips/finetune/video_to_text/mean_reciprocal_rank_percent@vip"] == 100 * 7.25 / 8  # ties: last
    assert metrics[0]["clips/finetune/at_2/video_to_text/recall_at_1_percent@vip"] == 0
    assert metrics[0]["clips/finetune/motion_percent@mean"] == 50
    assert metrics[0][f"clips/finetune/order_blind_ceiling/{back}@vip"] == 50
    assert metrics[0]["clips/finetune/macs_per_video@mean"] == 3_000_000
    assert metrics[0]["clips/finetune/dual_softmax_gain_points@vip"] == 0
    for name, value in (("recall_at_5_percent", 100), ("recall_at_10_percent", 100), ("median_rank", 1.0)):
        for direction in ("text_to_video", "video_to_text"):
            assert metrics[0][f"clips/finetune/dual_softmax/{direction}/{name}@vip"] == value


def test_parts_of_the_rows_have_one_video_of_each_text_and_dual_softmax_settles_who_gets_it():
    belongs = np.array([0, 1, 0, 1])
    similarity = np.array([[0.9, 0.1, 0.9, 0.1], [0.65, 0.6, 0.1, 0.9]])  # the first video is most like both texts
    assert list(one_to_one(similarity, belongs)) == [(50.0, 100.0), (100.0, 100.0)]


def test_motion_is_judged_among_the_captions_of_one_look():
    labels = np.arange(4)  # text and video 2 are of another look: what the first videos make of it is no matter
    similarity = np.array([[0.2, 0.2, 0, 0], [0.1, 0.1, 0, 0], [0.9, 0.9, 0.3, 0.1], [0, 0, 0.1, 0.2]])
    assert motion_accuracy(similarity, labels, labels, 2) == 0.75


def test_the_ceiling_of_what_is_blind_to_order():
    assert ceiling(np.arange(48)) == {"order_blind_ceiling/video_to_text/recall_at_1_percent": 50}


def test_figures_show_every_arm(folder):
    recall, dual, cost = evaluate(find_runs(folder), "clips", **OPTIONS).figures
    assert [series.name for series in recall.series] == ["zero shot", "finetune", "blind to the order of frames"]
    assert recall.series[1].labels == ["mean", "vip"] and recall.series[1].y == [50, 93.75]
    assert recall.series[2].y == [50, 50]
    assert len(dual.series) == 4
    assert [(series.name, series.x) for series in cost.series] == [("mean", [3.0]), ("vip", [2.0])]


def test_the_first_seed_of_an_arm_is_exported(folder):
    files = evaluate(find_runs(folder), "clips", **{**OPTIONS, "export": "vip"}).files
    assert json.loads(files["retriever.json"]) == {"arm": "vip", "seed": 0, "tokenizer": None, "model": {"frames": 3}}
    assert load(files["retriever.safetensors"])["w"].tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"evaluate.export is 'vop', expected one of mean, vip"):
        evaluate(find_runs(folder), "clips", **{**OPTIONS, "export": "vop"})


def test_data_without_classes_or_pairs(folder):
    evaluation = evaluate(find_runs(folder), "clips", **{**OPTIONS, "alike": None, "reversed_pairs": False})
    assert not any("motion" in name or "ceiling" in name for name in evaluation.metrics[0])
    assert len(evaluation.figures[0].series) == 2


def test_arms_judged_on_different_rows_are_refused(folder):
    write(folder / "other/finetune/seed-0", belongs=LABELS[::-1].copy())
    with pytest.raises(ValueError, match="judged on other test rows"):
        evaluate(find_runs(folder), "clips", **OPTIONS)
    with pytest.raises(ValueError, match="no trained model"):
        evaluate([], "clips", **OPTIONS)
