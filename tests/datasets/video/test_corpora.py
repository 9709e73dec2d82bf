"""Small files in the official forms; the published lists themselves where they lie beside the project."""

import json
from pathlib import Path

import pytest

from lightning_modules import settings
from lightning_modules.datasets.download import MIRROR_VARIABLE, DataUnavailable
from lightning_modules.datasets.video import corpora
from lightning_modules.datasets.video.corpora import Texts, didemo_name, read_index, read_list
from lightning_modules.files import sha256
from stages.composing import compose
from tests.datasets.conftest import REALDATA

LISTS = REALDATA / "retrieval-splits"
CORPORA = ("msr_vtt", "didemo", "activitynet", "lsmdc", "hd_vila")


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


MSR_VTT = {"sentences": [
    {"caption": "a man talks", "video_id": "video1", "sen_id": 0},
    {"caption": "a dog runs", "video_id": "video0", "sen_id": 1},
    {"caption": " a man sings ", "video_id": "video1", "sen_id": 2},
    {"caption": " ", "video_id": "video1", "sen_id": 3},
]}  # fmt: skip
TABLE = 'key,vid_key,video_id,sentence\nret0,msr1,video1,"a man, singing"\nret1,msr0,video0,a dog\n'
DIDEMO = [
    {"video": "1@N02_3_4.mov", "description": "camera pans.", "annotation_id": 0},
    {"video": "2@N02_3_4.", "description": "a cat", "annotation_id": 1},
    {"video": "1@N02_3_4.mov", "description": "dog barks", "annotation_id": 2},
]
ACTIVITYNET = {"v_a": {"duration": 9.0, "timestamps": [[0, 3], [2, 9]], "sentences": ["He sits. ", " He stands."]}}
LSMDC = "0001_American_Beauty_00.00.51.926-00.00.54.129\t00.00.51.926\t00.00.54.129\t1\t2\tSOMEONE sits.\n"
CLIPS = '{"clip_id": "Ab-1.7.mp4", "text": "so here we go"}\n{"clip_id": "Cd.0.mp4", "text": "right"}\n'


@pytest.mark.parametrize(("corpus", "name", "content", "expected"), [
    ("msr_vtt", "data.json", MSR_VTT, {"video1": ("a man talks", "a man sings"), "video0": ("a dog runs",)}),
    ("msr_vtt", "test.csv", TABLE, {"video1": ("a man, singing",), "video0": ("a dog",)}),
    ("didemo", "train.json", DIDEMO, {"1@N02_3_4": ("camera pans. dog barks",), "2@N02_3_4": ("a cat",)}),
    ("activitynet", "train.json", ACTIVITYNET, {"v_a": ("He sits. He stands.",)}),
    ("lsmdc", "train.csv", LSMDC,
     {"0001_American_Beauty/0001_American_Beauty_00.00.51.926-00.00.54.129": ("SOMEONE sits.",)}),
])  # fmt: skip
def test_captions_of_each_video(tmp_path, corpus, name, content, expected):
    found = corpora.READERS[corpus](write(tmp_path / name, content))
    assert found == {video: Texts(captions) for video, captions in expected.items()}


def test_clips_have_subtitles(tmp_path):
    found = corpora.READERS["clips"](write(tmp_path / "clips.jsonl", CLIPS))
    assert found == {"Ab-1/Ab-1.7.mp4": Texts(subtitle=("so here we go",)), "Cd/Cd.0.mp4": Texts(subtitle=("right",))}


