"""Small files in the official forms, and each way in which one can be wrong."""

import ast
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightning_modules import settings
from lightning_modules.datasets.download import MIRROR_VARIABLE, DataUnavailable
from lightning_modules.datasets.video import annotation_files
from lightning_modules.datasets.video.annotated import merged
from lightning_modules.datasets.video.annotation_files import READERS, TASKS, Asked, Row, runs_of
from lightning_modules.datasets.video.corpora import read_index
from lightning_modules.datasets.video.drawn_annotations import WRITERS
from lightning_modules.files import sha256
from stages.composing import compose
from stages.sources import configured


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def lines(*entries: object) -> str:
    return "".join(f"{json.dumps(entry)}\n" for entry in entries)


RUN = ["Ab-1.3.mp4", "Ab-1.4.mp4"]
SAID = [{"clip_id": clip, "text": f" about {clip[5]} "} for clip in RUN]
SUBTITLES = [{"start": 0.5, "end": 2, "text": " well "}, {"start": 2, "end": 3, "text": " "}]
HOW2QA = {"clip_id": "v_0_60", "span": [7.2, 18.0], "text_q": "how many knives?", "text_a": ["10", "12", "1", "16"],
          "text_s": SUBTITLES, "answer_idx": 2}  # fmt: skip
ACTION = "gif_name\tquestion\ta1\ta2\ta3\ta4\ta5\tanswer\tvid_id\tkey\nt1\tWhat ?\ta\tb\tc\td\te\t2\tACTION1\t5\n"
FRAME = "gif_name\tquestion\tanswer\ttype\tvid_id\tdescription\nt1\thow many dogs ?\ttwo\t1\tFRAMEQA3\ttwo dogs\n"
COUNT = "gif_name\tquestion\tanswer\tvid_id\tkey\nt1\tHow many times ?\t5\tCOUNT2\t16\n"
MC = {"qid": 0, "clip_name": "video7010", "options": ["a", "b", "c", "d", "e"], "answer": 3}
COIN = {"database": {
    "LtR": {"class": "ReplaceCDDriveWithSSD", "subset": "training", "recipe_type": 131, "annotation": []},
    "Xyz": {"class": "ArcWeld", "subset": "testing", "recipe_type": 2, "annotation": []},
}}  # fmt: skip
MOVIES = 'videoid,caption,split,upload_year\nabc,"He runs, then falls",train,2011\ndef,She waits,val,2012\n'
ACTIVITYNET = {
    "v_a": {"duration": 9.0, "timestamps": [[0, 3], [9, 2], [1, 2]], "sentences": ["He sits. ", " Up.", " "]}
}
QUESTION = [{"video_name": "okC", "question": "are all men", "question_id": "v_okC_3"}]
ANSWER = [{"answer": "no", "type": 3, "question_id": "v_okC_3"}]

