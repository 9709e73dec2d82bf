"""Tokens as bits: nothing is lost, the length is what the probabilities say, and codecs beside it."""

import os

import numpy as np
import pytest
import torch

from lightning_modules.datasets.video.drawn import encode
from lightning_modules.magvit2.codecs import CODECS, tried
from lightning_modules.magvit2.compression import Asked, code_length, compress, decompress, run
from lightning_modules.magvit2.module import Magvit2, OpenMagvit2
from lightning_modules.magvit2.predictor import Continuer
from lightning_modules.video_tokens.clips import Clips
from tests.magvit2.test_generator import batch, module

CHANCES = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.97, 0.01, 0.01, 0.01]])


def coding(batch, tokens=2000):
    """Two steps of equally long halves, each with the same chances."""
    found = torch.empty(batch, tokens, dtype=torch.long)
    for step, chances in enumerate(CHANCES):
        places = torch.arange(tokens)[step::2]
        found[:, places] = yield Asked(0, places, chances.expand(batch, len(places), -1))
    return found


def test_a_code_is_as_long_as_the_probabilities_say():
    draw = torch.Generator().manual_seed(0)
    tokens = torch.stack([torch.multinomial(c, 1000, replacement=True, generator=draw) for c in CHANCES], 1).view(1, -1)
    expected = -CHANCES.log2().expand(1000, 2, 4).gather(2, tokens.view(1000, 2, 1)).sum()
    (bits,) = code_length(coding(1), [tokens])
    assert bits.item() == pytest.approx(expected.item(), rel=1e-6)
    words = compress(coding(1), [tokens])
    assert 0 <= 32 * len(words) - bits < 64
    assert torch.equal(decompress(coding(1), words), tokens)


def test_words_that_hold_more_than_a_clip_are_refused():
    with pytest.raises(ValueError, match=r"40 words hold more than one clip"):
        decompress(coding(1, 4), np.arange(1, 41, dtype=np.uint32))


@pytest.mark.parametrize("form", [Magvit2, OpenMagvit2])
def test_the_tokens_of_a_clip_come_back_exactly(form):
    built = module(form).eval()
    tokens = torch.randint(0, 16, (3, 48), generator=torch.Generator().manual_seed(2))
    for row in tokens:
        words = built.written(row[None])
        assert words.dtype == np.uint32 and torch.equal(built.read_again(words)[0], row)
    bits = code_length(built.coding(3), built.subtokens(tokens))
    written = torch.tensor([32.0 * len(built.written(row[None])) for row in tokens])
    assert ((written - bits >= 0) & (written - bits < 64)).all()


def test_every_token_is_written_once_and_in_as_many_steps_as_the_schedule_has():
    built = module().eval()
    assert built.known_after(12)[-1] == 48 and built.known_after(1) == [48]
    asked = []

    def answer(step):
        asked.append(step)
        return torch.zeros(1, len(step.places), dtype=torch.long)

    run(built.coding(1), answer)
    for part in (0, 1):
        places = torch.cat([step.places for step in asked if step.part == part])
        assert sorted(places.tolist()) == list(range(48))


def test_the_length_of_an_autoregressive_code_is_its_loss():
    built = module(OpenMagvit2, tasks=["unc"], label_smoothing=0.0).eval()
    tokens = torch.randint(0, 16, (3, 48), generator=torch.Generator().manual_seed(2))
    built.tokens_of = lambda batch, name: (tokens, None)
    bits = code_length(built.coding(3), built.subtokens(tokens)).mean() / 48
    assert bits.item() * np.log(2) == pytest.approx(built.loss({"labels": torch.zeros(3)}, "unc").item(), rel=1e-5)


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_gives_more_for_more_bits(codec):
    grey = np.random.default_rng(0).integers(0, 256, (16, 5, 8, 8, 1), dtype=np.uint8)
    clips = grey.repeat(4, 2).repeat(4, 3).repeat(3, 4)
    before = os.sched_getscheduler(0)
    found = tried(clips, codec)
    assert os.sched_getscheduler(0) == before, "the encoder's priority over all other programs stays with this thread"
    assert len(found["psnr"]) == len(CODECS[codec].qualities)
    assert found["bits_per_pixel"][0] > 1.5 * found["bits_per_pixel"][-1] > 0
    assert found["psnr"][0] > found["psnr"][-1] + 3 and found["ssim"][0] > found["ssim"][-1]
    assert all(np.array_equal(found[name], again) for name, again in tried(clips, codec).items())


