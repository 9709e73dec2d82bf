"""Sound and text of VideoPoet: the codec, the pitch that is heard, batches, and what answers about files."""

from base64 import b64decode
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from lightning_modules import rehearsal
from lightning_modules.datasets.video.drawn import encode
from lightning_modules.datasets.video.files import BrokenVideo
from lightning_modules.datasets.video.films import Film, Sound
from lightning_modules.datasets.video.hearing import read_sound
from lightning_modules.datasets.video.with_sound import write_tone
from lightning_modules.datasets.world import views
from lightning_modules.datasets.world.scenes import Stream
from lightning_modules.files import sha256
from lightning_modules.runs import Run
from lightning_modules.videopoet.audio import (
    Codec,
    EnCodec,
    Spectra,
    make_codec,
    signal_to_noise,
    stored_sound,
    waves,
)
from lightning_modules.videopoet.audio_training import AudioTraining, evaluate
from lightning_modules.videopoet.clips import SoundingClips, SoundingVideos
from lightning_modules.videopoet.pitch import disagreement, heights, pitches
from lightning_modules.videopoet.sounds import sounding
from lightning_modules.videopoet.text import T5Features, T5Tokenizer, Words, cutter, make_text
from stages.page.moving import silent, sound, still

CODEC = {"samples": 512, "rate": 4096, "levels": 3, "codes": 8, "strides": [8, 4], "width": 4, "dim": 8}
OPTIONS = {"image_size": 16, "frames": 9, "colors": 4, "shapes": 2}


def codec(**options) -> Codec:
    torch.manual_seed(0)
    return make_codec(**CODEC | options)


def columns() -> dict[str, torch.Tensor]:
    found = views.VIEWS["sounding"](**OPTIONS).columns(Stream(7, "sounding/train", 0))
    return {name: torch.from_numpy(found[name]) for name in ("audio", "height", "label")}


@pytest.fixture
def folder(tmp_path):
    sizes = {"train": 12, "test": 6}
    options = {name: value for name, value in OPTIONS.items() if name != "image_size"}
    views.prepare(tmp_path / "set", view="sounding", seed=0, sizes=sizes, image_size=16, options=options, workers=1)
    return tmp_path / "set"


def data(folder, **options) -> SoundingClips:
    splits = {name: {"source": name, "rows": None} for name in ("train", "test")}
    return SoundingClips(folder=folder, seed=3, splits=splits, evaluation_batch_size=4, **{"batch_size": 4} | options)


def test_each_level_codes_what_those_before_it_leave_over():
    """Residual vector quantisation: more levels come nearer to the latents; a code of a level is the nearest one."""
    quantiser = codec().quantiser
    with torch.no_grad():
        for number, level in enumerate(quantiser.levels):
            level.codebook.mul_(0.5**number)
    latents = torch.randn(2, 8, 40) * 0.2
    quantiser.place(latents)
    codes = quantiser.nearest(latents)
    with torch.no_grad():
        errors = [float((quantiser.embed(codes[..., :level]) - latents).square().mean()) for level in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]
    left = latents.transpose(1, 2) - quantiser.levels[0].codes[codes[..., 0]]
    assert torch.equal(codes[..., 1], torch.cdist(left, quantiser.levels[1].codes).argmin(-1))
    passed, same, terms = quantiser.train()(latents.requires_grad_())
    assert torch.equal(same, codes) and set(terms) == {"commitment", "codebook"}
    torch.testing.assert_close(passed, quantiser.embed(codes))
    passed.sum().backward()
    assert latents.grad.abs().min() > 0  # straight through


def test_waves_become_a_grid_of_codes_and_encoding_changes_nothing():
    net, wave = codec().train(), torch.randn(2, 512) * 0.1
    before = {name: x.clone() for name, x in net.state_dict().items()}
    codes = net.encode(wave)
    assert codes.shape == (2, net.frames, net.levels) == (2, 16, 3) and int(codes.max()) < net.codes
    assert net.decode(codes).shape == net.decode(codes[..., :1]).shape == (2, 512)
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    net(wave)  # training follows its latents
    assert any(not torch.equal(x, before[name]) for name, x in net.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": [8, 3]}, r"strides are \[8, 3\] and samples 512: expected even strides"),
        ({"samples": 500}, r"whose product \(32\) divides the samples"),
        ({"width": None}, r"hub None and strides, dim: give hub alone"),
        ({"hub": "facebook/encodec_24khz"}, r"hub 'facebook/encodec_24khz' and strides, width, dim"),
    ],
)
def test_codecs_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        codec(**options)


