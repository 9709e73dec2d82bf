import json
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.datasets import storage
from lightning_modules.files import replace_folder

SHAPE = (2, 3, 1)


def some_columns(rows: int) -> dict[str, np.ndarray]:
    values = np.random.default_rng(0)
    return {
        "id": np.arange(rows) * 3,
        "image": values.integers(0, 256, (rows, *SHAPE), dtype=np.uint8),
        "label": values.integers(0, 10, rows),
    }


def encoded_columns(rows: int) -> dict[str, np.ndarray]:
    images = np.array([bytes([index % 256]) * (index % 7) for index in range(rows)], dtype=object)
    return {"id": np.arange(rows), "image": images, "label": np.zeros(rows, np.int64)}


def blocks(columns, cuts):
    edges = [0, *sorted(cuts), len(columns["id"])]
    for start, stop in pairwise(edges):
        yield {name: values[start:stop] for name, values in columns.items()}


def write_card(folder, split, codec="raw", shape=SHAPE):
    storage.write_card(
        folder, name="toy", splits={"train": split}, codec=codec, shape=shape, num_classes=10, source="made up"
    )


@pytest.fixture
def prepared(tmp_path) -> Path:
    folder = tmp_path / "toy"
    with replace_folder(folder) as new:
        write_card(new, storage.write(new, "train", some_columns(600), "raw", SHAPE))
    return folder


def edit_card(folder: Path, **changes) -> None:
    path = folder / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_raw_images_come_back_as_written(prepared):
    expected, found = some_columns(600), storage.read(prepared, "train")
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == (np.uint8 if name == "image" else np.int64)
        assert found[name].flags.writeable  # torch.from_numpy warns about anything else


def test_encoded_images_come_back_untouched(tmp_path):
    columns = encoded_columns(300)
    write_card(tmp_path, storage.write(tmp_path, "train", columns, "jpeg"), codec="jpeg", shape=None)
    found = storage.read(tmp_path, "train")
    assert found["image"].tolist() == columns["image"].tolist()


def test_files_follow_the_contract(prepared):
    assert sorted(path.name for path in prepared.iterdir()) == ["card.json", "train-00000-of-00001.parquet"]
    with pq.ParquetFile(prepared / "train-00000-of-00001.parquet") as file:
        assert file.schema_arrow.names == ["id", "image", "label"]
        assert file.schema_arrow.metadata == {b"codec": b"raw", b"shape": b"[2, 3, 1]"}
        groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
        assert [group.num_rows for group in groups] == [256, 256, 88]
        assert groups[0].column(1).compression == "ZSTD"
        assert "RLE_DICTIONARY" not in groups[0].column(1).encodings
    card = storage.card(prepared)
    assert card["splits"] == {"train": 600}
    assert card["image_shape"] == list(SHAPE)
    assert list(card["content_sha256"]) == ["train"]


def test_writing_twice_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        storage.write(tmp_path / name, "train", some_columns(300), "raw", SHAPE)
    first, second = (tmp_path / name / "train-00000-of-00001.parquet" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_shards_are_cut_by_size_and_read_in_order(tmp_path):
    columns = some_columns(600)
    parts = blocks(columns, [100, 256, 400])
    write_card(tmp_path, storage.write_blocks(tmp_path, "train", parts, "raw", SHAPE, shard_bytes=1500))
    shards = storage.shards(tmp_path, "train")
    assert [path.name for path in shards] == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert [pq.read_metadata(path).num_rows for path in shards] == [256, 344]
    np.testing.assert_array_equal(storage.read(tmp_path, "train")["id"], columns["id"])


@settings(deadline=None, max_examples=50)
@given(cuts=st.sets(st.integers(1, 39), max_size=5), shard_bytes=st.integers(1, 400))
def test_digest_does_not_depend_on_blocks_or_shards(cuts, shard_bytes):
    columns = encoded_columns(40)
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        whole = storage.write(Path(one), "train", columns, "jpeg")
        parts = storage.write_blocks(Path(other), "train", blocks(columns, cuts), "jpeg", shard_bytes=shard_bytes)
    assert whole == parts


@settings(deadline=None, max_examples=50)
@given(row=st.integers(0, 39), name=st.sampled_from(["id", "label", "image"]))
def test_digest_changes_with_any_value(row, name):
    columns = encoded_columns(40)
    changed = {key: values.copy() for key, values in columns.items()}
    changed[name][row] = b"other" if name == "image" else -1
    with TemporaryDirectory() as folder:
        assert storage.write(Path(folder), "a", columns, "jpeg") != storage.write(Path(folder), "b", changed, "jpeg")


def test_digest_sees_where_one_image_ends():
    digests = set()
    for images in ([b"ab", b"c"], [b"a", b"bc"]):
        columns = encoded_columns(2) | {"image": np.array(images, dtype=object)}
        with TemporaryDirectory() as folder:
            digests.add(storage.write(Path(folder), "train", columns, "jpeg").sha256)
    assert len(digests) == 2


@pytest.mark.parametrize("position", [0.1, 0.5])
def test_damaged_shard_is_refused_by_name(tmp_path, position):
    parts = blocks(some_columns(600), [256, 512])
    write_card(tmp_path, storage.write_blocks(tmp_path, "train", parts, "raw", SHAPE, shard_bytes=1500))
    shard = storage.shards(tmp_path, "train")[1]
    content = bytearray(shard.read_bytes())
    content[int(len(content) * position)] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s){shard}.*dvc"):
        storage.read(tmp_path, "train")


