"""On small files in the official forms."""

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from lightning_modules.datasets import picture_regions, storage
from lightning_modules.datasets.picture_regions import Region, read_refer, read_visual_genome, shares


def save_picture(path, size=(20, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 0, 9)).save(path, "JPEG")


def region(phrase, x, y, width, height):
    return {"region_id": 1, "phrase": phrase, "x": x, "y": y, "width": width, "height": height}


DOG, TAIL, FUR = region("a dog ", 1, 1, 10, 5), region("its tail", 11, 6, 40, 5), region("fur", 1, 6, 5, 5)


@pytest.fixture
def genome(tmp_path):
    folder = tmp_path / "genome"
    for number in (1, 2):
        save_picture(folder / f"VG_100K{'_2' * (number - 1)}" / f"{number}.jpg")
    described = [
        {"id": 1, "regions": [DOG, TAIL, FUR]},
        {"id": 2, "regions": [region("the sky", 1, 1, 20, 10)]},
    ]  # fmt: skip
    (folder / "region_descriptions.json").write_text(json.dumps(described))
    (folder / "densecap_splits.json").write_text(json.dumps({"train": [1], "val": [2], "test": []}))
    return folder


def said(*texts):
    return [{"sent": text} for text in texts]


@pytest.fixture
def refer(tmp_path):
    folder = tmp_path / "refer"
    names = {7: "COCO_train2014_000000000007.jpg", 8: "COCO_train2014_000000000008.jpg"}
    for name in names.values():
        save_picture(folder / "train2014" / name)
    instances = {
        "images": [{"id": number, "file_name": name, "width": 20, "height": 10} for number, name in names.items()],
        "annotations": [
            {"id": 70, "image_id": 7, "bbox": [0, 0, 10, 10]},
            {"id": 80, "image_id": 8, "bbox": [5, 5, 5, 5]},
        ],
        "categories": [],
    }  # fmt: skip
    refs = [
        {"ref_id": 1, "ann_id": 70, "image_id": 7, "split": "train", "sentences": said("left one", "man")},
        {"ref_id": 2, "ann_id": 80, "image_id": 8, "split": "testA", "sentences": said("the middle")},
    ]  # fmt: skip
    (folder / "instances.json").write_text(json.dumps(instances))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    return folder


def prepare(folder, copy, **changes):
    config = {
        "form": "visual_genome", "by": None, "splits": {"train": 1, "val": 1}, "regions": 2, "limit": None,
        "images": ["VG_100K", "VG_100K_2"], "mirror": str(copy), "cache": "none",
    }  # fmt: skip
    picture_regions.prepare(folder, **config | changes)


def test_a_picture_with_more_regions_has_more_rows_and_boxes_are_shares_of_it(genome, tmp_path):
    prepare(tmp_path / "new", genome)
    assert storage.card(tmp_path / "new")["splits"] == {"train": 2, "val": 1}
    train = storage.read(tmp_path / "new", "train")
    assert train["id"].tolist() == [1, 1]
    assert train["regions"].tolist() == [["a dog", "its tail"], ["fur"]]
    np.testing.assert_allclose(train["boxes"][0], [[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]])
    np.testing.assert_allclose(train["boxes"][1], [[0, 0.5, 0.25, 1], [0, 0, 0, 0]])


def test_every_expression_is_a_region_of_its_picture(refer, tmp_path):
    prepare(tmp_path / "new", refer, form="refer", by="unc", splits={"train": 1, "testA": 1}, images=["train2014"])
    train, test = (storage.read(tmp_path / "new", split) for split in ("train", "testA"))
    assert train["regions"].tolist() == [["left one", "man"]]
    np.testing.assert_allclose(train["boxes"][0], [[0, 0, 0.5, 1]] * 2)
    np.testing.assert_allclose(test["boxes"][0, 0], [0.25, 0.5, 0.5, 1])


def test_an_incomplete_copy_is_refused(genome, tmp_path):
    with pytest.raises(ValueError, match="split 'val' has 1 pictures, expected 5"):
        prepare(tmp_path / "new", genome, splits={"val": 5})
    with pytest.raises(ValueError, match="split 'testA' must be one of test, train, val"):
        prepare(tmp_path / "new", genome, splits={"testA": 5})
    with pytest.raises(ValueError, match=r"1 pictures are missing, 2\.jpg first"):
        prepare(tmp_path / "new", genome, images=["VG_100K"])
    with pytest.raises(ValueError, match="by is 'unc' with form 'visual_genome'"):
        prepare(tmp_path / "new", genome, by="unc")
    assert not (tmp_path / "new").exists()


