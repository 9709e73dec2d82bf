"""On small files in the official forms, and on recordings of the published set where a copy of them is at hand."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from lightning_modules import settings
from lightning_modules.datasets import sounds, storage, tables
from lightning_modules.datasets.download import MIRROR_VARIABLE, DataUnavailable
from lightning_modules.datasets.video.files import BrokenVideo
from lightning_modules.imp.sound_files import SoundFiles
from stages.composing import compose
from tests.pipeline import ROOT

REAL = ROOT.parent / "shared/realdata"
SPLITS = {"train": {"source": "train", "rows": None}, "test": {"source": "test", "rows": None}}


def tone(path, hertz, rate=8000, seconds=1.0):
    time = np.arange(round(rate * seconds)) / rate
    return sounds.write_wave(path, np.rint(9000 * np.sin(2 * np.pi * hertz * time)).astype(np.int16), rate)


def heard(wave, rate):
    """The loudest frequency."""
    return np.abs(np.fft.rfft(wave)).argmax() * rate / len(wave)


def prepare(folder, copy, form, splits, num_classes, **changes):
    config = {"name": form, "form": form, "splits": splits, "sounds": "audio", "num_classes": num_classes,
              "mirror": str(copy), "cache": "none"}  # fmt: skip
    sounds.prepare(folder, **config | changes)


def data(folder, copy, **changes):
    options = {"splits": SPLITS, "sample_rate": 8000, "seconds": 0.5, "batch_size": 4, "evaluation_batch_size": 8,
               "mirror": str(copy), "max_broken": 0.0}  # fmt: skip
    made = SoundFiles(folder=folder, seed=1, **options | changes)
    made.trainer = None
    return made


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """Three takes of each digit by two speakers: the pitch says the digit."""
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    for digit in range(10):
        for speaker in ("ann", "bo_b"):
            for take in range(3):
                tone(tmp_path / f"copy/audio/{digit}_{speaker}_{take}.wav", 300 + 100 * digit, seconds=0.3 + 0.2 * take)
    prepare(tmp_path / "new", tmp_path / "copy", "fsdd", {"train": {"takes": [1, 2]}, "test": {"takes": [0, 0]}}, 10)
    return tmp_path


def test_takes_are_splits_and_names_say_the_digit(digits):
    card = storage.card(digits / "new")
    assert card["splits"] == {"train": 40, "test": 20} and card["classes"][3] == "three" and card["codec"] == "none"
    rows = tables.read(digits / "new", "test")
    assert rows["file"][:3].tolist() == ["0_ann_0.wav", "0_bo_b_0.wav", "1_ann_0.wav"]
    assert [labels[0] for labels in rows["labels"]] == [int(name[0]) for name in rows["file"]]


def test_what_is_heard_is_what_the_label_says_and_short_sounds_end_in_silence(digits):
    made = data(digits / "new", digits / "copy", seconds=0.5)
    for batch in [*made.train_dataloader(), *made.evaluation_batches("test")]:
        assert batch["audio"].dtype == torch.int16 and batch["audio"].shape[1] == made.samples == 4000
        for wave, label in zip(batch["audio"].numpy(), batch["labels"].tolist(), strict=True):
            assert heard(wave[:2000], 8000) == pytest.approx(300 + 100 * label, abs=5)
    test = torch.cat([batch["audio"] for batch in made.evaluation_batches("test")])
    assert not test[:, 2500:].any() and test[:, 2000:2400].any(), "0.3 seconds of 0.5"


def test_several_clips_lie_evenly_over_a_sound_and_other_rates_are_resampled(digits):
    made = data(digits / "new", digits / "copy", sample_rate=4000, seconds=0.1, clips=3)
    batch = next(made.evaluation_batches("test"))
    assert batch["audio"].shape == (8, 3, 400)
    whole = sounds.read_whole(digits / "copy/audio/0_ann_0.wav", 4000)
    assert len(whole) == pytest.approx(1200, abs=2)
    places = [0, round((len(whole) - 400) / 2), len(whole) - 400]
    for clip, start in zip(batch["audio"][0].numpy(), places, strict=True):
        assert np.array_equal(clip, whole[start : start + 400])


def test_broken_sounds_are_left_out_counted_and_bounded(digits):
    (digits / "copy/audio/5_ann_0.wav").write_bytes(b"no sound at all")
    made = data(digits / "new", digits / "copy", max_broken=0.02)
    batches = list(made.evaluation_batches("test"))
    assert sum(int(batch["broken"]) for batch in batches) == 1
    assert sum(len(batch["audio"]) for batch in batches) == 19
    with pytest.raises(ValueError, match=r"1 of 11 sounds are broken, more than max_broken \(0.0\) allows"):
        list(data(digits / "new", digits / "copy").evaluation_batches("test"))
    with pytest.raises(BrokenVideo, match=r"no\.wav cannot be decoded"):
        sounds.read_whole(digits / "no.wav", 8000)


def test_folds_are_splits_and_the_table_names_the_classes(tmp_path, monkeypatch):
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    (tmp_path / "meta").mkdir()
    rows = [(f"{fold}-{n}-A-{target}.wav", fold, target, ("dog", "sea_waves")[target]) for fold in (1, 2, 5)
            for n, target in ((7, 0), (8, 1))]  # fmt: skip
    with (tmp_path / "meta/esc50.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "fold", "target", "category", "esc10", "src_file", "take"])
        writer.writerows([*row, "False", 1, "A"] for row in rows)
    for name, *_ in rows:
        tone(tmp_path / "audio" / name, 500, 44100, 0.1)
    chosen = {"train": {"folds": [1, 2]}, "test": {"folds": [5]}}
    prepare(tmp_path / "new", tmp_path, "esc50", chosen, 2)
    assert storage.card(tmp_path / "new")["classes"] == ["dog", "sea waves"]
    assert tables.read(tmp_path / "new", "train")["file"].tolist() == [name for name, fold, *_ in rows if fold < 5]
    with pytest.raises(ValueError, match=r"esc50 has 2 classes, expected num_classes \(50\)"):
        prepare(tmp_path / "other", tmp_path, "esc50", chosen, 50)
    with pytest.raises(ValueError, match=r"splits.train has \['takes'\], expected folds: the form is 'esc50'"):
        prepare(tmp_path / "other", tmp_path, "esc50", {"train": {"takes": [1, 2]}}, 2)
    (tmp_path / "audio" / rows[0][0]).unlink()
    with pytest.raises(ValueError, match=r"1 of 4 sounds of split 'train' are missing in .*1-7-A-0.wav first"):
        prepare(tmp_path / "other", tmp_path, "esc50", chosen, 2)


def test_segments_have_several_classes_and_copies_name_their_sounds_in_several_ways(tmp_path, monkeypatch):
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    (tmp_path / sounds.CLASSES).write_text('index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/t/dd00,"Hum, loud"\n')
    lines = ["# Segments csv created Sun Mar  5 10:54:31 2017", "# num_ytids=4", "# YTID, start_seconds, ..."]
    lines += [f'{video}, 30.000, 40.000, "{mids}"' for video, mids in
              (("--PJHxphWEs", "/m/09x0r,/t/dd00"), ("_a_b_c_d_e_", "/t/dd00"), ("abcdefghijk", "/m/09x0r"),
               ("vanished_id", "/m/09x0r"))]  # fmt: skip
    (tmp_path / "eval_segments.csv").write_text("\n".join(lines) + "\n")
    for name in ("--PJHxphWEs_30000.wav", "_a_b_c_d_e_.wav", "Yabcdefghijk.wav"):
        tone(tmp_path / "audio" / name, 440)
    chosen = {"test": {"annotations": "eval_segments.csv"}}
    prepare(tmp_path / "new", tmp_path, "audioset", chosen, 2, max_missing=0.3)
    rows = tables.read(tmp_path / "new", "test")
    assert rows["file"].tolist() == ["--PJHxphWEs_30000.wav", "_a_b_c_d_e_.wav", "Yabcdefghijk.wav"]
    assert storage.card(tmp_path / "new")["classes"] == ["Speech", "Hum, loud"]
    batch = next(data(tmp_path / "new", tmp_path, splits={"test": SPLITS["test"]}).evaluation_batches("test"))
    assert batch["labels"].tolist() == [[1, 1], [0, 1], [1, 0]]
    with pytest.raises(ValueError, match=r"1 of 4 sounds of split 'test' are missing in .*, vanished_id_30000 first"):
        prepare(tmp_path / "other", tmp_path, "audioset", chosen, 2)
    (tmp_path / "eval_segments.csv").write_text('abcdefghijk, 0.000, 10.000, "/m/none"\n')
    with pytest.raises(ValueError, match=f"has the class '/m/none' of abcdefghijk, which {sounds.CLASSES} has not"):
        prepare(tmp_path / "other", tmp_path, "audioset", chosen, 2)


def test_without_a_copy_the_message_says_where_to_put_one(tmp_path, monkeypatch):
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    with pytest.raises(DataUnavailable, match=f"fsdd: recordings could not be had(.|\n)*{MIRROR_VARIABLE}=<mirror>"):
        settings.bind(compose("paper", dataset="fsdd")["dataset"] | {"cache": "none"}, "conf")(tmp_path / "new")


@pytest.mark.skipif(not (REAL / "fsdd/recordings").is_dir(), reason="needs recordings of the published set")
def test_published_recordings_of_spoken_digits_are_read_and_their_digits_sound_different(tmp_path, monkeypatch):
    """Takes 0 to 4 of six speakers. The nearest log-mel spectrogram is mostly of the same digit."""
    monkeypatch.setenv(MIRROR_VARIABLE, str(REAL))
    config = compose("paper", dataset="fsdd")["dataset"]
    config |= {"splits": {"train": {"takes": [1, 4]}, "test": {"takes": [0, 0]}}, "cache": str(tmp_path / "none")}
    settings.bind(config, "conf")(tmp_path / "new")
    assert storage.card(tmp_path / "new")["splits"] == {"train": 240, "test": 60}
    made = data(tmp_path / "new", Path("elsewhere"), seconds=0.8, evaluation_batch_size=60, vary=False, batch_size=60)
    filters = mel_filter_bank(129, 24, 80.0, 3900.0, 8000)
    window = window_function(256, "hann")

    def features(batch):
        waves = batch["audio"].numpy() / np.abs(batch["audio"].numpy()).max(1, keepdims=True)
        how = {"mel_filters": filters, "mel_floor": 0.1, "log_mel": "log"}
        return np.stack([spectrogram(wave, window, 256, 128, **how) for wave in waves]).reshape(len(waves), -1)

    train, (test,) = list(made.train_dataloader()), made.evaluation_batches("test")
    known, labels = np.concatenate([features(b) for b in train]), torch.cat([b["labels"] for b in train])
    nearest = ((features(test)[:, None] - known) ** 2).sum(-1).argmin(1)
    assert (labels[nearest] == test["labels"]).float().mean() > 0.6, "a tenth by chance"