def test_a_published_codec_has_the_same_methods_and_no_weights_of_its_own(monkeypatch):
    monkeypatch.setattr(rehearsal, "current", rehearsal.Rehearsal(rows=1, narrow=16))
    shape = {"samples": 51000, "rate": 24000, "levels": 4, "codes": 1024}
    net = make_codec(**shape, hub="facebook/encodec_24khz")
    assert isinstance(net, EnCodec) and net.frames == 160 and not net.state_dict()
    codes = net.encode(torch.randn(1, 51000) * 0.1)
    assert codes.shape == (1, 160, 4)
    assert net.decode(codes).shape == net.decode(codes[..., :2]).shape == (1, 51000)
    with pytest.raises(ValueError, match="has 24000 samples a second, 1024 codes, 1 channels and at most"):
        make_codec(**shape | {"rate": 16000}, hub="facebook/encodec_24khz")


def test_the_heights_that_are_heard_are_those_of_the_clip_and_of_no_other():
    given = columns()
    wave, seen = waves(given["audio"]), given["height"]
    heard = heights(wave)
    assert float(disagreement(heard, seen).max()) < 0.01
    assert float(disagreement(heard.roll(1, 0), seen).mean()) > 0.15
    time = torch.arange(2048) / 4096
    tone = 0.3 * torch.sin(2 * torch.pi * 333.3 * time)[None]
    torch.testing.assert_close(pitches(tone)[:, 1:], torch.full((1, 3), 333.3), rtol=0, atol=0.5)
    silence = heights(torch.zeros(1, 1024))
    assert silence.isnan().all() and float(disagreement(silence, torch.zeros(1, 2))) == 1.0


def test_measures_of_waves():
    wave = torch.sin(torch.arange(512) / 3)[None]
    assert float(signal_to_noise(wave * 0.9, wave)) == pytest.approx(20, abs=1e-3)
    spectra = Spectra([64, 128])
    assert float(spectra.distance(wave, wave)) == 0
    assert float(spectra.distance(-wave, wave)) == pytest.approx(0, abs=1e-5)  # a spectrum knows no sign
    assert float(spectra.distance(0 * wave, wave)) > 0.01
    magnitudes = spectra(wave)[0]
    frequency = int(magnitudes.mean((0, 1)).argmax()) * 2 * np.pi / 64
    assert frequency == pytest.approx(1 / 3, abs=0.06)
    assert torch.equal(stored_sound(torch.tensor([[-2.0, 0.5, 2.0]])), torch.tensor([[-32768, 16384, 32767]]).short())


def test_the_codec_learns_without_quantisation_first_and_is_judged_by_level(folder, tmp_path):
    given = data(folder)
    torch.manual_seed(0)
    module = AudioTraining(
        codec=CODEC | {"samples": 4608, "strides": [16, 16]}, windows=[64, 256], spectral=5.0, free_steps=1
    )
    module.check_data(given)
    batch = next(iter(given.train_dataloader()))
    books = [level.codebook.clone() for level in module.codec.quantiser.levels]
    module.training_step(batch).backward()
    assert not any(level.codebook.grad.any() for level in module.codec.quantiser.levels)
    type(module).global_step = property(lambda _: 1)
    try:
        module.training_step(batch).backward()
    finally:
        del type(module).global_step
    assert all(level.codebook.grad.any() for level in module.codec.quantiser.levels)
    placed = zip(module.codec.quantiser.levels, books, strict=True)
    assert not any(torch.equal(level.codebook, book) for level, book in placed)
    found = module.predictions(given, torch.device("cpu"))
    assert found["codes"].shape == (6, 18, 3) and found["shown/real"].dtype == torch.int16
    assert float(found["pitch/real"].max()) < 0.01 < float(found["pitch/other"].mean())
    assert torch.equal(module(batch["audio"]), module.codec.encode(waves(batch["audio"])))
    (tmp_path / "predictions.safetensors").write_bytes(save({name: x.contiguous() for name, x in found.items()}))
    facts = module.facts() | {"predictions_sha256": sha256(tmp_path / "predictions.safetensors")}
    run = Run(tmp_path, seed=0)
    run.__dict__["facts"] = facts
    metrics = evaluate([run], "sounds").metrics[0]
    assert {"sounds/1/snr", "sounds/3/spectral", "sounds/level_2/perplexity", "sounds/pitch/drawn"} <= set(metrics)
    assert metrics["sounds/bits_per_second"] == pytest.approx(18 * 3 * 3 / 1.125)


