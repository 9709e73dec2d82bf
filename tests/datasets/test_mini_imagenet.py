"""On small files in both official forms."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from lightning_modules.datasets import mini_imagenet, storage
from lightning_modules.datasets.download import MIRROR_VARIABLE, DataUnavailable

TASK = "real_name_mi"
CLASSES = {"n01532829": "house_finch", "n01558993": "robin", "n01704323": "triceratops"}


@pytest.fixture(autouse=True)
def no_other_mirror(monkeypatch):
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)


def jpeg(value):
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (value, 0, 9)).save(file, "JPEG")
    return file.getvalue()


def red(picture):
    return round(float(picture[..., 0].mean()) / 20)


def frozen_question(number, shots):
    """Two ways: finches have even numbers, robins odd ones; the query is a finch or a robin in turn."""
    names = [["house finch", "robin"][place % 2] for place in range(2 * shots)]
    stem = f"{TASK}_shots_{shots}_ways_2_id_{number}"
    entry = {"question": "This is a", "question_image": f"{stem}_question.jpg", "answer": names[number % 2]}
    for place, name in enumerate(names, start=1):
        entry |= {f"image_{place}": f"{stem}_image_{place}.jpg", f"caption_{place}": f"This is a {name}."}
    return entry


@pytest.fixture
def frozen(tmp_path):
    folder = tmp_path / "mirror" / TASK
    folder.mkdir(parents=True)
    for shots in (1, 3):
        entries = [frozen_question(number, shots) for number in range(4)]
        (folder / f"{TASK}_shots_{shots}_ways_2_all_questions.json").write_text(json.dumps(entries))
        for entry in entries:
            for key, file in entry.items():
                if "image" in key:
                    (folder / file).write_bytes(jpeg(20 * (int(key[6:]) if key[6:].isdigit() else 9)))
    return tmp_path / "mirror"


@pytest.fixture
def lists(tmp_path):
    folder = tmp_path / "mirror"
    lines = []
    for number in range(3):
        files = [f"{wnid}/{wnid}_{number}.JPEG" for wnid in list(CLASSES)[:2]] + [
            f"n01558993/n01558993_{number + 5}.JPEG"
        ]
        for value, file in zip((1, 2, 9), files, strict=True):
            path = folder / "train" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(20 * value))
        lines.append(",".join(files) + ",")
    (folder / "fewshot_split").mkdir()
    (folder / "fewshot_split/2_way_1_shot.csv").write_text("\n".join(lines) + "\n")
    index = {str(number): list(pair) for number, pair in enumerate(CLASSES.items())}
    (folder / mini_imagenet.NAMES).write_text(json.dumps(index))
    return folder


def prepare(folder, copy, **changes):
    config = {"form": "frozen", "task": TASK, "questions": {"2_way_1_shot": 4, "2_way_3_shot": None}}
    mini_imagenet.prepare(folder, **config | {"mirror": str(copy), "cache": "none"} | changes)


def test_questions_of_frozens_form_with_their_pictures(frozen, tmp_path):
    prepare(tmp_path / "made", frozen)
    assert storage.card(tmp_path / "made")["splits"] == {"pictures": 40, "2_way_1_shot": 4, "2_way_3_shot": 4}
    first, second, *_ = mini_imagenet.episodes(tmp_path / "made", "2_way_3_shot")
    assert first.names == ["house finch", "robin"] * 3 and first.answer == "house finch" and second.answer == "robin"
    assert [red(picture) for picture in first.pictures] == [1, 2, 3, 4, 5, 6] and red(first.query) == 9
    assert len(list(mini_imagenet.episodes(tmp_path / "made", "2_way_1_shot", 3))) == 3
    columns = storage.read(tmp_path / "made", "2_way_1_shot")
    assert columns["support"].shape == (4, 6) and (columns["support"][:, 2:] == -1).all()


def test_the_query_is_no_part_of_the_context(lists, tmp_path):
    """Of a line of V2L-Tokenizer's lists the last picture is the query."""
    prepare(tmp_path / "made", lists, form="lists", task="train", questions={"2_way_1_shot": 3})
    assert storage.card(tmp_path / "made")["splits"] == {"pictures": 9, "2_way_1_shot": 3}
    for episode in mini_imagenet.episodes(tmp_path / "made", "2_way_1_shot"):
        assert episode.names == ["house finch", "robin"] and episode.answer == "robin"
        assert [red(picture) for picture in (*episode.pictures, episode.query)] == [1, 2, 9]