def test_shard_cut_off_is_refused_by_name_with_the_digest(prepared):
    shard = prepared / "train-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:1000])
    expected = storage.card(prepared)["content_sha256"]["train"]
    with pytest.raises(ValueError, match=rf"{shard}.*{expected}.*dvc checkout"):
        storage.read(prepared, "train")


def test_other_content_in_a_sound_shard_is_refused_with_both_digests(prepared, tmp_path):
    expected = storage.card(prepared)["content_sha256"]["train"]
    other = some_columns(600)
    other["label"][7] += 1
    found = storage.write(prepared, "train", other, "raw", SHAPE).sha256
    with pytest.raises(ValueError, match=rf"train-00000-of-00001.parquet.*{found}.*{expected}.*dvc checkout"):
        storage.read(prepared, "train")


def test_missing_shard_is_named(tmp_path):
    split = storage.write_blocks(tmp_path, "train", blocks(some_columns(9), [3, 6]), "raw", SHAPE, shard_bytes=1)
    write_card(tmp_path, split)
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(ValueError, match=r"has 2 shards.*expected 3.*train-00001-of-00003.parquet"):
        storage.read(tmp_path, "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"content_sha256": {"train": "0" * 64}}, "expects 600 rows with 0000"),
        ({"splits": {"train": 599}}, "holds 600 rows.*expects 599 rows"),
        ({"image_shape": [3, 2, 1]}, "has the schema"),
        ({"codec": "png"}, "has the schema"),
        ({"splits": {"test": 1}}, "split 'train' is not in"),
    ],
)
def test_card_that_does_not_fit_is_refused(prepared, changes, message):
    edit_card(prepared, **changes)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        storage.read(prepared, "train")


def test_absent_and_broken_cards_are_refused(prepared, tmp_path):
    with pytest.raises(ValueError, match=r"card\.json is missing.*make repro"):
        storage.card(tmp_path)
    (prepared / "card.json").write_text('{"name": ')
    with pytest.raises(ValueError, match=r"card\.json is not JSON"):
        storage.card(prepared)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (some_columns(0), "has no rows"),
        (some_columns(3) | {"label": np.zeros(2, np.int64)}, "columns have lengths"),
        ({name: values for name, values in some_columns(3).items() if name != "label"}, "columns have lengths"),
        (some_columns(3) | {"image": np.zeros((3, 3, 2, 1), np.uint8)}, "images are uint8"),
        (some_columns(3) | {"image": np.zeros((3, *SHAPE))}, "images are float64"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path, columns, message):
    with pytest.raises(ValueError, match=message):
        storage.write(tmp_path, "train", columns, "raw", SHAPE)
    assert not list(tmp_path.glob("*.parquet"))


def test_replace_folder_replaces_an_earlier_one(prepared):
    with replace_folder(prepared) as new:
        (new / "only").touch()
    assert [path.name for path in prepared.iterdir()] == ["only"]
    assert list(prepared.parent.iterdir()) == [prepared]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_replace_folder_leaves_the_earlier_one_whole_on_any_error(prepared, error):
    before = {path.name: path.read_bytes() for path in prepared.iterdir()}
    with pytest.raises(error), replace_folder(prepared) as new:
        (new / "half").touch()
        raise error
    assert {path.name: path.read_bytes() for path in prepared.iterdir()} == before
    assert list(prepared.parent.iterdir()) == [prepared]


def test_replace_folder_removes_what_a_killed_process_left(tmp_path):
    (tmp_path / ".toy.partial-killed" / "new").mkdir(parents=True)
    with replace_folder(tmp_path / "toy"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