def test_sound_of_another_length_is_refused(folder):
    module = AudioTraining(codec=CODEC, windows=[64])
    with pytest.raises(ValueError, match=r"4608 samples, 4096 a second, but model.codec is for 512, 4096"):
        module.check_data(data(folder))


def test_a_codec_of_our_own_is_trained_by_one_process():
    module = AudioTraining(codec=CODEC, windows=[64])
    module._trainer = SimpleNamespace(world_size=2)
    with pytest.raises(ValueError, match="the codec is trained by 2 processes, expected one"):
        module.on_fit_start()


def test_batches_have_clips_captions_and_sound_of_the_same_rows(folder):
    given = data(folder)
    batch = next(iter(given.train_dataloader()))
    assert batch["video"].shape == (4, 3, 9, 16, 16) and batch["video"].dtype == torch.uint8
    assert batch["audio"].shape == (4, given.samples) and batch["audio"].dtype == torch.int16
    assert (given.samples, given.sample_rate, given.words) == (4608, 4096, len(given.tokenizer))
    said = given.tokenizer.decode(batch["caption"].numpy())
    for words, label in zip(said, batch["labels"].tolist(), strict=True):
        assert words.split()[-1] == ("right", "left", "down", "up")[label]
    stored = given.sources["train"]["audio"][given.rows["train"][1]]
    np.testing.assert_array_equal(batch["audio"].numpy(), stored[batch["rows"].numpy()])
    assert torch.equal(batch["caption_mask"].sum(1), torch.full((4,), 7))
    judged = list(given.evaluation_batches("test"))
    assert [len(each["audio"]) for each in judged] == [4, 2] and judged[0]["height"].shape == (4, 9)


def of_files(folder, monkeypatch, files, captions, **options) -> SoundingVideos:
    """A data module of these files of a folder, with their captions."""
    monkeypatch.setattr("lightning_modules.videopoet.clips.T5Tokenizer", lambda _: spelling())
    index = {"file": files, "caption": captions}
    monkeypatch.setattr("lightning_modules.videopoet.clips.card", lambda _: {"name": "x", "videos": "", "cache": "."})
    monkeypatch.setattr("lightning_modules.videopoet.clips.read_index", lambda *_: index)
    monkeypatch.setattr("lightning_modules.videopoet.clips.find", lambda *_, **__: folder)
    sizes = {"frames": 17, "rate": 8.0, "size": 32, "sample_rate": 8000} | options.pop("sizes", {})
    given = SoundingVideos(
        folder=folder, seed=0, tokenizer="t5", text_length=16, evaluation_batch_size=4, max_broken=0.02, **sizes,
        **options,
    )  # fmt: skip
    given.__dict__["rows"] = {split: (split, np.arange(len(files))) for split in options["splits"]}
    return given


def of_new_files(folder, monkeypatch) -> SoundingVideos:
    """A data module that is trained on sixteen drawn videos."""
    if not folder.exists():
        folder.mkdir()
        for number in range(16):
            write_tone(folder / f"{number}.mp4", 12 + number, 300)
    files = np.array([f"{number}.mp4" for number in range(16)])
    captions = np.fromiter(([f"tone {name}", "a tone"] for name in files), object, len(files))
    splits = {"train": {"source": "train", "rows": None}}
    return of_files(folder, monkeypatch, files, captions, splits=splits, batch_size=8, sizes={"frames": 5})