FORMS = [
    ("long_videos", "runs.jsonl", lines(RUN), {"texts": lines(*SAID)},
     Row(("Ab-1/Ab-1.3.mp4", "Ab-1/Ab-1.4.mp4"), ("about 3", "about 4"))),
    ("long_videos", "runs.jsonl", lines(SAID), {},
     Row(("Ab-1/Ab-1.3.mp4", "Ab-1/Ab-1.4.mp4"), ("about 3", "about 4"))),
    ("long_videos", "clips.jsonl", lines(*SAID, {"clip_id": "Ab-1.9.mp4", "text": "alone"}), {},
     Row(("Ab-1/Ab-1.3.mp4", "Ab-1/Ab-1.4.mp4"), ("about 3", "about 4"))),
    ("clips", "clips.jsonl", lines(SAID[0]), {}, Row(("Ab-1/Ab-1.3.mp4",), ("about 3",))),
    ("clips", "clips.jsonl", lines({"clip_id": RUN[1]}), {"texts": lines(*SAID)},
     Row(("Ab-1/Ab-1.4.mp4",), ("about 4",))),
    ("paragraphs", "train.jsonl", lines({"clip_id": "q", "text": ["He sits. ", " ", "Up."]}), {},
     Row(("q",), ("He sits.", "Up."))),
    ("paragraphs", "train.jsonl", lines({"clip_id": "q", "text": "He sits."}), {}, Row(("q",), ("He sits.",))),
    ("activitynet", "train.json", ACTIVITYNET, {}, Row(("v_a",), ("He sits.", "Up."), (0.0, 2.0), (3.0, 9.0))),
    ("didemo", "train.json", [{"video": "1@N_2.mov", "description": "a"}, {"video": "1@N_2.avi", "description": "b "}],
     {}, Row(("1@N_2",), ("a", "b"))),
    ("condensed_movies", "meta.csv", MOVIES, {"subset": "train"}, Row(("abc",), ("He runs, then falls",))),
    ("tgif_action", "Train_action_question.csv", ACTION, {},
     Row(("t1",), question="What ?", options=tuple("abcde"), label=2)),
    ("tgif_transition", "train.jsonl",
     lines({"gif_name": "t1", "question": "What ?", "options": [*"abcde"], "answer": 4}), {},
     Row(("t1",), question="What ?", options=tuple("abcde"), label=4)),
    ("tgif_frame", "Train_frameqa_question.csv", FRAME, {},
     Row(("t1",), question="how many dogs ?", answer="two", kind="number")),
    ("tgif_frame", "train.jsonl",
     lines({"gif_name": "t1", "question": "what ?", "answer": "cookie", "answer_type": "object"}), {},
     Row(("t1",), question="what ?", answer="cookie", kind="object")),
    ("tgif_count", "Train_count_question.csv", COUNT, {}, Row(("t1",), question="How many times ?", label=5)),
    ("msrvtt_qa", "train.json",
     [{"answer": "couch", "category_id": 1, "id": 0, "question": "What is it?", "video_id": 6513}], {},
     Row(("video6513",), question="What is it?", answer="couch", kind="what")),
    ("msrvtt_qa", "train.jsonl",
     lines({"answer": "couch", "question": "on what?", "video_id": "video6513", "answer_type": "what"}), {},
     Row(("video6513",), question="on what?", answer="couch", kind="what")),
    ("msrvtt_mc", "test.jsonl", lines(MC), {}, Row(("video7010",), options=tuple("abcde"), label=3)),
    ("activitynet_qa", "train_q.json", QUESTION, {"answers": json.dumps(ANSWER)},
     Row(("okC",), question="are all men", answer="no", kind="yes_no")),
    ("how2qa", "val.jsonl", lines(HOW2QA), {},
     Row(("v_0_60",), ("well",), (0.5,), (2.0,), "how many knives?", ("10", "12", "1", "16"), 2, span=(7.2, 18.0))),
    ("violin", "test.jsonl", lines({"clip_id": "f_1", "text_q": "He sits", "text_s": SUBTITLES, "answer": 1}), {},
     Row(("f_1",), ("well",), (0.5,), (2.0,), "He sits", label=1)),
    ("coin", "COIN.json", COIN, {"subset": "training"}, Row(("LtR",), label=131)),
    ("classes", "scene.jsonl", lines({"video_id": "abc", "recipe_type": "5"}), {}, Row(("abc",), label=5)),
]  # fmt: skip


def asked(folder: Path, name: str, content: object, beside: dict, **changes) -> Asked:
    """The files of a split, written."""
    others = {key: write(folder / key, text) if key in ("texts", "answers") else text for key, text in beside.items()}
    return Asked(write(folder / name, content), **others, consecutive=2, **changes)


def same(row: Row, other: Row) -> bool:
    return row._replace(span=()) == other._replace(span=()) and str(row.span) == str(other.span)


@pytest.mark.parametrize(("corpus", "name", "content", "beside", "expected"), FORMS)
def test_rows_of_each_official_form(tmp_path, corpus, name, content, beside, expected):
    [row] = READERS[corpus](asked(tmp_path, name, content, beside))
    assert same(row, expected)


def test_every_form_is_read_and_written_here():
    assert READERS.keys() == WRITERS.keys() == TASKS.keys() == {corpus for corpus, *_ in FORMS}


@pytest.mark.parametrize(("corpus", "name", "content", "beside", "expected"), FORMS)
def test_a_byte_order_mark_changes_nothing(tmp_path, corpus, name, content, beside, expected):
    files = asked(tmp_path, name, content, beside)
    files.annotations.write_bytes(b"\xef\xbb\xbf" + files.annotations.read_bytes())
    [row] = READERS[corpus](files)
    assert same(row, expected)


