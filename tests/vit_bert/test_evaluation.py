"""Numbers, figures and galleries from stored predictions."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lightning_modules.datasets.tokenizers import world_tokenizer
from lightning_modules.files import sha256
from lightning_modules.runs import Run
from lightning_modules.vit_bert.evaluation import evaluate, judged

SIZES = {"parameters": 10, "parameters_of_two_models": 15, "encoder_parameters": 5}


def run(folder, arrays, name="", seed=0, **facts):
    """A finished run with these predictions."""
    folder.mkdir(parents=True)
    save_file({key: np.ascontiguousarray(x) for key, x in arrays.items()}, folder / "predictions.safetensors")
    digest = {"predictions_sha256": sha256(folder / "predictions.safetensors")}
    (folder / "facts.json").write_text(json.dumps(SIZES | facts | digest))
    (folder / "history.csv").write_text("step,pretrain/gradients/cosine\n20,0.1\n40,-0.1\n")
    return Run(folder, seed, name)


def arrays():
    ids, _ = world_tokenizer()(["a red circle"], 6)
    targets = np.full_like(ids, -100)
    targets[0, 2] = ids[0, 2]
    words = ids.copy()
    words[0, 2] = world_tokenizer()(["blue"], 3)[0][0, 1]
    return {
        "right/image": np.array([True, False, True, True]), "right/masked_word": np.array([True, False]),
        "right/pair": np.array([True]), "shown/images": np.zeros((1, 3, 8, 8), np.uint8),
        "shown/labels": np.array([3]), "shown/told": np.array([2]), "shown/token_ids": ids, "shown/targets": targets,
        "shown/words": words, "densities": np.array([[1.0, 1.0], [0.9, 0.1]], np.float32),
        "corner/blocks.0.attn.qkv.weight": np.array([[True, False], [True, True]]),
    }  # fmt: skip


MASKED = ["blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight"]


def test_shares_of_right_answers():
    assert judged(arrays()) == {
        "image_accuracy_percent": 75.0, "masked_word_accuracy_percent": 50.0, "pair_accuracy_percent": 100.0,
        "mean_accuracy_percent": 62.5,
    }  # fmt: skip
    assert "mean_accuracy_percent" not in judged({"right/image": np.array([True])})


def test_an_arm_has_numbers_curves_masks_and_hidden_words(tmp_path):
    found = evaluate([run(tmp_path / "seed-0", arrays(), masked=MASKED, first="image")], "world")
    assert found.metrics[0]["world/masked_word_accuracy_percent"] == 50.0
    assert found.metrics[0]["world/parameters_of_two_models"] == 15
    densities, cosine = found.figures
    assert [series.name for series in densities.series] == ["1: attn qkv", "1: mlp fc1", "mean of all matrices"]
    assert densities.series[2].y == pytest.approx([100.0, 50.0])
    assert densities.y_label == "weights of pictures, %"
    assert cosine.series[0].y == [0.1, -0.1]
    words, classes, masks = found.galleries
    assert words.rows[0][0].text[1] == ("blue (red) ", False)
    assert classes.rows[0][2].text == [("2", False)]
    assert masks.rows[0][0].picture.alt == "mask of 1: attn qkv: 75 % of pictures"


def test_what_was_not_learnt_is_told(tmp_path):
    found = evaluate([run(tmp_path / "seed-0", {"right/image": np.array([True])})], "world")
    assert set(found.not_computed) == {"masked_word_accuracy_percent", "pair_accuracy_percent"}


def test_fine_tuned_arms_are_compared_with_the_metrics_of_their_task(tmp_path):
    logits, labels = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], np.float32), np.array([0, 1, 1])
    runs = []
    for arm in ("joint", "mask"):
        for protocol, facts in (("images", {}), ("texts", {"task": "cola"})):
            name = f"{arm}/{protocol}"
            runs.append(run(tmp_path / name / "seed-0", {"logits": logits, "labels": labels}, name, **facts))
    found = evaluate(runs, "world")
    assert found.metrics[0]["world/images/top1_percent@mask"] == pytest.approx(200 / 3)
    assert any(key.startswith("world/texts/matthews") for key in found.metrics[0])
    assert {series.name for series in found.figures[0].series} >= {"images/top1_percent"}


def test_the_fine_tuned_network_of_the_arm_with_the_plain_name_answers(tmp_path):
    arrays = {"logits": np.eye(2, dtype=np.float32), "labels": np.array([0, 1])}
    names = sorted(f"{arm}/images" for arm in ("both", "both-joint", "both-mask"))
    assert names[0] == "both-joint/images"
    found = evaluate([run(tmp_path / name / "seed-0", arrays, name) for name in names], "world")
    assert found.predictor == "lightning_modules.vit_bert.predictor.load_tuned"
    place = (tmp_path / "both/images/seed-0").as_posix()
    assert json.loads(found.files["tuned.json"]) == {"dataset": "world", "run": place}


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(ValueError, match="there is no run to evaluate"):
        evaluate([], "world")
