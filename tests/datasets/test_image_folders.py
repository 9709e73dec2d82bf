import io
import shutil

import numpy as np
import pytest
from PIL import Image

from lightning_modules.datasets import image_folders, pictures, storage
from lightning_modules.datasets.download import DataUnavailable
from lightning_modules.datasets.streaming import RowGroups


def encoded(value: int, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (value, 0, 0)).save(file, form)
    return file.getvalue()


@pytest.fixture
def own(tmp_path):
    for split in ("train", "held_out"):
        for number, name in enumerate(("cat", "ant")):
            for image in range(3 if split == "train" else 1):
                path = tmp_path / "own" / "pets" / split / name / f"{image}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded(10 * number + image))
    (tmp_path / "own" / "pets" / "train" / "cat" / "notes.txt").write_text("not an image")
    return tmp_path / "own"


def prepare(own, folder, splits=("train", "held_out")):
    image_folders.prepare(
        folder, name="pets", splits=dict(zip(("train", "val"), splits, strict=True)), source="made up", mirror=own,
        cache=own / "nowhere",
    )  # fmt: skip


def test_files_become_rows_as_they_are(own, tmp_path):
    prepare(own, tmp_path / "set")
    card, train = storage.card(tmp_path / "set"), storage.read(tmp_path / "set", "train")
    assert card["splits"] == {"train": 6, "val": 2}
    assert (card["codec"], card["num_classes"]) == ("png", 2)
    assert train["label"].tolist() == [0, 0, 0, 1, 1, 1]  # ant before cat
    assert [pictures.decode(image)[0, 0, 0] for image in train["image"]] == [10, 11, 12, 0, 1, 2]


def test_the_streaming_reader_gives_the_same_form_of_batch(own, tmp_path):
    prepare(own, tmp_path / "set")
    batch, whole = RowGroups(tmp_path / "set", "train")[np.array([4, 1])], storage.read(tmp_path / "set", "train")
    assert {name: values.tolist() for name, values in batch.items()} == {
        name: values[[4, 1]].tolist() for name, values in whole.items()
    }


def test_a_missing_folder_is_named(own, tmp_path):
    with pytest.raises(DataUnavailable, match="absent"):
        prepare(own, tmp_path / "set", ("train", "absent"))


def test_splits_with_other_classes_are_refused(own, tmp_path):
    (own / "pets/held_out/cat/0.png").unlink()
    with pytest.raises(ValueError, match="held_out has no image of cat"):
        prepare(own, tmp_path / "set")


def test_mixed_formats_and_empty_folders_are_refused(own, tmp_path):
    (own / "pets/train/cat/9.JPG").write_bytes(encoded(1, "JPEG"))
    with pytest.raises(ValueError, match=r"must hold images of one format.*both"):
        prepare(own, tmp_path / "set")
    (own / "pets/empty").mkdir()
    with pytest.raises(ValueError, match="there are none"):
        prepare(own, tmp_path / "set", ("empty", "empty"))
    assert not (tmp_path / "set").exists()


def test_hidden_files_are_no_classes_and_no_images(own, tmp_path):
    for split in ("train", "held_out"):
        for name in (".ipynb_checkpoints/0-checkpoint.png", "cat/._0.png", ".DS_Store"):
            path = own / "pets" / split / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(encoded(99))
    prepare(own, tmp_path / "set")
    assert storage.card(tmp_path / "set")["splits"] == {"train": 6, "val": 2}
    assert storage.card(tmp_path / "set")["num_classes"] == 2


@pytest.mark.parametrize(
    ("name", "problem"),
    [("cat/9.webp", "are neither JPEG nor PNG"), ("cat/9.heic", "are neither JPEG nor PNG"),
     ("cat/more/9.png", "do not lie in the folder of a class"), ("9.png", "do not lie in the folder of a class")],
)  # fmt: skip
def test_images_that_would_be_lost_are_named(own, tmp_path, name, problem):
    path = own / "pets/train" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encoded(1))
    with pytest.raises(ValueError, match=f"1 images of .*train {problem}, .*{name} first: convert or move them"):
        prepare(own, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_the_folder_of_a_class_may_be_a_link(own, tmp_path):
    prepare(own, tmp_path / "set")
    train = own / "pets/train"
    moved = next(path for path in sorted(train.iterdir()) if path.is_dir())
    shutil.move(moved, tmp_path / "elsewhere")
    moved.symlink_to(tmp_path / "elsewhere")
    prepare(own, tmp_path / "linked")
    assert storage.card(tmp_path / "linked")["splits"] == storage.card(tmp_path / "set")["splits"]


def test_a_broken_image_is_named_before_any_training(own, tmp_path):
    (own / "pets/train/cat/1.png").write_bytes(encoded(1)[:40])
    with pytest.raises(ValueError, match=r"1 of \d pictures are broken.*pets/train/cat/1\.png cannot be read"):
        prepare(own, tmp_path / "set")
    assert not (tmp_path / "set").exists()
