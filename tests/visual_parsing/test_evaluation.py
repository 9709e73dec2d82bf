"""Numbers, figures and galleries from what trained networks have stored."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from lightning_modules.files import sha256
from lightning_modules.runs import Run
from lightning_modules.visual_parsing.evaluation import evaluate, explained, measured, regressions
from tests.visual_parsing import small
from tests.visual_parsing.test_answering import batch_of


def run(folder, arrays, facts, name="", seed=0):
    """A finished run with these predictions."""
    folder.mkdir(parents=True)
    save_file({key: np.ascontiguousarray(x) for key, x in arrays.items()}, folder / "predictions.safetensors")
    digest = {"predictions_sha256": sha256(folder / "predictions.safetensors")}
    (folder / "facts.json").write_text(json.dumps(facts | digest))
    (folder / "history.csv").write_text("step,validation/flow\n20,0.5\n40,0.7\n")
    return Run(folder, seed, name)


def stored(module, data=None):
    predictions = module.predictions(data or small.Data(), torch.device("cpu"))
    return {name: x.numpy() for name, x in predictions.items()}


def test_explained_variance():
    assert explained(np.array([[1.0, 4.0], [2.0, 8.0]])) == pytest.approx(0.75)
    assert explained(np.array([[4.0, 4.0]])) == 0, "who always says the mean"


def test_what_words_add_is_what_their_own_caption_adds_to_another():
    arrays = {f"regression/{how}/{text}": np.array([[error, 10.0]], np.float32)
              for how, errors in {"guided": (2.0, 9.0, 8.0), "random": (1.0, 2.0, 2.0)}.items()
              for text, error in zip(("own", "other", "hidden"), errors, strict=True)}  # fmt: skip
    found = regressions(arrays, "guided")
    assert found["features/text_gain_points"] == found["guided_features/text_gain_points"] == pytest.approx(70)
    assert found["random_features/text_gain_points"] == pytest.approx(10)
    assert found["features/hidden_r2_points"] == pytest.approx(20)
    assert regressions(arrays, "random")["features/own_r2_points"] == pytest.approx(90)
    assert regressions({}, "none") == {}


def test_a_pre_trained_arm_has_numbers_figures_and_pictures(tmp_path):
    module = small.module(ranked=4)
    arrays = stored(module)
    found = evaluate(
        [run(tmp_path / f"seed-{seed}", arrays, module.facts(), seed=seed) for seed in (0, 1)], "world", examples=2
    )
    metrics = found.metrics[1]
    assert metrics["world/word_accuracy_percent"] == pytest.approx(100 * arrays["right/word"].mean())
    assert metrics["world/features/own_r2_points"] == metrics["world/guided_features/own_r2_points"]
    assert 0 <= metrics["world/search/text_to_picture/recall_at_1_percent"] <= 100
    assert metrics["world/parameters"] == module.facts()["parameters"]
    assert [figure.id for figure in found.figures] == ["flow", "flow-steps", "features"]
    assert len(found.figures[0].series[0].y) == 2, "layers"
    parsing, reading = found.galleries
    assert [exhibit.label for exhibit in parsing.rows[0]] == ["picture", "attention of the pivot", "what is masked"]
    assert len(reading.rows) == 2 and len(reading.rows[1]) == 7
    assert not found.not_computed


def test_what_an_arm_has_not_learnt_is_said(tmp_path):
    module = small.module(
        visual={**small.VISUAL, "kind": "cnn"}, visual_masking={"how": "random", "pivots": 1, "neighbours": 3},
        losses={"words": 0.0, "matching": 0.0, "features": 1.0},
    )  # fmt: skip
    found = evaluate([run(tmp_path / "seed-0", stored(module), module.facts())], "world")
    assert found.not_computed.keys() >= {"word_accuracy_percent", "matching_accuracy_percent"}
    assert "CNN" in found.not_computed["guided_features/own_r2_points"]
    assert len(found.galleries) == 1 and "world/features/own_r2_points" in found.metrics[0]
    unmasked = small.module(visual_masking={"how": "none", "pivots": 1, "neighbours": 3})
    assert "features/own_r2_points" not in measured(stored(unmasked), unmasked.facts())


@pytest.mark.parametrize(("task", "outputs"), [("question", 22), ("entailment", 3), ("pair", 2)])
def test_tasks_are_compared(tmp_path, task, outputs):
    runs = []
    for arm in ("one", "other"):
        module, data = small.answering(task, outputs), small.Data(task)
        data.batch, data.also = batch_of(task), ("dev",)
        module.check_data(data)
        runs.append(run(tmp_path / arm, stored(module, data), module.facts(), f"{arm}/tasks"))
    found = evaluate(runs, "world", examples=3)
    assert (
        found.metrics[0]["world/tasks/dev_accuracy_percent@one"] == found.metrics[0]["world/tasks/accuracy_percent@one"]
    )
    credit = runs[0].predictions()["credit"]
    assert found.metrics[0]["world/tasks/accuracy_percent@one"] == pytest.approx(100 * credit.mean())
    assert ("world/tasks/accuracy_percent/how@one" in found.metrics[0]) == (task == "question")
    assert ("world/tasks/consistency_percent@one" in found.metrics[0]) == (task == "pair")
    (gallery,) = found.galleries
    assert len(gallery.rows) == 3 and len(gallery.rows[0]) == (4 if task == "pair" else 3)


def test_an_arm_with_more_seeds_is_compared_where_all_arms_have_them(tmp_path):
    runs = []
    for arm, seeds in (("one", (0, 1)), ("other", (0,))):
        for seed in seeds:
            module, data = small.answering(seed=seed + 5 * (arm == "other")), small.Data("question")
            data.batch = batch_of("question")
            module.check_data(data)
            kept = stored(module, data)
            runs.append(run(tmp_path / f"{arm}-{seed}", kept, module.facts(), f"{arm}/tasks", seed))
    found = evaluate(runs, "world", examples=1)
    assert {seed: "world/tasks/accuracy_percent@one" in x for seed, x in found.metrics.items()} == {0: True, 1: True}
    assert {seed: "world/tasks/accuracy_percent@other" in x for seed, x in found.metrics.items()} == {0: True, 1: False}
    (figure,) = found.figures
    bars = next(series for series in figure.series if series.name == "tasks/accuracy_percent")
    expected = [found.metrics[0][f"world/tasks/accuracy_percent@{arm}"] for arm in ("one", "other")]
    assert bars.y == pytest.approx(expected, rel=1e-6)


def test_nothing_to_evaluate_and_other_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no run"):
        evaluate([], "world")
    module, runs = small.answering("pair", 2), []
    for number, arm in enumerate(("one", "other")):
        data = small.Data("pair")
        data.batch = batch_of("pair")
        data.batch["labels"] = data.batch["labels"].roll(number)
        runs.append(run(tmp_path / arm, stored(module, data), module.facts(), f"{arm}/tasks"))
    with pytest.raises(ValueError, match="other test rows"):
        evaluate(runs, "world")


def questioned(folder, kinds):
    """A run that has answered questions of these kinds of VQA."""
    module, data = small.answering("question", 22), small.Data("question")
    data.kinds = ("yes/no", "number", "other")
    data.batch = batch_of("question")
    data.batch |= {"kinds": torch.tensor(kinds), "rows": torch.arange(9000, 9006)}
    if -1 in kinds:
        data.batch["targets"].zero_()
    module.check_data(data)
    return run(folder, stored(module, data), module.facts(), "one/questions")


def test_answers_of_people_that_are_not_public_are_left_to_the_server(tmp_path):
    made = questioned(tmp_path / "one", [-1] * 6)
    found = evaluate([made], "vqa2", examples=3)
    assert found.metrics == {0: {}} and not found.figures
    assert "server of VQA" in found.not_computed["questions/accuracy_percent"]
    said = json.loads(found.files["vqa-one-questions-0.json"])
    assert [each["question_id"] for each in said] == list(range(9000, 9006))
    answers = made.predictions()["answers"]
    assert [each["answer"] for each in said] == [str(answer) for answer in answers]
    (gallery,) = found.galleries
    assert gallery.rows[0][-1].text == [(str(answers[0]), None)], "neither right nor wrong"


def test_the_first_answer_is_not_shown_as_right_where_no_right_one_is_known(tmp_path):
    made = questioned(tmp_path / "one", [0, 1, 2] * 2)
    arrays = dict(made.predictions())
    arrays |= {"labels": np.array([-1, 0] * 3), "credit": np.zeros(6, np.float32), "answers": np.full(6, 3)}
    (tmp_path / "again").mkdir()
    again = run(tmp_path / "again/one", arrays, made.facts, "one/questions")
    found = evaluate([again], "vqa2", examples=2)
    texts = [row[-1].text for row in found.galleries[0].rows]
    assert texts == [[("3 (none of the answers)", False)], [("3 (0)", False)]]
    assert found.metrics[0]["vqa2/questions/accuracy_percent/number@one"] == 0
    assert list(found.files) == ["answering.json"]


def test_the_network_of_the_arm_with_the_plain_name_answers(tmp_path):
    module, data, runs = small.answering("pair", 2), small.Data("pair"), {}
    data.batch = batch_of("pair")
    for arm in ("parsing", "parsing-cnn", "parsing-scratch"):
        arrays = stored(module, data)
        arrays["answers"] = arrays["answers"] if arm == "parsing" else 1 - arrays["answers"]
        runs[arm] = run(tmp_path / arm / "pairs/seed-0", arrays, module.facts(), f"{arm}/pairs")
    found = evaluate(sorted(runs.values(), key=lambda each: each.name), "world", examples=3)  # as `find_runs` does
    assert json.loads(found.files["answering.json"]) == {"pairs": (tmp_path / "parsing/pairs/seed-0").as_posix()}
    assert found.galleries == evaluate([runs["parsing"]], "world", examples=3).galleries
    assert found.galleries != evaluate([runs["parsing-cnn"]], "world", examples=3).galleries
