import hashlib
import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.io import savemat

from lightning_modules.datasets import imagenet, pictures, storage
from lightning_modules.datasets.download import DataUnavailable

WNIDS = ["n01440764", "n01443537", "n02084071"]  # sorted: label 0, 1, 2
CHALLENGE_IDS = {"n02084071": 1, "n01440764": 2, "n01443537": 3}  # the challenge counts in an order of its own
TRAIN = {wnid: [f"{wnid}_{number}.JPEG" for number in (10, 9, 2)] for wnid in WNIDS}
VAL_LABELS = [2, 0, 1, 1, 0]
TRAIN_AND_VAL = {"train": 9, "val": 5}
DEVKIT_ROOT = "ILSVRC2012_devkit_t12/data"


def jpeg(text: str) -> bytes:
    """A small picture that differs for each name."""
    file = io.BytesIO()
    Image.new("RGB", (4, 3), tuple(hashlib.sha256(text.encode()).digest()[:3])).save(file, "JPEG")
    return file.getvalue()


_jpeg = jpeg


def val_name(index: int) -> str:
    return f"ILSVRC2012_val_{index + 1:08d}.JPEG"


def tar_bytes(members: dict[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def make_folders(root: Path) -> None:
    for wnid, names in TRAIN.items():
        (root / "train" / wnid).mkdir(parents=True)
        (root / "val" / wnid).mkdir(parents=True)
        for name in names:
            (root / "train" / wnid / name).write_bytes(jpeg(name))
    for index, label in enumerate(VAL_LABELS):
        (root / "val" / WNIDS[label] / val_name(index)).write_bytes(jpeg(val_name(index)))


def meta_mat() -> bytes:
    """`synsets`: the leaves and one inner node, with the fields that matter."""
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)]
    nodes = [(number, wnid, 0) for wnid, number in CHALLENGE_IDS.items()] + [(4, "n00001740", 3)]
    file = io.BytesIO()
    savemat(file, {"synsets": np.array(nodes, dtype=fields)[:, None]})
    return file.getvalue()


def make_tars(root: Path) -> None:
    inner = {f"{wnid}.tar": tar_bytes({name: jpeg(name) for name in names}) for wnid, names in TRAIN.items()}
    truth = "".join(f"{CHALLENGE_IDS[WNIDS[label]]}\n" for label in VAL_LABELS)
    shuffled = [3, 0, 4, 1, 2]
    contents = {
        imagenet.TRAIN_TAR: tar_bytes(dict(reversed(inner.items()))),
        imagenet.VAL_TAR: tar_bytes({val_name(index): jpeg(val_name(index)) for index in shuffled}),
        imagenet.DEVKIT: tar_bytes(
            {
                f"{DEVKIT_ROOT}/meta.mat": meta_mat(),
                f"{DEVKIT_ROOT}/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
            },
            "w:gz",
        ),
    }
    for name, content in contents.items():
        (root / name).write_bytes(content)


def make_parquet(root: Path) -> None:
    (root / "data").mkdir()
    train = [(jpeg(name), name, label) for label, wnid in enumerate(WNIDS) for name in sorted(TRAIN[wnid])]
    val = [(jpeg(val_name(index)), val_name(index), label) for index, label in enumerate(VAL_LABELS)]
    for split, rows, count in [("train", train, 2), ("validation", val, 1)]:
        for index, part in enumerate(np.array_split(np.arange(len(rows)), count)):
            images = [{"bytes": rows[row][0], "path": rows[row][1]} for row in part]
            table = pa.table({"image": images, "label": [rows[row][2] for row in part]})
            pq.write_table(table, root / "data" / f"{split}-{index:05d}-of-{count:05d}.parquet")


MAKERS = {"folders": make_folders, "tars": make_tars, "parquet": make_parquet}


def checksums(root: Path) -> dict:
    return {
        path.name: {"md5": hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}
        for path in root.glob("ILSVRC*")
    }


def prepare(tmp_path: Path, form: str, **changes) -> Path:
    root, target = tmp_path / "mirror" / "imagenet", tmp_path / "datasets" / form
    config = {
        "splits": TRAIN_AND_VAL,
        "images_per_class": None,
        "num_classes": 3,
        "files": checksums(root),
        "mirror": tmp_path / "mirror",
        "cache": tmp_path / "cache",
    }
    imagenet.prepare(target, form=form, **config | changes)
    return target


@pytest.fixture
def copies(tmp_path) -> Path:
    root = tmp_path / "mirror" / "imagenet"
    root.mkdir(parents=True)
    for make in MAKERS.values():
        make(root)
    return root


