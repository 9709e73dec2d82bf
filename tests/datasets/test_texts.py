"""Corpora in their published forms, as passages and pairs of them; and tables without pictures."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_modules import settings
from lightning_modules.datasets import tables
from lightning_modules.datasets.download import MIRROR_VARIABLE, DataUnavailable

TARGET = {"_target_": "lightning_modules.datasets.texts.prepare", "seed": 0, "cache": "none"}


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Prepares corpora of the copy below `tmp_path`, and reads them."""
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)

    def read(corpora, words=6, pairs=False):
        block = {**TARGET, "corpora": corpora, "words": words, "pairs": pairs, "mirror": str(tmp_path)}
        settings.bind(block, "conf")(tmp_path / "new")
        return {name: values.tolist() for name, values in tables.read(tmp_path / "new", "train").items()}

    return read


def test_lines_are_sentences_and_empty_lines_end_documents(tmp_path, prepare):
    (tmp_path / "books").mkdir()
    (tmp_path / "books/a.txt").write_text("One two three.\nFour  five six.\nSeven.\n\n\nEight nine.\n")
    (tmp_path / "books/b.txt").write_text("Ten.\n")
    rows = prepare({"books": {"form": "lines", "files": "books"}})
    assert rows["text"] == ["One two three. Four five six.", "Seven.", "Eight nine.", "Ten."]
    assert rows["id"] == [0, 1, 2, 3]


def test_rows_of_tables_are_documents_or_sentences_and_corpora_follow_each_other(tmp_path, prepare):
    for name, said in {
        "wiki/x-0.parquet": ["A b c.\nD e f.", "G h."],
        "book.parquet": ["I j k l.", "m n o.", "p"],
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"id": list(range(len(said))), "text": said}), tmp_path / name)
    corpora = {"wiki": {"form": "parquet", "files": "wiki"}, "book": {"form": "sentences", "files": "book.parquet"}}
    assert prepare(corpora)["text"] == ["A b c. D e f.", "G h.", "I j k l. m n o.", "p"]


def test_half_of_the_second_passages_follow_and_the_others_are_of_another_document(tmp_path, prepare):
    told = [[f"d{number} p{place} w w." for place in range(6)] for number in range(200)]
    pq.write_table(pa.table({"text": ["\n".join(each) for each in told]}), tmp_path / "w.parquet")
    rows = prepare({"w": {"form": "parquet", "files": "w.parquet"}}, words=4, pairs=True)
    names = [[text.split()[:2] for text in rows[column]] for column in ("text", "second")]
    for first, second, label in zip(*names, rows["label"], strict=True):
        follows = first[0] == second[0] and int(second[1][1:]) == int(first[1][1:]) + 1
        assert follows if label else first[0] != second[0]
    assert len(rows["label"]) > 600 and 0.35 < np.mean(rows["label"]) < 0.6
    assert prepare({"w": {"form": "parquet", "files": "w.parquet"}}, words=4, pairs=True) == rows


def test_a_corpus_in_another_form_is_one_line(tmp_path, prepare):
    with pytest.raises(DataUnavailable, match="wiki: wiki could not be had"):
        prepare({"wiki": {"form": "parquet", "files": "wiki"}})
    (tmp_path / "wiki").mkdir()
    with pytest.raises(ValueError, match=r"wiki has no file \*\.parquet, expected those of the form 'parquet'"):
        prepare({"wiki": {"form": "parquet", "files": "wiki"}})
    pq.write_table(pa.table({"title": ["a"]}), tmp_path / "wiki/a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet has the columns \['title'\], expected `text` among them"):
        prepare({"wiki": {"form": "parquet", "files": "wiki"}})
    (tmp_path / "wiki/a.parquet").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"a.parquet cannot be read .*: get the file again"):
        prepare({"wiki": {"form": "parquet", "files": "wiki"}})
    (tmp_path / "wiki/a.txt").write_bytes(b"\xff\xfe\n")
    with pytest.raises(ValueError, match=r"a.txt is no text in UTF-8"):
        prepare({"wiki": {"form": "lines", "files": "wiki"}})
    (tmp_path / "wiki/a.txt").write_text("\n\n")
    with pytest.raises(ValueError, match=r"split 'train' of .* has no rows, expected at least one"):
        prepare({"wiki": {"form": "lines", "files": "wiki"}})
    with pytest.raises(ValueError, match=r"corpora.*form is 'csv', expected 'lines', 'parquet' or 'sentences'"):
        prepare({"wiki": {"form": "csv", "files": "wiki"}})


def test_a_table_is_what_was_written_in_any_number_of_shards(tmp_path):
    schema = pa.schema([("id", pa.int64()), ("text", pa.string()), ("score", pa.float32())])
    rows = [{"id": number, "text": f"text {number}", "score": number / 4} for number in range(700)]
    written = [
        tables.write_blocks(tmp_path, split, tables.blocks_of(rows, 100), schema, shard_bytes=size)
        for split, size in (("one", 2**20), ("many", 2000))
    ]
    tables.write_card(tmp_path, name="x", splits=dict(zip(("one", "many"), written, strict=True)), schema=schema,
                      source="here")  # fmt: skip
    assert written[0] == written[1] and len(list(tmp_path.glob("many-*.parquet"))) > 2
    one, many = (tables.read(tmp_path, split) for split in ("one", "many"))
    assert all(np.array_equal(one[name], many[name]) for name in one)
    assert one["text"][699] == "text 699" and one["score"].dtype == np.float32
    with pytest.raises(ValueError, match=r"split 'three' is not in .*card.json, expected one of \['one', 'many'\]"):
        tables.read(tmp_path, "three")


def test_an_altered_table_is_refused(tmp_path):
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    written = tables.write_blocks(tmp_path, "train", tables.blocks_of([{"id": 0, "text": "a"}]), schema)
    tables.write_card(tmp_path, name="x", splits={"train": written}, schema=schema, source="here")
    card = json.loads((tmp_path / "card.json").read_text())
    card["content_sha256"]["train"] = "0" * 64
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"but not the content of the 1 rows that card.json expects.*dvc checkout"):
        tables.read(tmp_path, "train")
    next(tmp_path.glob("*.parquet")).write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"parquet or a shard beside it cannot be read"):
        tables.read(tmp_path, "train")
