"""nuScenes' tables in their official form, small and written here."""

import json

import pytest

from lightning_modules import settings
from lightning_modules.datasets.download import MIRROR_VARIABLE, DataUnavailable
from lightning_modules.datasets.video import nuscenes
from lightning_modules.datasets.video.corpora import read_index


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """Four scenes of 36 pictures, every second one to be judged on."""
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    nuscenes.stand_in(tmp_path / "nuscenes", rows=2, tables="v1.0-mini")
    return tmp_path


def prepare(copy, **changes):
    values = {"name": "nuscenes", "tables": "v1.0-mini", "scenes": 4, "judged_every": 2, "mirror": str(copy),
              "cache": str(copy / "cache")} | changes  # fmt: skip
    block = {"_target_": "lightning_modules.datasets.video.nuscenes.prepare", **values}
    settings.bind(block, "conf/dataset/nuscenes/paper.yaml")(copy / "index")
    return {split: read_index(copy / "index", split) for split in ("train", "val")}


def test_a_scene_is_the_pictures_of_the_front_camera_in_the_order_of_their_times(copy):
    table = copy / "nuscenes/v1.0-mini/sample_data.json"
    table.write_text(json.dumps(json.loads(table.read_text())[::-1]))  # tables have no order
    found = prepare(copy)
    assert [rows["scene"].tolist() for rows in found.values()] == [
        ["scene-0000", "scene-0002"],
        ["scene-0001", "scene-0003"],
    ]
    files = found["val"]["files"][0]
    assert [file.rpartition("__")[2] for file in files] == [f"{number:04d}.jpg" for number in range(36)]
    assert [file.split("/")[0] for file in files[:4]] == ["samples", "sweeps", "sweeps", "samples"]
    assert all((copy / "nuscenes" / file).is_file() and "CAM_FRONT" in file for file in files)


def test_key_frames_alone_and_parts_of_scenes(copy):
    found = prepare(copy, key_frames=True)
    assert [len(files) for files in found["train"]["files"]] == [12, 12]
    found = prepare(copy, parts=3)
    assert [len(files) for files in found["train"]["files"]] == [12] * 6
    assert found["train"]["files"][1][0].endswith("0012.jpg") and found["train"]["scene"][2] == "scene-0000"


def test_a_video_with_a_missing_picture_is_left_out_and_their_share_is_bounded(copy):
    (copy / "nuscenes/sweeps/CAM_FRONT/n2__CAM_FRONT__0004.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 144 pictures of CAM_FRONT are not beside .*n2__CAM_FRONT__0004.jpg"):
        prepare(copy)
    assert prepare(copy, max_missing=0.01)["train"]["scene"].tolist() == ["scene-0000"]
    assert len(prepare(copy, parts=3, max_missing=0.01)["train"]["scene"]) == 5


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"scenes": 5}, ValueError, "has 4 scenes, expected 5: complete the copy"),
    ({"camera": "CAM_REAR"}, ValueError, r"camera \('CAM_REAR'\) is not in .*, expected one of CAM_FRONT, LIDAR_TOP"),
    ({"judged_every": 9}, ValueError, r"split 'val' has no videos: 4 scenes, judged_every 9"),
    ({"tables": "v1.0-trainval"}, DataUnavailable, "nuscenes: v1.0-trainval could not be had"),
])  # fmt: skip
def test_what_cannot_be_prepared_is_refused(copy, changes, error, message):
    with pytest.raises(error, match=message):
        prepare(copy, **changes)
    assert not (copy / "index").exists()


def test_tables_of_another_form_are_refused(copy):
    tables = copy / "nuscenes/v1.0-mini"
    (tables / "scene.json").rename(tables / "scenes.json")
    with pytest.raises(ValueError, match=r"scene.json is not there: take the whole folder of tables"):
        prepare(copy)
    (tables / "scene.json").write_text('[{"token": "t0"}]')
    with pytest.raises(ValueError, match=r"does not have the form of nuScenes' tables \(KeyError\('name'\)\)"):
        prepare(copy)