def test_codecs_and_clips_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="codecs names 'vvc', expected one of hevc, av1"):
        tried(np.zeros((16, 5, 32, 32, 3), np.uint8), "vvc")
    with pytest.raises(ValueError, match="3 clips are too few for a picture of 4 x 4: judge at least 16"):
        tried(np.zeros((3, 5, 32, 32, 3), np.uint8), "hevc")


def test_a_video_becomes_a_file_of_bits_and_the_file_a_video(tmp_path):
    encode(tmp_path / "clip.mp4", 8)
    answerer = Continuer(module(tasks=["fp", "ipc"]))
    code, *others = answerer.answer(tmp_path / "clip.mp4")
    assert code["code"].dtype == np.uint32 and code["film"].size == (5, 16, 16)
    assert code["bits_per_pixel"] == pytest.approx(32 * len(code["code"]) / (5 * 16 * 16), abs=1e-6)
    assert [found["row"] for found in others] == ["fp", "ipc"]
    np.save(tmp_path / "code.npy", code["code"])
    (again,) = answerer.answer(tmp_path / "code.npy")
    assert np.array_equal(again["film"].frames, code["film"].frames)
    np.save(tmp_path / "wrong.npy", np.zeros((2, 4)))
    np.save(tmp_path / "empty.npy", code["code"][:0])
    with pytest.raises(ValueError, match=r"empty.npy holds uint32 of shape \(0,\), expected one row of uint32"):
        list(answerer.answer(tmp_path / "empty.npy"))
    np.save(tmp_path / "two.npy", np.tile(code["code"], 40))
    with pytest.raises(
        ValueError, match=r"two.npy cannot be read with this generator: its 360 words are no code that it wrote"
    ):
        list(answerer.answer(tmp_path / "two.npy"))
    with pytest.raises(ValueError, match=r"wrong.npy holds float64 of shape \(2, 4\), expected one row of uint32"):
        next(answerer.answer(tmp_path / "wrong.npy"))


def test_a_code_that_was_cut_off_or_changed_is_refused(tmp_path):
    encode(tmp_path / "clip.mp4", 8)
    answerer = Continuer(module(tasks=["fp"]))
    code = next(answerer.answer(tmp_path / "clip.mp4"))["code"]
    for words in (code[:-1], code[:2], np.zeros(3, np.uint32), code[1:], code ^ np.uint32(1)):
        np.save(tmp_path / "broken.npy", words)
        with pytest.raises(ValueError, match=rf"broken.npy cannot be read with .*: its {len(words)} words are no code"):
            list(answerer.answer(tmp_path / "broken.npy"))


class Data(Clips):
    """Clips that are given, without files."""

    video_shape, num_classes, rows = (3, 5, 16, 16), 3, {"test": None}

    def __init__(self, *batches):
        self.batches = batches

    def evaluation_batches(self, split):
        yield from self.batches


@pytest.mark.parametrize("form", [Magvit2, OpenMagvit2])
def test_what_is_predicted_says_what_it_takes_to_write_each_clip(form):
    built = module(form, tasks=["cg"], judged_tasks=["cg"], judged_rows=6).eval()
    found = built.predictions(Data(batch(), batch()), torch.device("cpu"))
    assert {x.shape[0] for name, x in found.items() if name.startswith("coded/")} == {6, 4}  # real codes of one batch
    assert found["coded/fixed"].tolist() == [48 * 4] * 6 and found["coded/again"].all()
    assert not any(name.startswith("codecs/") for name in found)  # six clips make no picture
    assert (found["coded/written"] - found["coded/bits"][:4]).abs().max() < 64
