"""Metrics of the tokenizer from stored predictions, with numbers that can be told by hand."""

from pathlib import Path

import numpy as np
import pytest

from lightning_modules.runs import Run
from lightning_modules.spae.tokenizer_evaluation import (
    evaluate,
    evaluate_clip,
    given_in_turn,
    nearest_mean,
    often,
    probed,
    scores,
)

FACTS = {"tokens": [1, 4], "vocabulary": 4, "pixels": 64, "parameters": 7, "grid": [1, 2, 2]}


def arrays(rows=12, **others):
    """The first word is the class, the four others are always the same; the first two words of the table are said."""
    classes = np.arange(rows) % 2
    measures = {name: np.tile([[1.0, 2.0]], (rows, 1)) for name in ("mse", "psnr", "ssim", "similarity")}
    return {
        **measures,
        "fit": np.tile([[0.9, 0.5]], (rows, 1)),
        "words/1": classes[:, None],
        "words/2": np.full((rows, 4), 3),
        "said": np.tile([[True, True, False, False]], (rows, 1)),
        "label/class": classes,
        "spelled": np.array([list(word.encode().ljust(4, b"\0")) for word in ("red", "blue", "sea", "owl")], np.uint8),
        "shown/real": np.zeros((rows, 1, 8, 8, 3), np.uint8),
        "shown/drawn": np.zeros((rows, 2, 1, 8, 8, 3), np.uint8),
        **others,
    }


class Stored(Run):
    """A run whose predictions and facts are given, not read."""

    def predictions(self):
        return self.__dict__["given"]


def stored(given, facts=FACTS, seed=0):
    run = Stored(Path("nowhere"), seed)
    run.__dict__.update(given=given, facts=facts)
    return run


def run(seed=0, **others):
    return stored(arrays(**others), seed=seed)


def test_layers_are_judged_by_captions_and_clip_and_prefixes_by_what_they_draw():
    found = scores(arrays(), FACTS)
    assert found["layer_1/in_caption_percent"] == 100 and found["layer_2/in_caption_percent"] == 0
    assert found["chance/in_caption_percent"] == 50 and found["layer_1/fit_percent"] == pytest.approx(90)
    assert found["layer_1/words_used"] == 2 and found["layer_1/perplexity"] == pytest.approx(2)
    assert found["prefix_1/mse"] == found["before_last/mse"] == 1 and found["mse"] == found["prefix_2/mse"] == 2
    assert found["tokens"] == 5 and found["bits_per_pixel"] == pytest.approx(10 / 64)
    assert found["last/fit_percent"] == pytest.approx(50)


def test_the_probe_tells_classes_from_words_and_cannot_where_words_are_alike():
    assert probed(arrays(), ["class"], 2)["prefix_1/probe_percent"] == 100
    blind = probed(arrays(**{"words/1": np.zeros((12, 1), int)}), ["class"], 2)
    assert blind["prefix_1/probe_percent"] == blind["chance/probe_percent"] == 50


def test_the_probe_takes_several_labels_as_one_class():
    found = probed(arrays(**{"label/size": np.arange(12) // 2 % 2}), ["class", "size"], 2)
    assert found["chance/probe_percent"] == 25 and found["last/probe_percent"] == 50


def test_the_probe_is_left_out_where_pictures_are_too_few_or_have_no_label():
    assert often(np.array([0, 1, 0, 1, 0, 2]), 1).tolist() == [0, 1, 2, 3, 4]
    assert probed(arrays(**{"label/class": np.zeros(12, int)}), ["class"], 2) == {}
    found = evaluate([run()], "world", shots=6, examples=1)
    assert "world/last/probe_percent" not in found.metrics[0] and "probe_percent" in found.not_computed


def test_the_probe_is_given_others_in_turn_while_each_class_has_them():
    turns = given_in_turn(np.array([0, 1, 0, 1, 0, 1, 0]), 1)
    assert [np.flatnonzero(turn).tolist() for turn in turns] == [[0, 1], [2, 3], [4, 5]]
    assert len(given_in_turn(np.array([0, 1, 0, 1, 0, 1]), 2)) == 1
    assert len(given_in_turn(np.arange(40) % 2, 1)) == 3  # never more


def test_all_classes_count_alike():
    features, classes = np.array([[0.0], [1.0], [0.0], [0.1], [0.2], [0.0]]), np.array([0, 1, 0, 0, 0, 1])
    given = np.array([True, True] + [False] * 4)
    assert nearest_mean(features, classes, given) == 0.5


def test_an_unknown_label_is_refused():
    with pytest.raises(ValueError, match="probe names 'colour', but pictures are labelled with class"):
        probed(arrays(), ["colour"], 2)


def test_the_evaluation_has_metrics_of_each_seed_figures_and_a_gallery_of_words():
    found = evaluate([run(0), run(1)], "world", shots=2, examples=2)
    assert set(found.metrics) == {0, 1} and found.metrics[0]["world/layer_1/in_caption_percent"] == 100
    assert [figure.id for figure in found.figures] == ["layers", "prefixes"]
    picture, words, drawn, *_ = found.galleries[0].rows[1]
    assert words.text == [("blue ", True)] and picture.picture and drawn.picture and len(found.galleries[0].rows) == 2
    assert set(found.not_computed) == {"lpips", "fid", "inception_score"}
    assert "torch-fidelity is installed" in found.not_computed["fid"]


def test_published_measures_of_prefixes_are_reported_where_they_were_stored():
    given = arrays(fid=np.array([[9.0, 4.0]]), inception_score=np.array([[50.0, 130.0]]), lpips=np.full((12, 2), 0.1))
    found = evaluate([stored(given)], "imagenet", shots=2, examples=1)
    assert not found.not_computed
    metrics = found.metrics[0]
    assert metrics["imagenet/prefix_1/fid"] == 9 and metrics["imagenet/fid"] == 4
    assert metrics["imagenet/inception_score"] == 130 and metrics["imagenet/lpips"] == pytest.approx(0.1)


def test_without_captions_the_words_are_judged_by_clip_alone():
    given = arrays()
    del given["said"]
    found = evaluate([stored(given)], "video", shots=2, examples=1)
    assert "video/layer_1/in_caption_percent" not in found.metrics[0]
    assert set(found.not_computed) == {"in_caption_percent", "lpips", "fid", "inception_score"}
    assert found.galleries[0].rows[0][1].text == [("red ", None)]


def test_there_must_be_a_run():
    for function in (evaluate, evaluate_clip):
        with pytest.raises(ValueError, match="there is no trained arm to evaluate"):
            function([], "world")


def test_a_clip_is_judged_by_its_best_words():
    given = {"best": np.array([1.0, 0.0]), "first": np.array([1.0, 0.5])}
    clip = stored(given, {"parameters": 5, "words": 9}, seed=3)
    assert evaluate_clip([clip], "world").metrics == {
        3: {"world/best_percent": 50, "world/first_percent": 75, "world/parameters": 5, "world/words": 9}
    }
