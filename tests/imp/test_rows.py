"""Rows of several modalities, and captioned pictures and videos from disk."""

import numpy as np
import pytest
import torch

from lightning_modules import rehearsal
from lightning_modules.datasets import sentence_pieces, storage
from lightning_modules.datasets.download import MIRROR_VARIABLE
from lightning_modules.datasets.tokenizers import TextTokenizer
from lightning_modules.datasets.world.scenes import SHAPES
from lightning_modules.imp.modality_rows import ModalityRows
from tests.datamodules.test_portions import captioned_crops, captioned_videos

SPLITS = {"train": {"source": "train", "rows": 96}, "test": {"source": "test", "rows": None}}


@pytest.fixture
def world(prepared):
    return prepared("world_many")


def rows(folder, modalities, **changes):
    options = {"splits": SPLITS, "batch_size": 32, "evaluation_batch_size": 128}
    made = ModalityRows(folder=folder, seed=1, modalities=modalities, **options | changes)
    made.trainer = None
    return made


def test_picture_clip_sound_and_caption_of_a_row_are_about_the_same_thing(world):
    made = rows(world / "clips", ["video", "audio", "text"], label="shape")
    stored = storage.read(world / "clips", "test")
    batches = list(made.evaluation_batches("test"))
    video, audio, ids, labels = (torch.cat([b[n] for b in batches]) for n in ("video", "audio", "token_ids", "labels"))
    assert torch.equal(video, torch.from_numpy(stored["video"].transpose(0, 4, 1, 2, 3)))
    assert torch.equal(audio.long(), torch.from_numpy(stored["audio"])) and audio.dtype == torch.int16
    assert made.num_classes == 8 and labels.tolist() == stored["shape"].tolist()
    said = made.tokenizer.decode(ids.numpy())
    assert all(SHAPES[label] in text for label, text in zip(labels.tolist(), said, strict=True))


def test_a_row_shows_another_of_its_captions_in_another_epoch_and_the_first_one_when_it_is_judged(world):
    made = rows(world / "pairs", ["images", "text"], batch_size=96)
    loader, shown = made.train_dataloader(), []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        (batch,) = loader
        order = batch["images"].flatten(1).double() @ torch.linspace(1, 2, 3072, dtype=torch.float64)
        shown.append(batch["token_ids"][order.argsort()])
    differ = (shown[0] != shown[1]).any(1).float().mean()
    assert 0.5 < differ < 1, "five captions, some of which are equal"
    told = storage.read(world / "pairs", "test")["captions"]
    batch = next(made.evaluation_batches("test"))
    assert made.tokenizer.decode(batch["token_ids"].numpy()) == [said[0] for said in told[:128]]


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("images", {"modalities": ["audio"]}, r"images has no audio: its columns are id, image, label, difficulty"),
        (
            "clips",
            {"modalities": ["video"], "label": "speed"},
            r"data.label is 'speed', but .*clips has the columns id, ",
        ),
    ],
)
def test_what_a_data_set_has_not_is_one_line(world, part, changes, message):
    with pytest.raises(ValueError, match=message):
        rows(world / part, **changes)


def test_a_captioned_crop_has_the_words_of_its_picture(tmp_path):
    made = captioned_crops(tmp_path / "crops")
    made.trainer = None
    (batch, *_) = made.evaluation_batches("train")
    assert batch["images"].shape == (8, 3, 16, 16) and batch["token_ids"].shape == (8, 6)
    stored = storage.read(tmp_path / "crops/prepared", "train")["captions"]
    ids, _ = made.tokenizer([said[0] for said in stored[:8]], 6)
    assert np.array_equal(batch["token_ids"].numpy(), ids)


def test_a_captioned_video_has_its_sound_if_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    made = captioned_videos(tmp_path / "videos")
    made.trainer = None
    (batch, *_) = made.evaluation_batches("train")
    assert batch["video"].shape == (8, 3, 3, 16, 16) and batch["audio"].shape == (8, made.samples) == (8, 1200)
    wave = batch["audio"][0].numpy()
    assert np.abs(np.fft.rfft(wave)).argmax() * 4000 / len(wave) == pytest.approx(440, abs=4)
    made.sample_rate = None
    assert "audio" not in next(iter(made.evaluation_batches("train")))


def test_pieces_of_t5_end_with_its_end_token_and_a_rehearsal_spells(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", unreachable)
    with pytest.raises(
        ConnectionError, match=r"tokenizer google-t5/t5-base could not be fetched.*`hf download google-t5"
    ):
        sentence_pieces.caption_tokenizer("google-t5/t5-base")
    monkeypatch.setattr(rehearsal, "current", rehearsal.Rehearsal(rows=1))
    tokenizer = sentence_pieces.caption_tokenizer("google-t5/t5-base")
    ids, mask = tokenizer(["ab", "a long one"], 4)
    assert ids[:, -1].tolist() == [0, 1] and mask.sum(1).tolist() == [3, 4] and len(tokenizer) == 32_100
    assert ids[0].tolist() == [3 + ord("a"), 3 + ord("b"), 1, 0]
    assert isinstance(sentence_pieces.caption_tokenizer("world"), TextTokenizer)