def test_runs_are_clips_of_one_video_with_numbers_in_a_row_that_all_say_something():
    said = {f"a.{number}.mp4": "x" for number in (9, 10, 11, 2, 3, 5)} | {"a.12.mp4": "", "b.13.mp4": "x"}
    runs = [["a.2.mp4", "a.3.mp4"], ["a.5.mp4"], ["a.9.mp4", "a.10.mp4", "a.11.mp4"], ["b.13.mp4"]]
    assert list(runs_of(said, 1)) == runs
    assert list(runs_of(said, 2)) == [runs[0], runs[2]]
    assert list(runs_of(said, 4)) == []
    with pytest.raises(
        ValueError, match=r"the clip 'a.mp4' has no number, expected an id such as 'QMi8x8o55Ns.16.mp4'"
    ):
        list(runs_of({"a.mp4": "x"}, 1))


def test_a_paragraph_is_shortened_at_its_shortest_neighbours():
    """By hand: 4 + 1 and 1 + 4 are equally short, so the first pair goes; then 2 + 4 before 6 + 2."""
    texts = ["aaaa", "b", "cccc", "dd", "eeee"]
    times = [0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0, 5.0]
    found, starts, ends = merged(texts, 4, *times)
    assert (found, starts, ends) == (["aaaa b", "cccc", "dd", "eeee"], [0, 2, 3, 4], [2, 3, 4, 5])
    found, starts, ends = merged(texts, 2, *times)
    assert (found, starts, ends) == (["aaaa b", "cccc dd eeee"], [0, 2], [2, 5])
    assert merged(texts, 9) == (texts, [], []) and merged(["a", "b"], 1)[0] == ["a b"]
    with pytest.raises(ValueError, match=r"most \(0\) must be at least 1"):
        merged(texts, 0)


def test_merging_is_what_the_official_code_does():
    """Lengths after each number of sentences, as `merge` of retrieval_dataset.py gave them for these words."""
    texts = [word * repeat for word, repeat in zip("abcdefgh", (7, 3, 9, 2, 2, 8, 1, 5), strict=True)]
    found = {most: list(map(len, merged(texts, most)[0])) for most in range(7, 0, -1)}
    assert found == {
        7: [7, 3, 9, 5, 8, 1, 5], 6: [7, 3, 9, 5, 8, 7], 5: [11, 9, 5, 8, 7], 4: [11, 9, 14, 7],
        3: [21, 14, 7], 2: [21, 22], 1: [44],
    }  # fmt: skip
    assert all(" ".join(merged(texts, most)[0]) == " ".join(texts) for most in found)


# What a user can get wrong in a file

WRONG = [
    ("how2qa", "v.jsonl", {**HOW2QA, "span": [1.0]}, r"line 1: span is \[1.0\], expected two times in seconds"),
    ("how2qa", "v.jsonl", {**HOW2QA, "span": ["a", "b"]}, r"line 1: span is 'a', expected a time in seconds"),
    ("how2qa", "v.jsonl", {**HOW2QA, "text_s": "well"}, r"line 1: text_s is 'well', expected a list"),
    ("how2qa", "v.jsonl", {**HOW2QA, "text_s": ["well"]}, r"line 1: text_s is 'well', expected an object with 'text'"),
    ("how2qa", "v.jsonl", {**HOW2QA, "answer_idx": "two"}, r"line 1: answer_idx is 'two', expected a whole number"),
    ("how2qa", "v.jsonl", {**HOW2QA, "answer_idx": True}, r"line 1: answer_idx is True, expected a whole number"),
    ("how2qa", "v.jsonl", {**HOW2QA, "text_a": [1, 2]}, r"line 1: text_a is \[1, 2\], expected a list of texts"),
    ("how2qa", "v.jsonl", {**HOW2QA, "text_q": None}, r"line 1: text_q is None, expected a text"),
    ("violin", "v.jsonl", {"clip_id": "a"}, r"line 1 has no 'text_q', only clip_id: take the official file"),
    ("classes", "v.jsonl", ["a"], r"line 1 is \['a'\], expected an object with 'video_id'"),
    ("paragraphs", "v.jsonl", {"video": "a"}, r"line 1 has no 'clip_id', only video"),
    ("tgif_frame", "v.csv", FRAME.replace("\t1\t", "\t7\t"), r"row 1: type is 7, expected 0 to 3"),
    ("tgif_count", "v.csv", COUNT.replace("\t5\t", "\t-5\t"), r"row 1: answer is -5, expected how often"),
    ("tgif_action", "v.csv", ACTION.replace("\t", ","), r"row 1 has no 'a1', only gif_name,question"),
    ("condensed_movies", "v.csv", MOVIES, r"has no split 'test', but train, val: correct splits.<split>.subset"),
    ("coin", "v.json", COIN, r"has no subset 'test', but testing, training"),
    ("coin", "v.json", {"LtR": {}}, r"v.json has no object 'database'"),
    ("activitynet", "v.json", [], r"v.json holds \[\], expected an object"),
    ("activitynet", "v.json", {"v_a": {"sentences": ["a"], "timestamps": [[0, 1], [1, 2]]}},
     r"v.json: v_a has 1 sentences and 2 timestamps, expected one of each"),
    ("activitynet", "v.json", {"v_a": {"sentences": ["a"], "timestamps": [3]}},
     r"a timestamp is 3, expected two times in seconds"),
    ("didemo", "v.json", {"a": 1}, r"v.json holds \{'a': 1\}, expected a list"),
    ("msrvtt_qa", "v.json", [{"video_id": 1.5, "question": "what", "answer": "a"}],
     r"entry 1: video_id is 1.5, expected a whole number"),
    ("long_videos", "v.jsonl", RUN[:1], r"line 1 has a run of 1 clips, expected at least consecutive \(2\)"),
    ("long_videos", "v.jsonl", RUN, r"line 1 has clips without texts: name the file of them"),
    ("long_videos", "v.jsonl", [[1], [2]], r"line 1 is \[1\], expected an object with 'clip_id'"),
    ("long_videos", "v.jsonl", "", r"v.jsonl is empty: take the official file"),
]  # fmt: skip


