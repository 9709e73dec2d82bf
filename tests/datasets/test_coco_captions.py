"""On small files in the official forms."""

import importlib.util
import io
import json

import numpy as np
import pytest
from PIL import Image

from lightning_modules.datasets import coco_captions, pictures, storage
from lightning_modules.datasets.coco_captions import (
    of_split,
    read_karpathy,
)
from lightning_modules.datasets.download import DataUnavailable

COUNTS = {"train": 3, "restval": 4, "val": 2, "test": 2}
ORDER = ["test", "restval", "train", "val", "restval", "train", "restval", "val", "test", "train", "restval"]


def entry(number, split):
    half = "train2014" if split == "train" else "val2014"
    said = [f"A Dog, number {number}.", f"One of {number} dogs"]
    words = [sentence.lower().replace(",", "").rstrip(".").split() for sentence in said]
    return {
        "filepath": half, "filename": f"COCO_{half}_{number:012d}.jpg", "imgid": number, "cocoid": 100 + number,
        "split": split, "sentids": [2 * number, 2 * number + 1],
        "sentences": [{"tokens": tokens, "raw": raw, "imgid": number, "sentid": 2 * number + place}
                      for place, (tokens, raw) in enumerate(zip(words, said, strict=True))],
    }  # fmt: skip


@pytest.fixture
def copy(tmp_path):
    folder = tmp_path / "mirror"
    entries = [entry(number, split) for number, split in enumerate(ORDER)]
    for each in entries:
        path = folder / each["filepath"] / each["filename"]
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        Image.new("RGB", (6, 4), (each["cocoid"], 0, 9)).save(file, "JPEG")
        path.write_bytes(file.getvalue())
    (folder / "dataset_coco.json").write_text(json.dumps({"images": entries, "dataset": "coco"}))
    return folder


def prepare(folder, copy, **changes):
    config = {"splits": COUNTS, "limit": None, "text": "tokens", "features": None, "mirror": str(copy), "cache": "none"}
    coco_captions.prepare(folder, **config | changes)


def test_prepared_splits_have_images_and_all_captions(copy, tmp_path):
    prepare(tmp_path / "coco", copy)
    assert storage.card(tmp_path / "coco")["splits"] == COUNTS
    columns = storage.read(tmp_path / "coco", "restval")
    assert columns["id"].tolist() == [101, 104, 106, 110]
    assert columns["captions"][1] == ["a dog number 4", "one of 4 dogs"]
    assert abs(int(pictures.decode(columns["image"][3])[0, 0, 0]) - 110) < 3


def test_a_part_of_the_images_and_sentences_as_written(copy, tmp_path):
    prepare(tmp_path / "coco", copy, limit=1, text="raw", splits={"test": 2})
    columns = storage.read(tmp_path / "coco", "test")
    assert columns["captions"].tolist() == [["A Dog, number 0.", "One of 0 dogs"]]


def test_an_incomplete_copy_is_refused(copy, tmp_path):
    with pytest.raises(ValueError, match="split 'val' has 2 images, expected 5000"):
        prepare(tmp_path / "coco", copy, splits={"val": 5000})
    (copy / "val2014/COCO_val2014_000000000007.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 images are missing, .*COCO_val2014_000000000007.jpg first"):
        prepare(tmp_path / "coco", copy)
    (copy / "dataset_coco.json").unlink()
    with pytest.raises(DataUnavailable, match=r"(?s)dataset_coco.json could not be had.*REPRISE_MIRROR"):
        prepare(tmp_path / "coco", copy)
    assert not (tmp_path / "coco").exists()


def test_a_broken_image_is_named_and_left_out_only_where_that_is_allowed(copy, tmp_path):
    broken = copy / "val2014/COCO_val2014_000000000004.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"1 of \d pictures are broken.*COCO_val2014_000000000004\.jpg cannot be read"):
        prepare(tmp_path / "coco", copy)
    assert not (tmp_path / "coco").exists()
    prepare(tmp_path / "coco", copy, max_broken=0.01)
    assert storage.card(tmp_path / "coco")["splits"] == COUNTS | {"restval": 3}
    columns = storage.read(tmp_path / "coco", "restval")
    assert columns["id"].tolist() == [101, 106, 110] and columns["captions"][1][1] == "one of 6 dogs"


def test_a_split_is_not_found_in_the_name_of_another(copy):
    images = read_karpathy(copy / "dataset_coco.json")
    assert {split: len(of_split(images, split)) for split in COUNTS} == COUNTS  # "val" is part of "restval"
    with pytest.raises(ValueError, match="split 'est' must be one of train, restval, val, test"):
        of_split(images, "est")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images[0].pop("cocoid"), r"entry 0 of images has no cocoid"),
        (lambda images: images[2].update(split="dev"), r"has the splits \['dev'\]"),
        (lambda images: images.append(images[3]), r"has 1 images more than once, 103 first"),
        (lambda images: images[4].update(sentences=[]), r"1 images have no captions, 104 first"),
    ],
)
def test_a_file_of_another_form_is_refused(copy, change, message):
    path = copy / "dataset_coco.json"
    content = json.loads(path.read_text())
    change(content["images"])
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_karpathy(path)


@pytest.fixture
def h5py():
    if importlib.util.find_spec("h5py") is None:
        pytest.skip("h5py is not installed: pip install h5py")
    import h5py

    return h5py


def test_grid_features_of_the_official_files(copy, tmp_path, h5py):
    values = np.random.default_rng(0).normal(size=(len(ORDER), 8, 8, 5)).astype(np.float32)
    for half in ("train2014", "val2014"):
        with h5py.File(copy / f"{half}.h5", "w") as file:
            for number, split in enumerate(ORDER):
                if (split == "train") == (half == "train2014"):
                    file[f"COCO_{half}_{number:012d}/features"] = values[number]
    files = {half: f"{half}.h5" for half in ("train2014", "val2014")}
    prepare(tmp_path / "coco", copy, features=files)
    columns = storage.read(tmp_path / "coco", "train")
    np.testing.assert_array_equal(columns["features"], values[[2, 5, 9]].reshape(3, 64, 5))
    with pytest.raises(ValueError, match=r"val2014.h5 has no 'COCO_train2014_000000000002/features'"):
        prepare(tmp_path / "coco", copy, features=dict.fromkeys(files, "val2014.h5"))
    with h5py.File(copy / "val2014.h5", "a") as file:
        del file["COCO_val2014_000000000001/features"]
        file["COCO_val2014_000000000001/features"] = values[1, :7]
    with pytest.raises(ValueError, match=r"shape \(7, 8, 5\), expected 8 x 8 places"):
        prepare(tmp_path / "coco", copy, features=files)
    (copy / "val2014.h5").write_bytes(b"not hdf5")
    with pytest.raises(ValueError, match="cannot be read as HDF5"):
        prepare(tmp_path / "coco", copy, features=files)


def test_grid_features_without_h5py(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install h5py"):
        coco_captions.GridFeatures(tmp_path / "features.h5")