def test_a_broken_picture_is_left_out_where_that_is_allowed(genome, tmp_path):
    (genome / "VG_100K/3.jpg").write_bytes(b"no picture")
    described = json.loads((genome / "region_descriptions.json").read_text())
    described.append({"id": 3, "regions": [region("a cat", 1, 1, 5, 5)]})
    (genome / "region_descriptions.json").write_text(json.dumps(described))
    (genome / "densecap_splits.json").write_text(json.dumps({"train": [3, 1]}))
    with pytest.raises(ValueError, match="1 of 1 pictures are broken, more than max_broken"):
        prepare(tmp_path / "new", genome, splits={"train": 2})
    prepare(tmp_path / "new", genome, splits={"train": 2}, max_broken=0.5)
    assert storage.card(tmp_path / "new")["splits"] == {"train": 2}


def test_a_box_outside_its_picture_is_left_out_where_that_is_allowed(genome, tmp_path):
    described = json.loads((genome / "region_descriptions.json").read_text())
    described[1]["regions"].append(region("nothing", 30, 1, 5, 5))
    (genome / "region_descriptions.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"1 of 2 boxes are broken.* 2\.jpg: the box"):
        prepare(tmp_path / "new", genome)
    prepare(tmp_path / "new", genome, max_broken=0.5)
    assert storage.read(tmp_path / "new", "val")["regions"].tolist() == [["the sky"]]


def test_a_box_outside_its_picture_is_refused():
    with pytest.raises(ValueError, match=r"'a dog' has no part in a picture of \(20, 10\) pixels"):
        shares(Region("a dog", (20, 0, 5, 5)), (20, 10))


def test_files_of_another_form_are_refused(genome, refer):
    (genome / "region_descriptions.json").write_text('[{"image": 1}]')
    with pytest.raises(ValueError, match=r"does not have the official form \(KeyError: 'id'"):
        read_visual_genome(genome / "region_descriptions.json", genome / "densecap_splits.json")
    (genome / "region_descriptions.json").write_text("[]")
    with pytest.raises(ValueError, match=r"names 2 pictures that .* has not, 1 first"):
        read_visual_genome(genome / "region_descriptions.json", genome / "densecap_splits.json")
    (refer / "instances.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(ValueError, match=r"refers to thing 70, which .* has not"):
        read_refer(refer / "refs(unc).p", refer / "instances.json")


@pytest.mark.parametrize("width", ["10", None, True, float("nan")])
def test_boxes_of_something_else_than_numbers_are_refused(genome, refer, width):
    described = json.dumps([{"id": 1, "regions": [DOG | {"width": width}]}])
    (genome / "region_descriptions.json").write_text(described)
    with pytest.raises(ValueError, match=r"region_descriptions\.json does not .* a box has .*, expected numbers"):
        read_visual_genome(genome / "region_descriptions.json", genome / "densecap_splits.json")
    things = {"images": [], "annotations": [{"id": 70, "image_id": 7, "bbox": [0, 0, width, 10]}]}
    (refer / "instances.json").write_text(json.dumps(things))
    with pytest.raises(ValueError, match=r"instances\.json does not .* a box has .*, expected numbers"):
        read_refer(refer / "refs(unc).p", refer / "instances.json")


def test_a_box_of_three_numbers_is_refused(refer):
    things = {"images": [], "annotations": [{"id": 70, "image_id": 7, "bbox": [0, 0, 10]}]}
    (refer / "instances.json").write_text(json.dumps(things))
    with pytest.raises(ValueError, match=r"instances\.json does not have the official form"):
        read_refer(refer / "refs(unc).p", refer / "instances.json")


def test_files_that_cannot_be_read_are_named(genome):
    splits, path = genome / "densecap_splits.json", genome / "region_descriptions.json"
    path.write_bytes('[{"id": 1, "phrase": "grün"}]'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"region_descriptions\.json cannot be read as text: .*Save it as UTF-8"):
        read_visual_genome(path, splits)
    for odd in (genome / "other.json", genome):
        with pytest.raises(ValueError, match=f"{odd} cannot be read: .*Give the official file"):
            read_visual_genome(odd, splits)


def test_a_pickle_that_names_a_class_is_refused(refer):
    content = io.BytesIO()
    pickle.dump([pytest.raises], content)
    (refer / "refs(unc).p").write_bytes(content.getvalue())
    with pytest.raises(ValueError, match="expressions need no class"):
        read_refer(refer / "refs(unc).p", refer / "instances.json")


@pytest.mark.parametrize(("form", "by"), [("visual_genome", None), ("refer", "umd")])
def test_a_stand_in_is_in_the_official_form(tmp_path, form, by):
    config = {
        "form": form,
        "by": by,
        "splits": {"train": 100, "val": 10},
        "images": ["all"],
        "regions": 2,
        "limit": None,
    }
    made = picture_regions.stand_in(tmp_path, rows=3, **config)
    picture_regions.prepare(tmp_path / "new", **config | made.config)
    assert storage.card(tmp_path / "new")["splits"] == {"train": 3, "val": 3}
    assert made.whole == {"train": 100, "val": 10}