@pytest.mark.parametrize(("corpus", "name", "content", "told"), WRONG)
def test_what_is_wrong_in_a_file_is_told_with_its_place(tmp_path, corpus, name, content, told):
    content = content if isinstance(content, str) or name.endswith(".json") else lines(content)
    with pytest.raises(ValueError, match=told) as error:
        READERS[corpus](asked(tmp_path, name, content, {"subset": "test"}))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("corpus", "name"), sorted({(corpus, name) for corpus, name, *_ in FORMS if ".csv" not in name})
)
def test_files_that_are_no_json_or_no_text_are_told(tmp_path, corpus, name):
    files = asked(tmp_path, name, '{"cut": ', {"subset": "test", "answers": "[]"})
    with pytest.raises(
        ValueError, match=rf"{name}(, line 1)? is no JSON \(.*\): take the official file, or complete it"
    ):
        READERS[corpus](files)
    files.annotations.write_bytes(b"\x00\xff\xfe")
    with pytest.raises(ValueError, match=rf"{name} is no text in UTF-8 \(.*\): take the official file"):
        READERS[corpus](files)


@pytest.mark.parametrize(("corpus", "name", "content", "beside"), [
    ("long_videos", "v.jsonl", lines(SAID, SAID), {}),
    ("clips", "v.jsonl", lines(SAID[0], SAID[0]), {}),
    ("paragraphs", "v.jsonl", lines(*[{"clip_id": "a", "text": "b"}] * 2), {}),
    ("activitynet", "v.json", '{"v_a": {"sentences": ["a"]}, "v_a": {"sentences": ["b"]}}', {}),
    ("condensed_movies", "v.csv", MOVIES.replace("def", "abc").replace("val", "train"), {"subset": "train"}),
    ("msrvtt_mc", "v.jsonl", lines(MC, MC), {}),
    ("activitynet_qa", "v.json", QUESTION * 2, {"answers": json.dumps(ANSWER)}),
    ("activitynet_qa", "v.json", QUESTION, {"answers": json.dumps(ANSWER * 2)}),
    ("classes", "v.jsonl", lines(*[{"video_id": "a", "recipe_type": 1}] * 2), {}),
])  # fmt: skip
def test_what_comes_twice_is_named(tmp_path, corpus, name, content, beside):
    with pytest.raises(ValueError, match=r"has \d names more than once, '.+' first: keep one of each"):
        READERS[corpus](asked(tmp_path, name, content, beside))


def test_a_question_without_an_answer_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"entry 1: .*answers has no answer to question 'v_okC_3': take files of one split"
    ):
        READERS["activitynet_qa"](asked(tmp_path, "q.json", QUESTION, {"answers": "[]"}))


# LMDB


class Database(dict):
    """What the tests use of a transaction of lmdb."""

    def stat(self):
        return {"entries": len(self)}