@pytest.mark.parametrize("form", MAKERS)
def test_every_form_gives_the_same_rows_untouched(tmp_path, copies, form):
    folder = prepare(tmp_path, form)
    train, val = storage.read(folder, "train"), storage.read(folder, "val")
    names = [name for wnid in WNIDS for name in sorted(TRAIN[wnid])]
    assert train["image"].tolist() == [jpeg(name) for name in names]
    assert train["label"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert val["image"].tolist() == [jpeg(val_name(index)) for index in range(5)]
    assert val["label"].tolist() == VAL_LABELS
    assert pictures.decode(val["image"][0]).shape == (3, 4, 3)
    card = storage.card(folder)
    assert (card["codec"], card["image_shape"], card["num_classes"]) == ("jpeg", None, 3)


@pytest.mark.parametrize("form", MAKERS)
def test_images_per_class_keeps_the_first_of_each(tmp_path, copies, form):
    folder = prepare(tmp_path, form, images_per_class=1, splits={"val": 5})
    assert storage.card(folder)["splits"] == {"val": 3}
    assert storage.read(folder, "val")["label"].tolist() == [2, 0, 1]


def test_rows_are_streamed_in_row_groups(tmp_path, copies, monkeypatch):
    monkeypatch.setattr(storage, "ROW_GROUP", 4)
    folder = prepare(tmp_path, "folders", splits={"train": 9})
    with pq.ParquetFile(folder / "train-00000-of-00001.parquet") as file:
        assert [file.metadata.row_group(index).num_rows for index in range(3)] == [4, 4, 1]
    assert storage.read(folder, "train")["id"].tolist() == list(range(9))


@pytest.mark.parametrize("form", ["folders", "tars"])
def test_copy_without_one_class_is_refused(tmp_path, copies, form):
    with pytest.raises(ValueError, match="has 3 classes, expected 4"):
        prepare(tmp_path, form, num_classes=4)
    assert not list((tmp_path / "datasets").iterdir())


@pytest.mark.parametrize("form", MAKERS)
def test_incomplete_copy_is_refused(tmp_path, copies, form):
    with pytest.raises(ValueError, match="the copy has 9 images, expected 10"):
        prepare(tmp_path, form, splits={"train": 10})
    assert not list((tmp_path / "datasets").iterdir())


def test_labels_outside_the_classes_are_refused(tmp_path, copies):
    with pytest.raises(ValueError, match="label 2 is outside 0 to 1"):
        prepare(tmp_path, "parquet", num_classes=2)


def test_hub_form_with_paths_only_is_refused(tmp_path, copies):
    table = pa.table({"image": [{"bytes": None, "path": "a.JPEG"}], "label": [1]})
    pq.write_table(table, copies / "data" / "validation-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"a\.JPEG, image 1 of label 1, has no bytes"):
        prepare(tmp_path, "parquet", splits={"val": 5})


@pytest.mark.parametrize("form", MAKERS)
def test_a_broken_image_is_named_and_left_out_only_where_that_is_allowed(tmp_path, copies, form, monkeypatch):
    broken, name = jpeg(val_name(3))[:-200], val_name(3)
    monkeypatch.setitem(globals(), "jpeg", lambda text: broken if text == name else _jpeg(text))
    shutil.rmtree(copies)
    copies.mkdir()
    MAKERS[form](copies)
    with pytest.raises(ValueError, match=rf"1 of \d pictures are broken.*{name} cannot be read"):
        prepare(tmp_path, form, splits={"val": 5})
    folder = prepare(tmp_path, form, splits={"val": 5}, max_broken=0.01)
    assert storage.read(folder, "val")["label"].tolist() == [2, 0, 1, 0]


def test_missing_part_of_the_hub_form_is_refused(tmp_path, copies):
    (copies / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"misses \['train-00001-of-00002.parquet'\]"):
        prepare(tmp_path, "parquet")


def test_validation_archive_must_match_its_ground_truth(tmp_path, copies):
    (copies / imagenet.VAL_TAR).write_bytes(tar_bytes({val_name(0): jpeg("x")}))
    with pytest.raises(ValueError, match=r"has 1 images, but .* has 5 labels"):
        prepare(tmp_path, "tars")


def test_other_archive_in_place_of_the_devkit_is_refused(tmp_path, copies):
    (copies / imagenet.DEVKIT).write_bytes(tar_bytes({"readme.txt": b""}, "w:gz"))
    with pytest.raises(ValueError, match=r"has 0 members \*/data/meta\.mat"):
        prepare(tmp_path, "tars", splits={"val": 5})


def test_altered_archive_is_refused(tmp_path, copies):
    expected = checksums(copies)
    with (copies / imagenet.TRAIN_TAR).open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataUnavailable, match=r"ILSVRC2012_img_train\.tar could not be had"):
        prepare(tmp_path, "tars", files=expected)


def test_only_the_needed_archives_are_asked_for(tmp_path, copies):
    (copies / imagenet.TRAIN_TAR).unlink()
    assert storage.card(prepare(tmp_path, "tars", splits={"val": 5}, files=checksums(copies)))["splits"] == {"val": 5}


@pytest.mark.parametrize(("form", "entry"), [("folders", "train"), ("tars", imagenet.TRAIN_TAR), ("parquet", "data")])
def test_absent_copy_is_told_with_the_way_out(tmp_path, copies, form, entry):
    files = checksums(copies)
    shutil.rmtree(copies)
    with pytest.raises(DataUnavailable, match=rf"(?s)imagenet: {entry} could not be had.*REPRISE_MIRROR"):
        prepare(tmp_path, form, files=files)
    assert not list((tmp_path / "datasets").iterdir())


@pytest.mark.parametrize(("form", "split"), [("zip", "val"), ("folders", "test")])
def test_unknown_form_or_split_is_refused(tmp_path, copies, form, split):
    with pytest.raises(ValueError, match=f"form '{form}' with split '{split}': expected"):
        prepare(tmp_path, form, splits={split: 1})
