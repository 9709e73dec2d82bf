"""On small files in the official form."""

import json

import pytest
from PIL import Image

from lightning_modules.datasets import flickr30k, storage
from lightning_modules.datasets.download import DataUnavailable


@pytest.fixture
def copy(tmp_path):
    folder = tmp_path / "flickr30k"
    (folder / flickr30k.FOLDER).mkdir(parents=True)
    entries = []
    for number, split in enumerate(["test", "train", "val", "train"]):
        said = [{"raw": f"Dog {number}, view {view}.", "tokens": ["dog"], "sentid": view} for view in range(5)]
        entries.append({"imgid": number, "split": split, "filename": f"{100 + number}.jpg", "sentences": said})
        Image.new("RGB", (6, 4), (200, 0, 9)).save(folder / flickr30k.FOLDER / f"{100 + number}.jpg")
    (folder / flickr30k.FILE).write_text(json.dumps({"images": entries, "dataset": "flickr30k"}))
    return folder


def prepare(folder, copy, **changes):
    config = {"splits": {"train": 2, "test": 1}, "limit": None, "mirror": str(copy), "cache": "none"}
    flickr30k.prepare(folder, **config | changes)


def test_prepared_splits_have_pictures_and_all_captions(copy, tmp_path):
    prepare(tmp_path / "new", copy)
    assert storage.card(tmp_path / "new")["splits"] == {"train": 2, "test": 1}
    train = storage.read(tmp_path / "new", "train")
    assert train["id"].tolist() == [1, 3]
    assert train["captions"][1] == [f"Dog 3, view {view}." for view in range(5)]


def test_an_incomplete_copy_is_refused(copy, tmp_path):
    with pytest.raises(ValueError, match="split 'val' has 1 pictures, expected 1014"):
        prepare(tmp_path / "new", copy, splits={"val": 1014})
    (copy / flickr30k.FOLDER / "103.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 pictures are missing in .*, 103\.jpg first"):
        prepare(tmp_path / "new", copy)
    (copy / flickr30k.FILE).unlink()
    with pytest.raises(DataUnavailable, match=r"dataset_flickr30k\.json could not be had"):
        prepare(tmp_path / "new", copy)


def test_a_broken_picture_is_left_out_where_that_is_allowed(copy, tmp_path):
    (copy / flickr30k.FOLDER / "101.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="1 of 1 pictures are broken, more than max_broken"):
        prepare(tmp_path / "new", copy)
    prepare(tmp_path / "new", copy, max_broken=0.5)
    assert storage.card(tmp_path / "new")["splits"] == {"train": 1, "test": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ('{"images": [{"imgid": 1}]}', r"does not have the official form \(KeyError: 'split'"),
        (
            '{"images": [{"imgid": 1, "split": "val", "filename": "1.jpg", "sentences": []}]}',
            "1 pictures have no captions",
        ),
    ],
)
def test_files_of_another_form_are_refused(copy, content, message):
    (copy / flickr30k.FILE).write_text(content)
    with pytest.raises(ValueError, match=message):
        flickr30k.read_karpathy(copy / flickr30k.FILE)