@pytest.fixture
def lmdb(monkeypatch):
    """A module `lmdb` that reads folders with a Python literal instead."""

    class Opened:
        def __init__(self, path, **_):
            if not (Path(path) / "data.mdb").is_file():
                raise fake.Error(f"{path}: No such file or directory")
            self.found = Database(ast.literal_eval((Path(path) / "data.mdb").read_text()))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def begin(self):
            return BegunWith(self.found)

    class BegunWith:
        def __init__(self, found):
            self.found = found

        def __enter__(self):
            return self.found

        def __exit__(self, *_):
            pass

    fake = SimpleNamespace(open=Opened, Error=type("Error", (Exception,), {}))
    monkeypatch.setitem(sys.modules, "lmdb", fake)
    return lambda folder, content: write(folder / "data.mdb", repr(content)).parent


def test_lmdb_folders_hold_runs_or_transcripts(tmp_path, lmdb):
    runs = lmdb(tmp_path / "train_db", {b"0": repr(SAID).encode(), b"1": repr([{"clip_id": "Cd.0.mp4", "text": "x"},
                {"clip_id": "Cd.1.mp4", "text": "y"}]).encode()})  # fmt: skip
    found = READERS["long_videos"](Asked(runs, consecutive=2))
    assert [row.texts for row in found] == [("about 3", "about 4"), ("x", "y")]
    assert len(READERS["long_videos"](Asked(runs, consecutive=2, most=1))) == 1
    texts = lmdb(tmp_path / "part1", {RUN[0].encode(): b"about 3"})
    clips = write(tmp_path / "part1.jsonl", lines(*({"clip_id": clip} for clip in RUN)))
    assert [row.texts for row in READERS["clips"](Asked(clips, texts=texts))] == [("about 3",), ("",)]
    listed = write(tmp_path / "runs.jsonl", lines(RUN))
    assert [row.texts for row in READERS["long_videos"](Asked(listed, texts=texts))] == [("about 3", "")]


@pytest.mark.parametrize(("content", "told"), [
    ({b"1": b"[]"}, "key 0 is not there, expected keys from 0 on"),
    ({b"0": b"__import__('os')"}, r"key 0 is b\"__import__\('os'\)\", expected a list of clips"),
    ({b"0": b"\xff"}, "key 0 is .*, expected a list of clips"),
])  # fmt: skip
def test_an_lmdb_folder_of_another_form_is_told_and_runs_no_code(tmp_path, lmdb, content, told):
    with pytest.raises(ValueError, match=told):
        READERS["long_videos"](Asked(lmdb(tmp_path / "db", content), consecutive=2))


def test_an_lmdb_folder_without_lmdb_or_without_its_file_is_told(tmp_path, lmdb, monkeypatch):
    (tmp_path / "db").mkdir()
    with pytest.raises(ValueError, match=r"db is no LMDB folder \(.*\): it must hold data.mdb"):
        READERS["long_videos"](Asked(tmp_path / "db"))
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ModuleNotFoundError, match="db is an LMDB folder, read with lmdb: pip install lmdb"):
        READERS["long_videos"](Asked(tmp_path / "db"))


def test_lmdb_itself_reads_what_it_has_written(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "db")) as environment, environment.begin(write=True) as written:
        written.put(b"0", repr(SAID).encode())
    assert READERS["long_videos"](Asked(tmp_path / "db", consecutive=2))[0].texts == ("about 3", "about 4")


# Preparing


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)


def qa(*answers: str) -> str:
    return lines(*({"video_id": f"v{n}", "question": "what is it?", "answer": a} for n, a in enumerate(answers)))


def prepare(folder: Path, copy: Path, files: dict, **changes) -> dict:
    """Prepares MSRVTT-QA, or what `changes` say, from a copy with these files; returns the card."""
    (copy / "toy/videos").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write(copy / "toy" / name, content)
    values = {
        "name": "toy", "corpus": "msrvtt_qa", "splits": {"train": {"annotations": "train.jsonl"}},
        "vocabulary": {"splits": ["train"]}, "mirror": str(copy), "cache": str(copy / "cache"), "suffix": ".mp4",
    } | changes  # fmt: skip
    block = {"_target_": "lightning_modules.datasets.video.annotated.prepare", **values}
    settings.bind(block, "conf/dataset/toy/tiny.yaml")(folder)
    return json.loads((folder / "card.json").read_text())