@pytest.mark.parametrize(("corpus", "name", "content"), [
    ("msr_vtt", "test.csv", TABLE), ("msr_vtt", "data.json", MSR_VTT), ("didemo", "train.json", DIDEMO),
    ("activitynet", "train.json", ACTIVITYNET), ("lsmdc", "train.csv", LSMDC), ("clips", "clips.jsonl", CLIPS),
])  # fmt: skip
def test_a_byte_order_mark_changes_nothing(tmp_path, corpus, name, content):
    path = write(tmp_path / name, content)
    plain = corpora.READERS[corpus](path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert corpora.READERS[corpus](path) == plain
    assert read_list(write(tmp_path / "list.txt", "\ufeffa b")) == ["a", "b"]


@pytest.mark.parametrize(("corpus", "content"), [
    ("activitynet", '{"v_a": {"sentences": ["He sits."]}, "v_a": {"sentences": ["He stands."]}}'),
    ("lsmdc", LSMDC + LSMDC.replace("sits", "stands")),
    ("clips", CLIPS + CLIPS),
])  # fmt: skip
def test_a_video_that_is_annotated_twice_is_named(tmp_path, corpus, content):
    path = write(tmp_path / "annotations", content)
    with pytest.raises(ValueError, match=r"annotations has \d names more than once, '(v_a|0001.*|Ab-1.*)' first"):
        corpora.READERS[corpus](path)


def test_a_frame_that_has_two_captions_is_named_and_a_byte_order_mark_changes_nothing(tmp_path):
    path = write(tmp_path / "frames.json", "\ufeff" + json.dumps([{"image_id": "a", "caption": " a dog "}]))
    assert corpora.read_frame_captions(path) == {"a": "a dog"}
    write(path, [{"image_id": "a", "caption": "a dog"}, {"image_id": "a", "caption": "a cat"}])
    with pytest.raises(ValueError, match=r"frames\.json has 1 names more than once, 'a' first: keep one of each"):
        corpora.read_frame_captions(path)


@pytest.mark.parametrize(("corpus", "content"), [
    ("msr_vtt", {"sentences": [{"video_id": "a", "caption": " "}, {"video_id": "b", "caption": "a dog"}]}),
    ("didemo", [{"video": "a", "description": " "}, {"video": "b", "description": "a dog"}]),
    ("activitynet", {"a": {"sentences": [" ", ""]}, "b": {"sentences": ["a dog"]}}),
    ("lsmdc", LSMDC.replace("SOMEONE sits.", " ") + LSMDC.replace("0001", "0002")),
    ("clips", '{"clip_id": "a", "text": " "}\n{"clip_id": "b", "text": "right"}\n'),
])  # fmt: skip
def test_videos_without_a_sentence_are_left_out_counted_and_bounded(tmp_path, corpus, content):
    write(tmp_path / "copy/toy/said", content)
    changes = {"corpus": corpus, "splits": {"train": split(annotations="said", videos=None)}, "lists": {}}
    with pytest.raises(ValueError, match=r"1 of 2 videos of split 'train' have no sentence in said, more than"):
        prepare(tmp_path / "index", tmp_path / "copy", **changes)
    prepare(tmp_path / "index", tmp_path / "copy", **changes, max_left_out=0.5)
    assert json.loads((tmp_path / "index/card.json").read_text())["splits"]["train"]["left_out"] == 1
    assert len(read_index(tmp_path / "index", "train")["file"]) == 1


@pytest.mark.parametrize("corpus", sorted(corpora.READERS))
def test_files_of_another_form_are_refused(tmp_path, corpus):
    path = write(tmp_path / "annotations.json", '{"answer": [42]}')
    with pytest.raises(ValueError, match=r"annotations.json(, line 1: expected| does not have the form of)"):
        corpora._annotated(corpus, path)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)


def prepare(folder: Path, copy: Path, **changes):
    """Prepares the MSR-VTT of above, or what `changes` say, from the copy in the mirror `copy`."""
    (copy / "toy/videos").mkdir(parents=True, exist_ok=True)
    write(copy / "toy/data.json", MSR_VTT)
    listed = write(copy / "retrieval-splits/toy/train.txt", "video0\nvideo1\n")
    values = {
        "name": "toy",
        "corpus": "msr_vtt",
        "splits": {"train": split()},
        "suffix": ".mp4",
        "videos": "videos",
        "lists": {"toy/train.txt": {"sha256": sha256(listed)}},
        "list_mirrors": [],
        "list_cache": str(copy / "cache"),
        "mirror": str(copy),
        "cache": str(copy / "cache"),
        "max_left_out": 0.4,
    } | changes
    block = {"_target_": "lightning_modules.datasets.video.corpora.prepare", **values}
    settings.bind(block, "conf/dataset/toy/tiny.yaml")(folder)


