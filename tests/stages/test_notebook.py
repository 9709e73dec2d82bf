"""What notebooks show: missing results in one line, and HTML with everything in it."""

import numpy as np
import pytest
from PIL import Image

from lightning_modules.datasets.video.films import Film, Sound
from stages.page import notebook


def test_missing_results_are_one_line_without_a_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(notebook, "ROOT", tmp_path)
    there = tmp_path / "data/results/tiny/spae/spae"
    there.mkdir(parents=True)
    (there / "predictor.json").touch()
    notebook.needed("spae/spae")
    with pytest.raises(notebook.Missing) as missing:
        notebook.needed("spae/spae", "spae/spae-clip", "vlora/vlora", "spae/spae-video")
    said = missing.value._render_traceback_()
    assert said == [
        "There are no results of spae/spae-clip, vlora/vlora, spae/spae-video here. "
        "They take: make repro PAPER='spae vlora'"
    ]


def test_answers_show_pictures_films_and_sounds_themselves():
    sound, film = Sound(np.zeros(800, np.int16), 8000), Film(np.zeros((2, 16, 16, 3), np.uint8), 8.0)
    shown = notebook.answers(
        [
            {"text": "a <b>", "share": 0.123456, "picture": Image.new("RGB", (32, 16)), "other": 1},
            {"text": "c", "film": film, "sound": sound, "array": np.zeros((2, 3))},
        ],
        "text", "share", "picture", "film", "sound", "array",
    )  # fmt: skip
    html = shown._repr_html_()
    assert "a &lt;b&gt;" in html and ">0.123<" in html and "array 2 x 3" in html and "other" not in html
    assert "width:192px" in html, "a picture 16 pixels high is enlarged to 96"
    for kind in ("image/png", "video/mp4", "audio/wav"):
        assert html.count(f"data:{kind};base64,") == 1
    assert repr(shown) == "2 answers with text, share, picture, film, sound, array"


def test_claims_and_numbers_are_those_that_are_committed():
    html = notebook.verdicts("spae", "C1-top")._repr_html_()
    assert html.count("<tr>") == 2 and "points, margin 20" in html
    judged = notebook.verdicts("spae")._repr_html_()
    assert judged.count("<tr>") > 2 and "not testable" not in judged
    metric = "world_pairs/attributes_percent"
    numbers = notebook.numbers({"weights": "vlora/vlora"}, {"told": metric, "nothing": "no such metric"})
    assert numbers.html.count("<td") == 3 and repr(numbers).endswith("–")
    with pytest.raises(ValueError, match="spae has no claim C0: see"):
        notebook.verdicts("spae", "C0")


def test_files_are_those_that_a_user_might_give(tmp_path, monkeypatch):
    monkeypatch.setattr(notebook, "scratch", lambda: tmp_path)
    pixels = np.arange(64 * 3, dtype=np.uint8).reshape(8, 8, 3)
    assert (np.array(Image.open(notebook.saved(pixels, "picture"))) == pixels).all()
    assert notebook.saved(np.zeros((3, 8, 8, 3), np.uint8), "clip").suffix == ".mp4"
    assert notebook.saved(["one", "two"], "texts").read_text() == "one\ntwo\n"