ASKED = {"video_id": "a", "question": "q", "answer": "b"}
TWO = {"train": {"annotations": "train.jsonl"}, "test": {"annotations": "test.jsonl"}}


def test_open_answers_are_numbered_by_how_often_training_gives_them(tmp_path):
    files = {"train.jsonl": qa("b", "a", "c", "b", "c", "d"), "test.jsonl": qa("c", "z", "a")}
    card = prepare(tmp_path / "index", tmp_path, files, splits=TWO)
    assert card["answers"] == ["b", "c", "a", "d"] and card["task"] == "answers" and card["kinds"] == ["what"]
    assert read_index(tmp_path / "index", "test")["label"].tolist() == [1, -1, 2]
    assert card["splits"]["test"]["outside"] == 1 and card["splits"]["train"]["outside"] == 0
    vocabulary = {"splits": ["train", "test"], "least": 2, "expected": 3}
    assert prepare(tmp_path / "index", tmp_path, files, splits=TWO, vocabulary=vocabulary)["answers"] == ["c", "a", "b"]
    vocabulary = {"splits": ["train"], "most": 1}
    card = prepare(tmp_path / "index", tmp_path, files, splits=TWO, vocabulary=vocabulary)
    assert card["answers"] == ["b"] and card["splits"]["train"]["outside"] == 4
    with pytest.raises(ValueError, match=r"there are 4 answers in train, expected vocabulary.expected \(1500\)"):
        prepare(tmp_path / "index", tmp_path, files, splits=TWO, vocabulary={"splits": ["train"], "expected": 1500})


def test_files_have_prefix_and_suffix_and_the_index_is_the_same_each_time(tmp_path):
    prepare(tmp_path / "index", tmp_path, {"train.jsonl": qa("a", "b")}, prefix="v_")
    first = {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()}
    assert [list(files) for files in read_index(tmp_path / "index", "train")["files"]] == [["v_v0.mp4"], ["v_v1.mp4"]]
    prepare(tmp_path / "index", tmp_path, {}, prefix="v_")
    assert {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()} == first


def test_rows_that_come_again_are_counted_and_stay(tmp_path, caplog):
    card = prepare(tmp_path / "index", tmp_path, {"train.jsonl": qa("a") * 3})
    assert (card["splits"]["train"]["rows"], card["splits"]["train"]["repeated"]) == (3, 2)
    assert "split 'train' has 2 of 3 rows more than once" in caplog.text


@pytest.mark.parametrize(("corpus", "entries", "changes"), [
    ("msrvtt_qa", [{**ASKED, "question": " "}, ASKED], {}),
    ("msrvtt_qa", [{**ASKED, "answer": ""}, ASKED], {}),
    ("msrvtt_mc", [{**MC, "options": ["a", " ", "c", "d", "e"]}, {**MC, "qid": 1}], {"labels": 5, "vocabulary": None}),
    ("paragraphs", [{"clip_id": "a", "text": [" "]}, {"clip_id": "b", "text": "c"}], {"vocabulary": None}),
    ("long_videos", [[SAID[0], {**SAID[1], "text": ""}], [{**said, "clip_id": "b.1.mp4"} for said in SAID]],
     {"vocabulary": None, "consecutive": 2}),
])  # fmt: skip
def test_rows_with_a_blank_text_are_left_out_counted_and_bounded(tmp_path, corpus, entries, changes):
    files, changes = {"train.jsonl": lines(*entries)}, {"corpus": corpus, **changes}
    with pytest.raises(ValueError, match=r"1 of 2 rows of split 'train' have a blank or missing text in train.jsonl"):
        prepare(tmp_path / "index", tmp_path, files, **changes)
    card = prepare(tmp_path / "index", tmp_path, files, **changes, max_left_out=0.5)
    assert (card["splits"]["train"]["left_out"], card["splits"]["train"]["rows"]) == (1, 1)


