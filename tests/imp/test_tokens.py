"""How modalities become tokens, and which of them are kept."""

import numpy as np
import pytest
import torch

from lightning_modules.imp.embeddings import Positions
from lightning_modules.imp.tokens import (
    drop_tokens,
    grid,
    log_mel,
    spectrogram_patches,
    still,
    text_tokens,
    tubelets,
    waveform_patches,
)


def clip(frames=16, side=256, batch=1):
    return torch.empty(batch, 3, frames, side, side, device="meta")


@pytest.mark.parametrize(("frames", "side", "count"), [(16, 256, 1024), (4, 256, 256), (16, 128, 256)])
def test_a_clip_has_as_many_tokens_as_the_paper_says(frames, side, count):
    tokens = tubelets(clip(frames, side), (4, 16, 16))
    assert tokens.content.shape == (1, count, 3072)
    assert tokens.coordinates.shape == (1, count, 3)


def test_a_spectrogram_and_a_wave_have_as_many_tokens_as_the_paper_says():
    assert spectrogram_patches(torch.empty(1, 128, 128), (16, 16)).content.shape == (1, 64, 256)
    assert waveform_patches(torch.empty(1, 131_072), 256).content.shape == (1, 512, 256)


def test_dropping_three_quarters_leaves_as_many_tokens_of_a_clip_as_a_picture_has():
    tokens = tubelets(torch.zeros(1, 3, 16, 256, 256, dtype=torch.uint8), (4, 16, 16))
    assert drop_tokens(tokens, 0.75, "sample").content.shape == (1, 256, 3072)


def test_pixels_of_a_tubelet_go_frame_by_frame_row_by_row():
    pixels = torch.arange(2 * 3 * 2 * 4 * 4).reshape(2, 3, 2, 4, 4)
    tokens = tubelets(pixels, (2, 2, 2))
    first = pixels[0, :, :, :2, :2].permute(1, 2, 3, 0).flatten()
    assert tokens.content[0, 0].tolist() == first.tolist()
    assert tokens.content[0, 1].tolist() == pixels[0, :, :, :2, 2:].permute(1, 2, 3, 0).flatten().tolist()


def test_a_picture_is_a_clip_of_equal_frames():
    image = torch.randn(1, 3, 4, 4)
    assert torch.equal(still(image, 4)[:, :, 3], image)


def test_coordinates_are_shares_of_each_axis():
    assert grid(2, 2).tolist() == [[0, 0], [0, 0.5], [0.5, 0], [0.5, 0.5]]


def test_positions_are_looked_up_by_share_so_that_resolutions_agree():
    positions = Positions([4, 8, 8], 6)
    coarse, fine = (positions.ids(grid(2, side, side)[None]) for side in (4, 8))
    assert coarse[0].unique().tolist() == [0, 2]
    assert coarse[1].unique().tolist() == [0, 2, 4, 6]
    assert fine[1].unique().tolist() == list(range(8))


def test_positions_of_a_kept_token_stay_its_own():
    tokens = tubelets(torch.arange(3 * 4 * 8 * 8).reshape(1, 3, 4, 8, 8), (4, 4, 4))
    kept = drop_tokens(tokens, 0.5, "sample")
    pairs = zip(tokens.content[0], tokens.coordinates[0], strict=True)
    places = {tuple(content.tolist()): place.tolist() for content, place in pairs}
    for content, place in zip(kept.content[0], kept.coordinates[0], strict=True):
        assert places[tuple(content.tolist())] == place.tolist()


@pytest.mark.parametrize(("way", "alike"), [("sample", False), ("batch", True)])
def test_each_sample_or_the_whole_batch_keeps_tokens(way, alike):
    torch.manual_seed(0)
    tokens = waveform_patches(torch.randn(4, 64), 1)
    kept = drop_tokens(tokens, 0.5, way).coordinates
    assert (kept == kept[:1]).all() == alike


def test_dropping_everything_is_refused():
    with pytest.raises(ValueError, match=r"a drop rate of 0\.9 leaves none of 4 tokens"):
        drop_tokens(waveform_patches(torch.zeros(1, 4), 1), 0.9, "sample")


def test_what_cannot_be_cut_evenly_is_refused():
    with pytest.raises(ValueError, match=r"clips of \(3, 8, 8\) .* cannot be cut into tubelets of \(4, 4, 4\)"):
        tubelets(torch.zeros(1, 3, 3, 8, 8), (4, 4, 4))
    with pytest.raises(ValueError, match=r"spectrograms of \(5, 8\)"):
        spectrogram_patches(torch.zeros(1, 5, 8), (4, 4))
    with pytest.raises(ValueError, match="waves of 10 samples"):
        waveform_patches(torch.zeros(1, 10), 4)


def test_a_text_longer_than_its_positions_is_refused():
    with pytest.raises(ValueError, match="a text of 5 tokens is longer than 4 positions"):
        Positions([4], 3)(None, 5)


def test_texts_keep_their_mask():
    there = torch.tensor([[True, True, False]])
    assert text_tokens(torch.tensor([[1, 5, 0]]), there).there.tolist() == [[True, True, False]]


def test_a_tone_is_heard_in_its_band_and_silence_is_the_floor():
    time = np.arange(4096) / 4096
    tone = torch.from_numpy(np.stack([np.sin(2 * np.pi * 500 * time), np.zeros(4096)])).float()
    bands = log_mel(tone, rate=4096, frame=256, step=256, bands=32, lowest=80.0, highest=2000.0)
    assert bands.shape == (2, 16, 32)
    low = log_mel(tone * 0 + torch.sin(torch.tensor(2 * np.pi * 200 * time)).float(), rate=4096, frame=256, step=256,
                  bands=32, lowest=80.0, highest=2000.0)  # fmt: skip
    assert bands[0].mean(0).argmax() > low[0].mean(0).argmax()
    torch.testing.assert_close(bands[1], torch.full_like(bands[1], float(np.log(1e-6))))


def test_log_mel_is_what_transformers_computes():
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    wave = np.random.default_rng(0).standard_normal(2048)
    filters = mel_filter_bank(
        num_frequency_bins=129, num_mel_filters=16, min_frequency=80, max_frequency=2000, sampling_rate=4096, norm=None,
        mel_scale="htk",
    )  # fmt: skip
    theirs = spectrogram(
        wave, window_function(256, "hann"), frame_length=256, hop_length=256, power=1.0, center=False,
        mel_filters=filters, mel_floor=0.0,
    )  # fmt: skip
    ours = log_mel(torch.from_numpy(wave)[None], rate=4096, frame=256, step=256, bands=16, lowest=80.0, highest=2000.0)
    np.testing.assert_allclose(ours[0].numpy(), np.log(theirs.T + 1e-6), rtol=1e-5)