def test_a_broken_picture_leaves_out_its_questions_where_that_is_allowed(frozen, tmp_path):
    broken = frozen / TASK / f"{TASK}_shots_1_ways_2_id_2_image_1.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"1 of \d+ pictures are broken.*id_2_image_1\.jpg cannot be read"):
        prepare(tmp_path / "made", frozen)
    prepare(tmp_path / "made", frozen, max_broken=0.01)
    assert storage.card(tmp_path / "made")["splits"] == {"pictures": 39, "2_way_1_shot": 3, "2_way_3_shot": 4}
    answers = [episode.answer for episode in mini_imagenet.episodes(tmp_path / "made", "2_way_1_shot")]
    assert answers == ["house finch", "robin", "robin"]


def test_captions_may_be_names_or_sentences():
    said = ["This is a dax", "This is a dax.", "dax", "this is an axolotl.", "St. Bernard"]
    assert [mini_imagenet._named(text) for text in said] == ["dax", "dax", "dax", "axolotl", "St. Bernard"]


def test_an_incomplete_copy_is_refused(frozen, lists, tmp_path):
    with pytest.raises(ValueError, match="2_way_1_shot has 4 questions, expected 2500"):
        prepare(tmp_path / "made", frozen, questions={"2_way_1_shot": 2500})
    with pytest.raises(ValueError, match="questions has '2-way', expected <ways>_way_<shots>_shot"):
        prepare(tmp_path / "made", frozen, questions={"2-way": None})
    with pytest.raises(
        DataUnavailable, match=r"(?s)shots_5_ways_2_all_questions\.json could not be had.*REPRISE_MIRROR"
    ):
        prepare(tmp_path / "made", frozen, questions={"2_way_5_shot": None})
    (frozen / TASK / f"{TASK}_shots_1_ways_2_id_2_image_1.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 pictures are missing in .*id_2_image_1\.jpg first"):
        prepare(tmp_path / "made", frozen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: entries[1].pop("caption_2"), "question 1 has no caption_2"),
        (lambda entries: entries[0].pop("answer"), "question 0 has no answer"),
    ],
)
def test_a_file_of_another_form_is_refused(frozen, tmp_path, change, message):
    path = frozen / TASK / f"{TASK}_shots_1_ways_2_all_questions.json"
    entries = json.loads(path.read_text())
    change(entries)
    path.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "made", frozen)
    path.write_text("{}")
    with pytest.raises(ValueError, match="has no list of questions"):
        prepare(tmp_path / "made", frozen)
    path.write_text("[")
    with pytest.raises(ValueError, match="is not JSON"):
        prepare(tmp_path / "made", frozen)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n01532829/a.JPEG,n01558993/b.JPEG,\n", "line 1 has 2 pictures, expected 2 of the context and the query"),
        ("n01532829/a.JPEG,dog/b.JPEG,n01558993/c.JPEG,\n", r"line 1 has 'dog/b\.JPEG', expected <wnid>/<file>"),
    ],
)
def test_a_list_of_another_form_is_refused(lists, tmp_path, text, message):
    (lists / "fewshot_split/2_way_1_shot.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "made", lists, form="lists", task="train", questions={"2_way_1_shot": None})


def test_names_of_another_form_are_refused(lists, tmp_path):
    (lists / mini_imagenet.NAMES).write_text(json.dumps(["tench"]))
    with pytest.raises(ValueError, match=r"imagenet_class_index\.json has another form"):
        prepare(tmp_path / "made", lists, form="lists", task="train", questions={"2_way_1_shot": None})


@pytest.mark.parametrize("form", ["frozen", "lists"])
def test_both_forms_have_a_stand_in(tmp_path, form):
    config = {"form": form, "task": TASK if form == "frozen" else "train"}
    config["questions"] = {"2_way_1_shot": None, "5_way_3_shot": None}
    made = mini_imagenet.stand_in(tmp_path, rows=6, **config)
    mini_imagenet.prepare(tmp_path / "made", **config | made.config)
    (episode,) = mini_imagenet.episodes(tmp_path / "made", "5_way_3_shot", 1)
    assert len(episode.pictures) == 15 and len(set(episode.names)) == 5 and episode.answer in episode.names
    assert all(isinstance(picture, np.ndarray) for picture in episode.pictures)
