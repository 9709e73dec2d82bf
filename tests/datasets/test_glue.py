"""On small files in the official TSV form."""

import numpy as np
import pytest

from lightning_modules import settings
from lightning_modules.datamodules.masked_texts import MaskedTexts
from lightning_modules.datasets import glue, storage, tables
from lightning_modules.datasets.download import MIRROR_VARIABLE
from stages.composing import compose

SPLITS = {"train": {"source": "train", "rows": None}, "test": {"source": "dev", "rows": None}}


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """Writes `train.tsv` and `dev.tsv` of a task, below a folder of GLUE."""
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)

    def write(folder, *lines, dev=("dev",)):
        home = tmp_path / "copy/glue" / folder
        home.mkdir(parents=True)
        for split in ("train", *dev):
            (home / f"{split}.tsv").write_bytes("".join(f"{line}\n" for line in lines).encode())

    return write


def prepare(tmp_path, task, **changes):
    glue.prepare(tmp_path / "new", task=task, mirror=str(tmp_path / "copy"), cache="none", **changes)
    return {name: values.tolist() for name, values in tables.read(tmp_path / "new", "train").items()}


def test_sentences_of_english_have_no_header_and_quotes_are_letters(tmp_path, copy):
    copy("CoLA", 'gj04\t1\t\tHe said "no.', "ks08\t0\t*\tThem\u2028is it .")
    rows = prepare(tmp_path, "cola")
    assert rows == {"id": [0, 1], "text": ['He said "no.', "Them\u2028is it ."], "label": [1, 0]}
    assert storage.card(tmp_path / "new")["num_classes"] == 2


def test_the_columns_of_pairs_are_found_by_their_names(tmp_path, copy):
    copy("MRPC", "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t70\t71\tA dog .\tOne dog .", "0\t8\t9\tA\tB")
    assert prepare(tmp_path, "mrpc") == {"id": [0, 1], "text": ["A dog .", "A"], "second": ["One dog .", "B"],
                                         "label": [1, 0]}  # fmt: skip


def test_texts_of_other_kinds_are_judged_apart(tmp_path, copy):
    row = "0\t3\t3n\tfiction\t( A )\t( B )\t(S)\t(S)\tA .\tB .\tneutral"
    copy("MNLI", "\t".join(glue.HEADERS["mnli"]), f"{row}\tcontradiction", dev=("dev_matched", "dev_mismatched"))
    assert prepare(tmp_path, "mnli")["label"] == [2]
    assert list(storage.card(tmp_path / "new")["splits"]) == ["train", "dev_matched", "dev_mismatched"]


def test_scores_are_numbers_and_become_float_labels(tmp_path, copy):
    line = "{0}\tnews\tf\t2012\t{0}\tnone\tnone\tA {0} .\tB .\t{1}"
    copy("STS-B", "\t".join(glue.HEADERS["stsb"]), *(line.format(n, n / 2) for n in range(8)))
    assert prepare(tmp_path, "stsb")["score"] == [n / 2 for n in range(8)]
    made = MaskedTexts(folder=tmp_path / "new", seed=0, splits=SPLITS, text_length=9, pairs=True, label="score",
                       masked=0.0, batch_size=4, evaluation_batch_size=8)  # fmt: skip
    (batch,) = made.evaluation_batches("test")
    assert batch["labels"].tolist() == [n / 2 for n in range(8)] and made.num_classes is None
    assert (batch["targets"] == -100).all() and batch["segments"][0].tolist() == [0] * 5 + [1] * 3 + [0]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["sentence\tmark", "good\t1"], r"train.tsv has the columns sentence, mark, expected 'label' among them"),
        (["sentence\tlabel", "good\t2"], r"train.tsv has the label '2', expected one of 0, 1"),
        (
            ["sentence\tlabel", "good\t1", "cut"],
            r"1 of 2 lines have too few fields, more than max_broken \(0.0\) allows",
        ),
    ],
)
def test_another_form_is_one_line(tmp_path, copy, lines, message):
    copy("SST-2", *lines)
    with pytest.raises(ValueError, match=message) as caught:
        prepare(tmp_path, "sst2")
    assert "\n" not in str(caught.value)


def test_lines_with_too_few_fields_are_left_out_within_a_bound(tmp_path, copy):
    copy("SST-2", "sentence\tlabel", "good\t1", "cut", "bad\t0")
    assert prepare(tmp_path, "sst2", max_broken=0.4)["text"] == ["good", "bad"]


@pytest.mark.parametrize("task", glue.FORMS)
def test_every_task_is_configured_and_read_from_its_stand_in(tmp_path, task):
    config = compose("paper", dataset=f"glue_{task}")["dataset"]
    made = glue.stand_in(tmp_path, rows=6, **{name: x for name, x in config.items() if name != "_target_"})
    settings.bind(config | made.config, "conf")(tmp_path / "new")
    rows = tables.read(tmp_path / "new", "train")
    assert len(rows["text"]) == 6 and ("second" in rows) == (glue.FORMS[task].second is not None)
    said = rows["score" if task == "stsb" else "label"]
    assert len(np.unique(said)) >= 2
