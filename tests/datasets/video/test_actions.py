"""The official annotation files of seven corpora, small and written here: rows, classes, files that are not there."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lightning_modules import rehearsal, settings
from lightning_modules.datasets.download import MIRROR_VARIABLE, DataUnavailable
from lightning_modules.datasets.video import actions
from lightning_modules.datasets.video.actions import Row
from lightning_modules.datasets.video.corpora import read_index
from stages.composing import compose
from stages.rehearsal import work

KINETICS = """label,youtube_id,time_start,time_end,split
testifying,---QUuC4vJs,84,94,validate
"throwing ball (not baseball, or American football)",-_x,0,10,validate
testifying,-3B32lodo2M,59.0,69.0,validate
"""
MOMENTS = """blocking/getty-karate-video-id635808620_4.mp4,blocking,3,0
adult+female+singing/yt-a_1.mp4,adult+female+singing,2,1
"""
SOMETHING = [
    {"id": "78687", "label": "holding potato", "template": "Holding [something] next to [something]"},
    {"id": "42326", "label": "closing door", "template": "Closing [something]"},
]  # fmt: skip
CHARADES = """id,subject,scene,script,actions,length
YSKX3,CP6Y,"Den, or cave","A person
fixes, then throws a pillow.",c077 12.10 18.00;c000 11.80 17.30;c077 1.00 2.00,16.62
T5ECU,M7K8,Living room,One smiles.,,31.29
"""
EPIC = "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
EPIC += """narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes
P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,open,3,door,3,['door'],[3]
P01_01_1,P01,P01_01,00:00:02.629,01:02:04.37,01:02:06.175,262,370,turn on light,turn-on,1,light,0,['light'],[0]
"""
UCF101 = """ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1
YoYo/v_YoYo_g25_c05.avi 101
"""
OBJECTRON = "cereal_box/batch-3/14\nbike/batch-10/3\n"
FORMS = {
    "kinetics": KINETICS,
    "moments": MOMENTS,
    "something_something": SOMETHING,
    "charades": CHARADES,
    "epic_kitchens": EPIC,
    "ucf101": UCF101,
    "objectron": OBJECTRON,
}
ROWS = {
    "kinetics": [
        Row("---QUuC4vJs_000084_000094.mp4", "---QUuC4vJs_000084_000094.mp4", ("testifying",)),
        Row("-_x_000000_000010.mp4", "-_x_000000_000010.mp4", ("throwing ball (not baseball, or American football)",)),
        Row("-3B32lodo2M_000059_000069.mp4", "-3B32lodo2M_000059_000069.mp4", ("testifying",)),
    ],
    "moments": [
        Row(name, name, (name.split("/")[0],))
        for name in ("blocking/getty-karate-video-id635808620_4.mp4", "adult+female+singing/yt-a_1.mp4")
    ],
    "something_something": [
        Row("78687", "78687.webm", ("Holding something next to something",)),
        Row("42326", "42326.webm", ("Closing something",)),
    ],
    "charades": [Row("YSKX3", "YSKX3.mp4", ("c077", "c000", "c077")), Row("T5ECU", "T5ECU.mp4", ())],
    "epic_kitchens": [
        Row("P01_01_0", "P01/videos/P01_01.MP4", ("3", "3"), 0.14, 3.37),
        Row("P01_01_1", "P01/videos/P01_01.MP4", ("1", "0"), 3724.37, 3726.175),
    ],
    "ucf101": [
        Row(name, name, (name.split("/")[0],))
        for name in ("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "YoYo/v_YoYo_g25_c05.avi")
    ],
    "objectron": [
        Row("cereal_box/batch-3/14", "cereal_box/batch-3/14/video.MOV", ("cereal_box",)),
        Row("bike/batch-10/3", "bike/batch-10/3/video.MOV", ("bike",)),
    ],
}  # fmt: skip
DATASETS = {
    "kinetics400": 400, "kinetics600": 600, "kinetics700": 700, "moments_in_time": 339, "charades": 157,
    "something_something_v2": 174, "epic_kitchens_100": 397, "ucf101": 101, "objectron": 9,
}  # fmt: skip


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("corpus", FORMS)
def test_rows_of_the_official_files(tmp_path, corpus):
    path = write(tmp_path / "annotations", FORMS[corpus])
    assert actions.READERS[corpus](path) == ROWS[corpus]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert actions.READERS[corpus](path) == ROWS[corpus], "a byte order mark changes nothing"


@pytest.mark.parametrize(("corpus", "content", "expected"), [
    ("moments", "clapping,1\na+singing,0\n", {"a+singing": "a+singing", "clapping": "clapping"}),
    ("something_something", {"B thing": "1", "A thing": "0"}, {"A thing": "A thing", "B thing": "B thing"}),
    ("charades", "c001 Putting clothes somewhere\nc000 Holding some clothes\n",
     {"c000": "Holding some clothes", "c001": "Putting clothes somewhere"}),
    ("epic_kitchens", 'id,key,instances,category\n0,"take","[\'take\', \'get\']",retrieve\n1,put,"[\'put\']",leave\n',
     {"0": "take", "1": "put"}),
    ("ucf101", "1 ApplyEyeMakeup\n2 ApplyLipstick\n",
     {"ApplyEyeMakeup": "ApplyEyeMakeup", "ApplyLipstick": "ApplyLipstick"}),
])  # fmt: skip
def test_classes_are_in_the_order_of_their_numbers(tmp_path, corpus, content, expected):
    found = actions.CLASSES[corpus](write(tmp_path / "classes", content))
    assert list(found.items()) == list(expected.items())


@pytest.mark.parametrize(("corpus", "content", "message"), [
    ("kinetics", KINETICS.replace("84,94", "soon,94"), r"time_start of ---QUuC4vJs is 'soon', expected"),
    ("kinetics", KINETICS.replace("youtube_id", "id"), "does not have the form of kinetics annotations"),
    ("kinetics", KINETICS + "testifying,-_x,0,10,train\n", r"1 rows more than once, '-_x_000000_0.*keep one"),
    ("kinetics", KINETICS.replace("-_x", "../x"), r"'../x_000000_000010' would lie outside the folder of the videos"),
    ("moments", MOMENTS + "a.mp4,blocking,3,0\n", "line 3: expected a file in the folder of its class, the class, two"),
    ("something_something", [{"id": "1", "label": "x"}], r"does not have the form of something_something annotations"),
    ("something_something", "[{", r"does not have the form of something_something annotations"),
    ("charades", CHARADES.replace("c077 12.10 18.00", "c077 12.10"), r"an action of YSKX3 is 'c077 12.10', expected"),
    ("ucf101", UCF101 + "v_YoYo_g25_c05.avi\n", r"line 3 is 'v_YoYo_g25_c05.avi', expected a file in the"),
    ("objectron", OBJECTRON + "bike/3\n", r"line 3 is 'bike/3', expected a class, a batch and a number"),
    ("epic_kitchens", EPIC.replace("00:00:03.37", "3.37"), r"the time '3.37' is not of the form HH:MM:SS.ss"),
    ("epic_kitchens", EPIC.replace("00:00:03.37", "00:00:00.14"), r"P01_01_0 goes from 0.14 to 0.14 s"),
])  # fmt: skip
def test_files_of_another_form_are_refused(tmp_path, corpus, content, message):
    with pytest.raises(ValueError, match=message):
        actions._read(actions.READERS[corpus], corpus, write(tmp_path / "annotations", content))


def test_numbers_of_classes_have_no_gap(tmp_path):
    with pytest.raises(ValueError, match=r"numbers \[0, 2\]\.\.\., expected 0, 1, 2"):
        actions.moments_classes(write(tmp_path / "classes", "a,0\nb,2\n"))
    with pytest.raises(ValueError, match=r"the number of 'YoYo' is 'one', expected a number"):
        actions.ucf101_classes(write(tmp_path / "classes", "one YoYo\n"))
    with pytest.raises(ValueError, match=r"the number of 'b' is 'two', expected a number"):
        actions.moments_classes(write(tmp_path / "classes", "a,0\nb,two\n"))


def prepare(folder: Path, copy: Path, **changes):
    """Prepares the Kinetics of above from a copy with a file for each of its clips, two of them in class folders."""
    write(copy / "toy/val.csv", KINETICS)
    for place in ("testifying/---QUuC4vJs_000084_000094.mp4", "-_x_000000_000010.mp4",
                  "testifying/-3B32lodo2M_000059_000069.mp4"):  # fmt: skip
        write(copy / "toy/val" / place, "a video")
    values = {
        "name": "toy", "corpus": "kinetics", "splits": {"val": {"annotations": "val.csv", "videos": "val", "rows": 3}},
        "classes": {"action": {"number": 2}}, "mirror": str(copy), "cache": str(copy / "cache"),
    } | changes  # fmt: skip
    block = {"_target_": "lightning_modules.datasets.video.actions.prepare", **values}
    settings.bind(block, "conf/dataset/toy/paper.yaml")(folder)


def test_the_index_has_files_where_they_are_and_classes_by_number(tmp_path):
    prepare(tmp_path / "index", tmp_path / "copy")
    found = read_index(tmp_path / "index", "val")
    assert found["file"].tolist() == [
        "testifying/---QUuC4vJs_000084_000094.mp4", "-_x_000000_000010.mp4", "testifying/-3B32lodo2M_000059_000069.mp4"
    ]  # fmt: skip
    assert found["labels"].tolist() == [[0], [1], [0]] and np.isnan(found["start"]).all()
    card = json.loads((tmp_path / "index/card.json").read_text())
    assert card["classes"] == {"action": ["testifying", "throwing ball (not baseball, or American football)"]}
    assert (card["many"], card["splits"]["val"]["rows"], card["splits"]["val"]["missing"]) == (False, 3, 0)
    first = {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()}
    prepare(tmp_path / "index", tmp_path / "copy")
    assert {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()} == first


def test_videos_that_are_not_there_are_left_out_counted_and_bounded(tmp_path):
    prepare(tmp_path / "index", tmp_path / "copy")
    (tmp_path / "copy/toy/val/-_x_000000_000010.mp4").rename(tmp_path / "elsewhere.mp4")
    lost = {"splits": {"val": {"annotations": "list.csv", "videos": "val"}}}
    shutil.copy(tmp_path / "copy/toy/val.csv", tmp_path / "copy/toy/list.csv")
    shutil.copytree(tmp_path / "copy/toy/val", tmp_path / "copy/toy/some")
    lost["splits"]["val"]["videos"] = "some"
    with pytest.raises(
        ValueError, match=r"1 of 3 videos of split 'val' are not in .*some, such as -_x_000000_000010.mp4"
    ):
        prepare(tmp_path / "index", tmp_path / "copy", **lost)
    prepare(tmp_path / "index", tmp_path / "copy", **lost, max_missing=0.4)
    assert len(read_index(tmp_path / "index", "val")["file"]) == 2
    assert json.loads((tmp_path / "index/card.json").read_text())["splits"]["val"]["missing"] == 1


def test_a_split_of_several_lists_whose_videos_all_have_one_name(tmp_path):
    copy = tmp_path / "copy/toy"
    for name, line in (("bike", "bike/batch-10/3"), ("cereal_box", "cereal_box/batch-3/14")):
        write(copy / f"index/{name}_annotations_train", f"{line}\n{name}/batch-9/9\n")
        write(copy / f"videos/{line}/video.MOV", "a video")
    lists = ["index/bike_annotations_train", "index/cereal_box_annotations_train"]
    splits = {"train": {"annotations": lists, "videos": "videos", "rows": 4}}
    given = {"corpus": "objectron", "splits": splits, "classes": {"object": {"number": 2}}}
    with pytest.raises(
        ValueError, match=r"2 of 4 videos of split 'train' are not in .*such as (bike|cereal_box)/batch-9"
    ):
        prepare(tmp_path / "index", tmp_path / "copy", **given)
    prepare(tmp_path / "index", tmp_path / "copy", **given, max_missing=0.5)
    found = read_index(tmp_path / "index", "train")
    assert found["file"].tolist() == ["bike/batch-10/3/video.MOV", "cereal_box/batch-3/14/video.MOV"]
    assert found["labels"].tolist() == [[0], [1]]


def test_a_clip_that_lies_in_two_folders_is_refused(tmp_path):
    write(tmp_path / "copy/toy/val/other/---QUuC4vJs_000084_000094.mp4", "a video")
    with pytest.raises(
        ValueError, match=r"more than once, as other/---QUuC4vJs.* and testifying/---QUuC4vJs.*keep one"
    ):
        prepare(tmp_path / "index", tmp_path / "copy")


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"splits": {"val": {"annotations": "val.csv", "videos": "val", "rows": 4}}}, ValueError,
     r"split 'val' has 3 rows, expected 4: complete the copy"),
    ({"classes": {"action": {"number": 400}}}, ValueError,
     r"split 'val' has 2 classes, expected classes.action.number \(400\)"),
    ({"classes": {"action": {"file": "classes.txt", "number": 2}}}, ValueError,
     r"classes.action.file is 'classes.txt', but for kinetics it must be null"),
    ({"corpus": "hmdb51"}, ValueError, "corpus is 'hmdb51'"),
    ({"max_missing": 2.0}, ValueError, "max_missing is 2.0"),
    ({"splits": {"val": {"annotations": "none.csv", "videos": "val"}}}, DataUnavailable,
     "toy: none.csv could not be had"),
    ({"splits": {"val": {"annotations": "val.csv", "videos": "none"}}}, DataUnavailable, "toy: none could not be had"),
])  # fmt: skip
def test_what_cannot_be_prepared_is_refused(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        prepare(tmp_path / "index", tmp_path / "copy", **changes)
    assert not (tmp_path / "index").exists()


def test_annotations_and_classes_must_fit(tmp_path):
    copy = tmp_path / "copy/toy"
    write(copy / "said.json", SOMETHING)
    write(copy / "classes.json", {"Closing something": "0", "Opening something": "1"})
    for video in SOMETHING:
        write(copy / f"videos/{video['id']}.webm", "a video")
    splits = {"train": {"annotations": "said.json", "videos": "videos"}}
    with pytest.raises(ValueError, match=r"78687 in said.json has the class 'Holding something next.*of one version"):
        prepare(tmp_path / "index", tmp_path / "copy", corpus="something_something", splits=splits,
                classes={"action": {"file": "classes.json", "number": 2}})  # fmt: skip
    with pytest.raises(ValueError, match="for something_something it must be the list of classes"):
        prepare(tmp_path / "index", tmp_path / "copy", corpus="something_something", splits=splits)


def test_altered_indices_and_unknown_splits_are_refused(tmp_path):
    prepare(tmp_path / "index", tmp_path / "copy")
    with pytest.raises(ValueError, match=r"split 'train' is not in .*card.json, expected one of val"):
        read_index(tmp_path / "index", "train")
    actions.write_index(tmp_path / "index/val.parquet", [Row("a", "a.mp4", ("x",))], [[0]])
    with pytest.raises(ValueError, match=r"val\.parquet is not what was prepared.*make repro"):
        read_index(tmp_path / "index", "val")
    with pytest.raises(ValueError, match=r"val\.parquet would have no rows"):
        actions.write_index(tmp_path / "index/val.parquet", [], [])


def test_a_rehearsal_takes_the_first_rows_of_an_index_that_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "current", None)
    index = tmp_path / "data/datasets/toy/paper"
    prepare(index, tmp_path / "copy", cache="data/downloads/toy")
    work.shorten(index, tmp_path / "short", 2)
    whole, short = read_index(index, "val"), read_index(tmp_path / "short", "val")
    assert {name: list(column) for name, column in short.items() if name[0] in "fl"} == {
        name: list(whole[name][:2]) for name in ("file", "labels")
    }
    card = json.loads((tmp_path / "short/card.json").read_text())
    assert card["cache"] == str(tmp_path / "data/downloads/toy") and card["splits"]["val"]["rows"] == 2
    shutil.copy(tmp_path / "short/val.parquet", index / "val.parquet")
    with pytest.raises(ValueError, match=r"val.parquet is not what was prepared"):
        work.shorten(index, tmp_path / "again", 2)


@pytest.mark.parametrize(("name", "classes"), DATASETS.items())
def test_stand_ins_of_all_nine_are_read_and_rehearsed(tmp_path, monkeypatch, name, classes):
    config = compose("paper", dataset=name)["dataset"]
    made = actions.stand_in(tmp_path / "files", rows=6, **config)
    monkeypatch.setattr(rehearsal, "current", rehearsal.Rehearsal(rows=5))
    settings.bind(config | made.config, "conf")(tmp_path / "index")
    card = json.loads((tmp_path / "index/card.json").read_text())
    assert card["splits"].keys() == made.whole.keys() == config["splits"].keys()
    assert {facts["rows"] for facts in card["splits"].values()} == {5}, name
    expected = 2 if config["corpus"] == "kinetics" else classes  # whose classes are those of its rows
    assert sum(len(names) for names in card["classes"].values()) == expected
    labels = read_index(tmp_path / "index", next(iter(card["splits"])))["labels"]
    assert {len(each) for each in labels} == ({0, 31, 32} if card["many"] else {len(card["classes"])})