def split(**changes):
    return {"annotations": "data.json", "auxiliary": None, "videos": "toy/train.txt", "rows": 2} | changes


def test_the_index_has_the_listed_videos_in_their_order(tmp_path):
    prepare(tmp_path / "index", tmp_path / "copy")
    found = read_index(tmp_path / "index", "train")
    assert found["file"].tolist() == ["video0.mp4", "video1.mp4"]
    assert found["caption"].tolist() == [["a dog runs"], ["a man talks", "a man sings"]]
    assert found["subtitle"].tolist() == found["auxiliary_caption"].tolist() == [[], []]
    card = json.loads((tmp_path / "index/card.json").read_text())
    assert (card["name"], card["videos"], card["splits"]["train"]["rows"]) == ("toy", "videos", 2)

    first = {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()}
    prepare(tmp_path / "index", tmp_path / "copy")
    assert {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()} == first


def test_without_a_list_all_that_are_annotated_are_taken(tmp_path):
    prepare(tmp_path / "index", tmp_path / "copy", splits={"train": split(videos=None, rows=None)}, lists={})
    assert read_index(tmp_path / "index", "train")["file"].tolist() == ["video1.mp4", "video0.mp4"]


def test_clips_without_a_caption_are_left_out_counted_and_bounded(tmp_path):
    copy = tmp_path / "copy"
    write(copy / "toy/clips.jsonl", CLIPS)
    write(copy / "toy/captions.json", [{"image_id": "Cd.0.mp4", "caption": "a road"}])
    changes = {
        "corpus": "clips",
        "splits": {"train": split(annotations="clips.jsonl", auxiliary="captions.json", videos=None)},
        "suffix": None,
    }
    with pytest.raises(
        ValueError, match=r"1 of 2 videos of split 'train' have no sentence in clips.jsonl or captions.json, more"
    ):
        prepare(tmp_path / "index", copy, **changes)
    assert not (tmp_path / "index").exists()
    prepare(tmp_path / "index", copy, **changes, max_left_out=0.5)
    found = read_index(tmp_path / "index", "train")
    assert {name: values.tolist() for name, values in found.items()} == {
        "file": ["Cd/Cd.0.mp4"], "caption": [[]], "auxiliary_caption": [["a road"]], "subtitle": [["right"]]
    }  # fmt: skip
    assert json.loads((tmp_path / "index/card.json").read_text())["splits"]["train"]["left_out"] == 1


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"splits": {"train": split(rows=3)}}, ValueError, r"split 'train' has 2 videos, expected 3: complete the copy"),
    ({"splits": {"train": split(annotations="none.json")}}, DataUnavailable, "toy: none.json could not be had"),
    ({"videos": "clips"}, DataUnavailable, "toy: clips could not be had"),
    ({"lists": {"toy/train.txt": {"sha256": "0" * 64}}}, DataUnavailable, "(?s)toy/train.txt.*altered or cut off"),
    ({"splits": {"train": split(videos="toy/x.txt")}}, ValueError,
     r"splits.train.videos \('toy/x.txt'\) must be one of lists \(toy/train.txt\)"),
    ({"corpus": "msvd"}, ValueError, "corpus is 'msvd'"),
    ({"max_left_out": 2.0}, ValueError, "max_left_out is 2.0"),
    ({"splits": {"train": {"videos": "toy/train.txt"}}}, ValueError, "splits.train.annotations: missing"),
])  # fmt: skip
def test_what_cannot_be_prepared_is_refused(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        prepare(tmp_path / "index", tmp_path / "copy", **changes)
    assert not (tmp_path / "index").exists()


def test_videos_that_are_listed_and_not_annotated_are_refused(tmp_path):
    copy = tmp_path / "copy"
    listed = write(copy / "retrieval-splits/toy/more.txt", "video0\nvideo7\nvideo8\n")
    with pytest.raises(ValueError, match=r"2 of 3 listed videos are not annotated in data.json, the first is video7"):
        prepare(tmp_path / "index", copy, splits={"train": split(videos="toy/more.txt")},
                lists={"toy/more.txt": {"sha256": sha256(listed)}})  # fmt: skip


def test_altered_indices_and_unknown_splits_are_refused(tmp_path):
    prepare(tmp_path / "index", tmp_path / "copy")
    with pytest.raises(ValueError, match=r"split 'val' is not in .*card.json, expected one of train"):
        read_index(tmp_path / "index", "val")
    corpora.write_index(tmp_path / "index/train.parquet", {"video0.mp4": Texts(("a cat",))})
    with pytest.raises(ValueError, match=r"train\.parquet is not what was prepared.*make repro"):
        read_index(tmp_path / "index", "train")


def test_names_that_leave_the_folder_or_come_twice_are_refused(tmp_path):
    for name in ("../video", "/video"):
        with pytest.raises(ValueError, match="would lie outside the folder of the videos"):
            corpora.file_name(name, ".mp4")
    with pytest.raises(ValueError, match="names 1 videos twice"):
        read_list(write(tmp_path / "list.txt", "a\nb\na\n"))


def test_names_of_didemo_lose_what_follows_their_last_dot():
    assert [didemo_name(name) for name in ("1@N02_3.mov", "1@N02_3.", "1@N02_3")] == ["1@N02_3"] * 3


@pytest.mark.parametrize("corpus", CORPORA)
def test_configurations_are_taken_and_their_lists_are_the_published_ones(tmp_path, corpus):
    """Annotations made up for the videos on the lists; the lists as they lie beside the project."""
    config = compose("paper", dataset=corpus)["dataset"]
    splits = {name: {"videos": None, "auxiliary": None, "rows": None, **x} for name, x in config["splits"].items()}
    if "lists" in config and not LISTS.is_dir():
        pytest.skip(f"the published lists are not in {LISTS}")
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "retrieval-splits").symlink_to(LISTS)
    (copy / config["name"] / "videos").mkdir(parents=True)
    files = {}
    for split in splits.values():
        made_up = [f"Ab.{number}.mp4" for number in range(split["rows"] or 1)]
        listed = read_list(LISTS / split["videos"]) if split["videos"] else made_up
        files.setdefault(split["annotations"], []).extend(listed)
        if split["auxiliary"]:
            write(copy / config["name"] / split["auxiliary"], [{"image_id": "Ab.0.mp4", "caption": "a road"}])
    for file, videos in files.items():
        write(copy / config["name"] / file, annotations(corpus, file, videos))
    changes = {"mirror": str(copy), "cache": str(tmp_path / "none"), "list_cache": str(tmp_path / "none")}
    settings.bind(config | changes, f"conf/dataset/{corpus}/paper.yaml")(tmp_path / "index")
    for name, split in splits.items():
        found = read_index(tmp_path / "index", name)
        if split["videos"]:
            stems = [
                didemo_name(video) if corpus == "didemo" else video for video in read_list(LISTS / split["videos"])
            ]
            assert found["file"].tolist() == [f"{stem}{config['suffix']}" for stem in stems]
            assert len(found["file"]) == split["rows"]


def annotations(corpus: str, file: str, videos: list[str]) -> object:
    if corpus == "msr_vtt" and file.endswith(".csv"):
        return "key,vid_key,video_id,sentence\n" + "".join(f"r,m,{video},a dog\n" for video in videos)
    return {
        "msr_vtt": {"sentences": [{"video_id": video, "caption": "a dog"} for video in videos]},
        "didemo": [{"video": video, "description": "a dog"} for video in videos],
        "activitynet": {video: {"sentences": ["a dog"]} for video in videos},
        "lsmdc": "".join(LSMDC.replace("0001", f"{n:04}") for n in range(len(videos))),
        "hd_vila": "".join(json.dumps({"clip_id": video, "text": "so"}) + "\n" for video in videos),
    }[corpus]