def test_real_videos_have_their_own_sound_and_silent_ones_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "current", rehearsal.Rehearsal(rows=9))
    for number in range(3):
        write_tone(tmp_path / f"{number}.mp4", 40, 300 + 100 * number)
    encode(tmp_path / "silent.mp4", 40)
    write_tone(tmp_path / "short.mp4", 10, 300)
    files = np.array(["0.mp4", "1.mp4", "2.mp4", "silent.mp4", "short.mp4"])
    captions = np.fromiter(([f"tone {name}", "a tone"] for name in files), object, len(files))
    given = of_files(tmp_path, monkeypatch, files, captions, splits={"test": {"source": "test", "rows": None}})
    batches = list(given.evaluation_batches("test"))
    assert [len(batch["video"]) for batch in batches] == [3]
    assert batches[0]["video"].shape == (3, 3, 17, 32, 32) and batches[0]["audio"].shape == (3, given.samples)
    for number, wave in enumerate(batches[0]["audio"].numpy()):
        assert np.abs(np.fft.rfft(wave)).argmax() * 8000 / len(wave) == pytest.approx(300 + 100 * number, abs=2)
    with pytest.raises(BrokenVideo, match=r"silent.mp4 has no sound"):
        given.shown("test").read(3, None)
    with pytest.raises(BrokenVideo, match=r"short.mp4: it has 8 frames at 8 a second, and a clip 17"):
        given.shown("test").read(4, None)


def spelling() -> T5Tokenizer:
    found = T5Tokenizer.__new__(T5Tokenizer)
    found.published = None
    return found


def test_text_is_learnt_words_or_the_features_of_a_frozen_t5(monkeypatch):
    monkeypatch.setattr(rehearsal, "current", rehearsal.Rehearsal(rows=1, narrow=16))
    ids, mask = (torch.from_numpy(x) for x in spelling()(["ab", "a longer text"], 6))
    assert ids[0].tolist() == [3 + ord("a"), 3 + ord("b"), 1, 0, 0, 0] and int(ids[1, -1]) == 1
    assert mask.sum(1).tolist() == [3, 6]
    words, published = make_text(words=200, dim=5), make_text(hub="google/t5-v1_1-xl")
    assert isinstance(words, Words) and isinstance(published, T5Features) and not published.state_dict()
    for text in (words, published):
        found = text(ids, mask)
        assert found.shape == (2, 6, text.dim) and not found[~mask].any()
    assert len(cutter(words)) == 133
    other = ids.clone()
    other[0, 4] = 77  # behind the mask
    assert torch.equal(published(ids, mask), published(other, mask))
    with pytest.raises(ValueError, match="text has hub None, words 3 and dim None"):
        make_text(words=3)


def test_films_and_sounds_are_files_that_are_read_again(tmp_path):
    tone = (9000 * np.sin(np.arange(4608) * 2 * np.pi * 300 / 4096)).astype(np.int16)
    frames = np.zeros((9, 16, 15, 3), np.uint8)
    frames[:, :, 3:9, 0] = 250
    for name, made in (("a.wav", Sound(tone, 4096)), ("a.mp4", Film(frames, 8.0, Sound(tone, 4096)))):
        with (tmp_path / name).open("wb") as file:
            made.save(file)
        heard = read_sound(tmp_path / name, 0.0, 4608, 4096)
        assert np.corrcoef(heard[100:-200], tone[100:-200])[0, 1] > 0.98
    with (tmp_path / "b.mp4").open("wb") as file:
        Film(frames, 8.0).save(file)
    with pytest.raises(BrokenVideo, match=r"b.mp4 has no sound"):
        read_sound(tmp_path / "b.mp4", 0.0, 10, 4096)
    with pytest.raises(BrokenVideo, match=r"ends before the clip does: \d+ of 8192 samples"):
        read_sound(tmp_path / "a.wav", 0.5, 8192, 4096)
    with pytest.raises(BrokenVideo, match="cannot be decoded"):
        read_sound(tmp_path / "none.wav", 0.0, 10, 4096)


def test_the_page_finds_the_sound_in_a_picture_and_shows_it_without():
    clip, wave = np.zeros((3, 4, 4, 3), np.uint8), np.arange(100, dtype=np.int16)
    clip[1] = 200
    heard = sounding("a", clip, wave, 4096).picture
    plain = silent(heard.png)
    assert "with sound" in heard.alt and len(heard.png) > len(plain)
    assert sound(plain) is None and silent(plain) == plain
    assert b64decode(sound(heard.png)) == Sound(wave, 4096).wav()
    assert Image.open(BytesIO(b64decode(heard.png))).n_frames == 3
    assert Image.open(BytesIO(b64decode(plain))).n_frames == 3
    assert sound(still(plain)) is None
