"""Which words are hidden, how, and what is asked for."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from lightning_modules.datamodules import masked_texts
from lightning_modules.datamodules.masked_texts import IGNORED, MaskedTexts, hide, sentences
from lightning_modules.datasets import tables
from lightning_modules.datasets.tokenizers import spelling_bert, world_tokenizer

SPLITS = {name: {"source": name, "rows": None} for name in ("train", "val", "test")}


def data(folder, **changes):
    options = {"splits": SPLITS, "text_length": 24, "batch_size": 64, "evaluation_batch_size": 256}
    made = MaskedTexts(folder=folder, seed=1, **options | changes)
    made.trainer = None
    return made


def epoch(made, number):
    loader = made.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


@pytest.fixture
def texts(prepared):
    return prepared("world_many") / "texts"


def test_fifteen_percent_of_the_words_are_asked_for_and_hidden_by_the_rule():
    tokenizer, rows, length = world_tokenizer(), 2000, 42
    ids = np.random.default_rng(0).integers(4, len(tokenizer) - 1, (rows, length))
    ids[:, 0], ids[:, -1] = tokenizer.start_id, tokenizer.end_id
    words = np.random.default_rng(1).integers(0, 2**64, (rows, 2, length), np.uint64)
    hidden, targets = hide(ids, tokenizer, words, 0.15)
    asked = targets != IGNORED
    assert (asked.sum(1) == 6).all() and not asked[:, [0, -1]].any()
    assert np.array_equal(targets[asked], ids[asked]) and np.array_equal(hidden[~asked], ids[~asked])
    masked, kept = (hidden == tokenizer.mask_id)[asked], (hidden == ids)[asked]
    assert masked.mean() == pytest.approx(0.8, abs=0.01) and kept.mean() == pytest.approx(0.1, abs=0.01)
    others = np.unique(hidden[asked][~masked & ~kept])
    assert others.min() == 4 and others.max() == len(tokenizer) - 2 and len(others) == len(tokenizer) - 5
    assert asked[:, 1:-1].mean(0).std() < 0.012, "every place as often"


def test_a_short_text_has_a_word_to_guess_and_an_empty_one_none():
    tokenizer = world_tokenizer()
    ids, _ = tokenizer(["red", "", "a circle"], 6)
    words = np.random.default_rng(0).integers(0, 2**64, (3, 2, 6), np.uint64)
    _, targets = hide(ids, tokenizer, words, 0.15)
    assert (targets != IGNORED).sum(1).tolist() == [1, 0, 1]
    untouched, nothing = hide(ids, tokenizer, words, 0.0)
    assert np.array_equal(untouched, ids) and (nothing == IGNORED).all()


@pytest.mark.parametrize("make", [world_tokenizer, spelling_bert])
def test_a_pair_has_an_end_each_and_the_longer_sentence_is_cut(make):
    tokenizer = make()
    read = sentences(tokenizer, ["a red circle", "a"], ["a , b", "a a a a a"], 7)
    assert (read["token_ids"][:, 0] == tokenizer.start_id).all()
    assert read["token_ids"].shape == (2, 7) and read["attention_mask"].all()
    assert (read["token_ids"] == tokenizer.end_id).sum(1).tolist() == [2, 2]
    ends = [np.flatnonzero(row == tokenizer.end_id).tolist() for row in read["token_ids"]]
    assert ends[1] == [2, 6], "one word, and three of five"
    for segments, (first, _) in zip(read["segments"], ends, strict=True):
        assert segments.tolist() == [0] * (first + 1) + [1] * (6 - first)


def test_masks_change_with_the_epoch_and_are_the_same_in_each_evaluation(texts):
    made = data(texts)
    order = [torch.cat([batch["targets"] for batch in epoch(made, number)]) for number in (0, 0, 1)]
    assert torch.equal(order[0], order[1]) and not torch.equal(order[0], order[2])
    first, second = (list(made.evaluation_batches("val")) for _ in range(2))
    assert len(first) == 4 and all(
        torch.equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in a
    )


def test_rows_that_are_not_kept_have_the_same_batches(texts, monkeypatch):
    kept = epoch(data(texts, pairs=True), 3)
    monkeypatch.setattr(masked_texts, "KEPT", 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: [])  # in this process
    for one, other in zip(kept, epoch(data(texts, pairs=True), 3), strict=True):
        assert one.keys() == other.keys() == {"token_ids", "attention_mask", "segments", "labels", "targets"}
        assert all(torch.equal(one[name], x) for name, x in other.items())


def test_a_column_that_is_not_there_and_a_tokenizer_without_mask_are_one_line(texts, tmp_path, monkeypatch):
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    written = tables.write_blocks(tmp_path, "train", tables.blocks_of([{"id": 0, "text": "a"}]), schema)
    tables.write_card(tmp_path, name="x", splits={"train": written}, schema=schema, source="here")
    with pytest.raises(ValueError, match=r"has the columns id, text, but not 'second', which data.pairs \(True\)"):
        data(tmp_path, pairs=True)
    with pytest.raises(ValueError, match=r"but not 'score', which data.pairs \(False\) and data.label \(score\)"):
        data(texts, label="score")
    made = data(texts, tokenizer="openai/clip-vit-base-patch32")
    monkeypatch.setattr(masked_texts, "tokenizer_called", lambda name: type("Clip", (), {"mask_id": None})())
    with pytest.raises(
        ValueError, match="tokenizer openai/clip-vit-base-patch32 has no mask token: take one like BERT"
    ):
        made.tokenizer  # noqa: B018
    with pytest.raises(
        ValueError, match=r"there is no split 'train' in data.splits \(\['val'\]\), so epochs must be 0"
    ):
        data(texts, splits={"val": SPLITS["val"]}).train_dataloader()