def test_listed_videos_come_in_the_order_of_the_list(tmp_path):
    files = {"train.jsonl": lines(*({"clip_id": name, "text": f"about {name}"} for name in "abc"))}
    listed = write(tmp_path / "retrieval-splits/toy/train.txt", "c\na\n")
    changes = {
        "corpus": "paragraphs", "vocabulary": None, "lists": {"toy/train.txt": {"sha256": sha256(listed)}},
        "splits": {"train": {"annotations": "train.jsonl", "videos": "toy/train.txt", "rows": 2}},
    }  # fmt: skip
    prepare(tmp_path / "index", tmp_path, files, **changes)
    assert [texts[0] for texts in read_index(tmp_path / "index", "train")["texts"]] == ["about c", "about a"]
    write(listed, "c\nz\n")
    changes["lists"] = {"toy/train.txt": {"sha256": sha256(listed)}}
    with pytest.raises(ValueError, match=r"1 of 2 listed videos are not annotated in train.jsonl, the first is z"):
        prepare(tmp_path / "index", tmp_path, files, **changes)


@pytest.mark.parametrize(("changes", "told"), [
    ({"vocabulary": None}, r"vocabulary is None, but for msrvtt_qa it must say which answers can be given"),
    ({"vocabulary": {"splits": ["dev"]}}, r"vocabulary.splits has 'dev', expected some of train"),
    ({"vocabulary": {"splits": ["train"], "expect": 3}}, r"vocabulary.expect: unknown key"),
    ({"labels": 5}, r"labels is 5, but for msrvtt_qa it must say null"),
    ({"corpus": "coin", "vocabulary": None}, r"labels is None, but for coin it must say how many options or classes"),
    ({"corpus": "violin", "labels": 2}, r"vocabulary is .*, but for violin it must say null"),
    ({"corpus": "coin", "vocabulary": None, "labels": 3}, r"subset is None, but for coin it must be the name"),
    ({"splits": {"train": {"annotations": "train.jsonl", "subset": "a"}}}, r"subset is 'a', .* it must be null"),
    ({"splits": {"train": {"annotations": "train.jsonl", "answers": "a"}}}, r"answers is 'a', .* it must be null"),
    ({"splits": {"train": {"annotations": "train.jsonl", "texts": "a"}}}, r"texts is 'a', .* it must be null"),
    ({"splits": {"train": {"annotations": "train.jsonl", "videos": "a"}}}, r"videos \('a'\) must be one of lists"),
    ({"corpus": "activitynet_qa"}, r"answers is None, but for activitynet_qa it must be the file of answers"),
    ({"corpus": "tgif"}, r"corpus is 'tgif', expected"),
    ({"splits": {"train": {"annotations": "train.jsonl", "rows": 3}}}, r"split 'train' has 2 rows, expected 3"),
    ({"prefix": "../"}, r"the video '../v0' would lie outside the folder of the videos"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_told(tmp_path, changes, told):
    with pytest.raises(ValueError, match=told):
        prepare(tmp_path / "index", tmp_path, {"train.jsonl": qa("a", "b")}, **changes)


@pytest.mark.parametrize(("entry", "told"), [
    ({**MC, "answer": 5}, r"video7010 in train.jsonl has the label 5, expected 0 to 4 of labels \(5\)"),
    ({**MC, "options": ["a", "b"]}, r"video7010 in train.jsonl has 2 options, expected labels \(5\)"),
])  # fmt: skip
def test_options_and_labels_that_are_none_are_told(tmp_path, entry, told):
    with pytest.raises(ValueError, match=told):
        prepare(tmp_path / "i", tmp_path, {"train.jsonl": lines(entry)}, corpus="msrvtt_mc", vocabulary=None, labels=5)


def test_a_missing_file_says_what_was_tried_and_where_to_put_it(tmp_path):
    with pytest.raises(DataUnavailable, match=r"toy: train.jsonl could not be had.*"):
        prepare(tmp_path / "index", tmp_path, {})


def test_the_data_sets_are_these():
    found = {name: compose("paper", dataset=name)["dataset"] for name in configured("dataset", "paper")}
    mine = {name: c for name, c in found.items() if c["_target_"].endswith("video.annotated.prepare")}
    assert {c["corpus"] for c in mine.values()} == TASKS.keys()
    assert len(mine) == 19


def test_a_time_that_is_not_known_is_not_a_number(tmp_path):
    [row] = READERS["how2qa"](asked(tmp_path, "v.jsonl", lines({**HOW2QA, "span": [None, None]}), {}))
    assert all(map(math.isnan, row.span))
    [row] = READERS["how2qa"](asked(tmp_path, "v.jsonl", lines(HOW2QA).replace("7.2, 18.0", "NaN, NaN"), {}))
    assert all(map(math.isnan, row.span))
    assert annotation_files.OUTSIDE == Row(("a",)).label
