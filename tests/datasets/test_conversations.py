"""Conversations about pictures: the official forms as they are read, what is left out, what is refused."""

import json
import logging

import pytest

from lightning_modules.datasets import conversations, pictures, storage


def write(folder, entries):
    (folder / "pictures/coco").mkdir(parents=True, exist_ok=True)
    (folder / "mix.json").write_text(json.dumps(entries))


def entry(number, *said, image=True):
    turns = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(said)]
    return {"id": str(number), "conversations": turns} | ({"image": f"coco/{number}.jpg"} if image else {})


def prepare(folder, **options):
    config = {"form": "llava", "file": "mix.json", "images": "pictures", "count": None, "limit": None}
    config |= {"cache": str(folder)} | options
    conversations.prepare(folder / "new", **config)
    return storage.read(folder / "new", "train")


@pytest.fixture
def mix(tmp_path):
    said = ("<image>\nWhat is it?", "A cup.", "Which color?", "Red.")
    write(tmp_path, [entry(0, *said), entry(1, "Hello", "Hi", image=False), entry(2, "Who?\n<image>", "Nobody ")])
    for number in (0, 2):
        (tmp_path / f"pictures/coco/{number}.jpg").write_bytes(pictures.drawn_jpeg(number))
    return tmp_path


def test_turns_are_questions_and_answers_and_the_placeholder_of_the_picture_is_no_text(mix, caplog):
    with caplog.at_level(logging.WARNING):
        rows = prepare(mix)
    assert [list(each) for each in rows["questions"]] == [["What is it?", "Which color?"], ["Who?"], ["Hello"]]
    assert [list(each) for each in rows["answers"]] == [["A cup.", "Red."], ["Nobody"], ["Hi"]]
    assert [list(each) for each in rows["captions"]] == [["A cup."], ["Nobody"], ["Hi"]]
    assert list(rows["image"]) == [pictures.drawn_jpeg(0), pictures.drawn_jpeg(2), b""]
    assert "1 of 3 conversations have no picture" in caplog.text
    assert len(prepare(mix, count=3, limit=2)["image"]) == 2


def test_an_answer_before_the_first_question_and_the_last_question_are_left_out(mix):
    spoken = entry(0, "Who?", "Nobody", "And now?")
    spoken["conversations"].insert(0, {"from": "gpt", "value": "Hello"})
    write(mix, [spoken])
    rows = prepare(mix)
    assert [list(each) for each in (rows["questions"][0], rows["answers"][0])] == [["Who?"], ["Nobody"]]


def test_folders_of_img2dataset_are_read_one_after_another(tmp_path, monkeypatch):
    """Pairs by the million: what is read is no more than what is asked for."""
    for number in range(6):
        place = tmp_path / f"capsfusion/{number // 2:05d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.jpg").write_bytes(pictures.drawn_jpeg(number))
        (place / f"{number}.txt").write_text(f"a cup {number}")
    read = []
    caption = conversations._caption
    monkeypatch.setattr(conversations, "_caption", lambda path: read.append(path) or caption(path))
    options = {"form": "img2dataset", "file": None, "images": "capsfusion"}
    assert [each[0] for each in prepare(tmp_path, limit=3, **options)["captions"]] == ["a cup 0", "a cup 1", "a cup 2"]
    assert len(read) == 3
    assert len(prepare(tmp_path, count=6, **options)["image"]) == 6
    with pytest.raises(ValueError, match="there are 6 conversations or pictures, expected 7"):
        prepare(tmp_path, count=7, **options)


def test_pictures_with_a_text_file_beside_them_are_captioned(tmp_path):
    place = tmp_path / "capsfusion/00000"
    place.mkdir(parents=True)
    for number in range(3):
        (place / f"{number}.jpg").write_bytes(pictures.drawn_jpeg(number))
    (place / "0.txt").write_text("a cup \n")
    (place / "2.txt").write_text("a hat")
    rows = prepare(tmp_path, form="img2dataset", file=None, images="capsfusion")
    assert [list(each) for each in rows["captions"]] == [["a cup"], ["a hat"]]
    assert len(prepare(tmp_path, form="img2dataset", file=None, images="capsfusion", limit=1)["image"]) == 1


def test_a_caption_that_is_no_text_is_named(tmp_path):
    (tmp_path / "capsfusion").mkdir()
    (tmp_path / "capsfusion/0.jpg").write_bytes(pictures.drawn_jpeg(0))
    (tmp_path / "capsfusion/0.txt").write_bytes("grün".encode("latin-1"))
    with pytest.raises(ValueError, match=r"0\.txt cannot be read as text: .* Save it as UTF-8"):
        prepare(tmp_path, form="img2dataset", file=None, images="capsfusion")


def test_missing_and_broken_pictures_are_left_out_up_to_a_share(mix):
    (mix / "pictures/coco/0.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 1 picture files are broken, more than max_broken \(0.0\)"):
        prepare(mix)
    assert list(prepare(mix, max_broken=0.5)["image"]) == [pictures.drawn_jpeg(2), b""]
    (mix / "pictures/coco/0.jpg").write_bytes(b"no picture")
    assert list(prepare(mix, max_broken=0.5)["image"]) == [pictures.drawn_jpeg(2), b""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("{}", "is no list, expected LLaVA's form"),
        (json.dumps([entry(0, "a", "b", image=False)]), "none of 1 entries has an image"),
        (
            json.dumps([entry(0, "a", "b") | {"conversations": [{"from": "human", "value": "a"}] * 3}]),
            "entry 0 is said by .* in turn",
        ),
        (json.dumps([{"image": "a.jpg", "conversations": [{"value": "a"}]}]), "entry 0 has no turns with from and"),
        (
            json.dumps([entry(0, "How many?", 7)]),
            "mix.json: entry 0 has a turn with the value 7, expected a text",
        ),
        (
            json.dumps([entry(0, "a", "b") | {"image": ["a.jpg", "b.jpg"]}]),
            r"mix.json: entry 0 has the image \['a.jpg', 'b.jpg'\], expected the name of one file",
        ),
    ],
)
def test_files_of_another_form_are_refused(mix, content, message):
    (mix / "mix.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        prepare(mix)


def test_files_that_cannot_be_read_are_named(mix):
    (mix / "mix.json").write_bytes(json.dumps([entry(0, "a", "grün")], ensure_ascii=False).encode("latin-1"))
    with pytest.raises(ValueError, match=r"mix\.json cannot be read as text: .*Save it as UTF-8"):
        prepare(mix)
    for path in (mix / "other.json", mix):
        with pytest.raises(ValueError, match=f"{path} cannot be read: .*Give the JSON file"):
            conversations.read_llava(path)


def test_settings_that_do_not_fit_are_refused(mix):
    with pytest.raises(ValueError, match="file is None with form 'llava'"):
        prepare(mix, file=None)
    with pytest.raises(ValueError, match="there are 3 conversations or pictures, expected 2"):
        prepare(mix, count=2)
    with pytest.raises(ValueError, match=r"has no \.jpg with a \.txt beside it"):
        prepare(mix, form="img2dataset", file=None)
