"""Training and evaluation of the tokenizers: the annealed term, what is taken over, leaks, and curves by vocabulary."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules.datasets.video.drawn import encode
from lightning_modules.magvit2.tokenizer_evaluation import evaluate_tokenizer, evaluate_vocabulary
from lightning_modules.magvit2.vocabulary import VocabularyLadder
from lightning_modules.metrics.tokens import bits_per_pixel, perplexity
from lightning_modules.runs import Run
from lightning_modules.video_tokens.causal_training import CausalTraining
from lightning_modules.video_tokens.clips import Clips
from lightning_modules.video_tokens.predictor import Compressor, as_clip, pieces, timing, upright

SMALL = {"width": 2, "multipliers": (1, 1, 1), "blocks": 1, "norm_groups": 2}
CPU = torch.device("cpu")


def training(tokenizer: dict | None = None, **options) -> CausalTraining:
    torch.manual_seed(0)
    sizes = {"frames": 5, "size": 16, "codebook_size": 16, "halve_time": (False, True), **SMALL}
    return CausalTraining(
        tokenizer={**sizes, **(tokenizer or {})},
        discriminator={"width": 2, "multipliers": (1,), "blur": True}, num_classes=3, perception="random", **options,
    )  # fmt: skip


def ladder() -> VocabularyLadder:
    torch.manual_seed(0)
    kinds = {"signs": {}, "codes": {"quantisation": "vector", "embedding_dim": 3}}
    return VocabularyLadder(
        tokenizer={"size": 8, "halve_time": (False, False), **SMALL}, kinds=kinds, vocabularies=[4, 16]
    )


@pytest.mark.parametrize(("options", "lengths"), [({}, [1, 2, 2, 2]), ({"pooled_norm": True}, [5, 2])])
def test_a_video_of_any_length_is_compressed_as_a_whole_or_clip_by_clip(options, lengths, tmp_path):
    """Parts that go on from one another give what the whole video gives; 7 frames are filled up to 1 + 6."""
    encode(tmp_path / "clip.avi", 7, codec="ffv1", size=(46, 30))
    built = training(options)
    tokenizer, compressor = built.eval().tokenizer, Compressor(built)
    (answer,) = compressor.answer(tmp_path / "clip.avi")
    rate, packets = timing(tmp_path / "clip.avi")
    frames = np.stack(list(upright(tmp_path / "clip.avi", packets)))
    assert rate == answer["film"].rate == 10 and answer["film"].size == frames.shape[:3] == (7, 30, 46)
    assert [piece.shape[2] for piece in pieces(frames, tokenizer)] == lengths
    clips = [frames] if not options else [frames[:5], frames[[5, 6, 6]]]
    found = [as_clip(np.pad(clip, ((0, 0), (0, 2), (0, 2), (0, 0)), "edge")) for clip in clips]
    with torch.no_grad():
        tokens = torch.cat([tokenizer.encode(clip) for clip in found], 1)
    assert np.array_equal(answer["tokens"], tokens[0].numpy())
    np.save(tmp_path / "tokens.npy", answer["tokens"])
    (again,) = compressor.answer(tmp_path / "tokens.npy")
    assert np.array_equal(again["film"].frames[:7, :30, :46], answer["film"].frames)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_picture_is_a_video_of_one_frame(dims, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (18, 30, 3), np.uint8)).save(tmp_path / "picture.png")
    compressor = Compressor(training({"dims": dims}))
    (answer,) = compressor.answer(tmp_path / "picture.png")
    assert answer["tokens"].shape == (1, 5, 8) and answer["picture"].size == (30, 18)
    assert answer["bits_per_pixel"] == pytest.approx(40 * 4 / (18 * 30), abs=1e-6)
    np.save(tmp_path / "tokens.npy", answer["tokens"])
    (again,) = compressor.answer(tmp_path / "tokens.npy")
    assert again["picture"].size == (32, 20)


class Data(Clips):
    """Clips and images that are given, without files."""

    video_shape, image_shape, num_classes, copies, rows = (3, 5, 16, 16), (8, 8, 3), 3, None, {"test": None}

    def __init__(self, rows=4):
        draw = torch.Generator().manual_seed(1)
        self.count = rows
        self.clips = torch.randint(0, 256, (rows, 3, 5, 16, 16), generator=draw).to(torch.uint8)
        self.images = torch.randint(0, 256, (rows, 3, 8, 8), generator=draw).to(torch.uint8)

    def evaluation_batches(self, split):
        yield {"video": self.clips, "images": self.images, "labels": torch.arange(self.count) % 3}


class FakeRun(Run):
    """A run whose files are given."""

    facts = None

    def __init__(self, built: torch.nn.Module):
        arrays = {name: x.numpy() for name, x in built.predictions(Data(), CPU).items()}
        for name, value in (("seed", 0), ("facts", built.facts()), ("arrays", arrays)):
            object.__setattr__(self, name, value)

    def predictions(self):
        return self.arrays


def test_only_the_entropy_term_is_annealed_and_by_the_steps_that_are_done():
    batch, found = next(Data().evaluation_batches("test")), []
    for step in (0, 1000, 5000):
        built = training(entropy_start=3.0, entropy_steps=2000, r1=0.0)
        built._trainer = SimpleNamespace(global_step=step)
        found.append({name: term.item() for name, term in built.terms(batch).items()})
    last = found[2].pop("entropy")
    assert [terms.pop("entropy") for terms in found[:2]] == pytest.approx([3 * last, 2 * last])
    assert found[0] == found[1] == found[2] and {"commitment", "adversarial", "perceptual"} < found[0].keys()


def test_the_weight_and_the_kind_of_the_pixels_difference_are_settings():
    batch = next(Data().evaluation_batches("test"))
    one, five, absolute = (
        training(**options).terms(batch)["reconstruction"].item()
        for options in ({}, {"reconstruction": 5.0}, {"pixels": "absolute"})
    )
    assert five == pytest.approx(5 * one) and absolute > one


def test_a_video_tokenizer_takes_over_an_image_tokenizer_and_nothing_else_of_its_arm():
    flat, deep = training({"dims": 2}), training()
    discriminator = deep.discriminator.stem.weight.clone()
    deep.start_from(flat.export())
    assert torch.equal(deep.tokenizer.encoder.stem.weight[:, :, -1:], flat.tokenizer.encoder.stem.weight)
    assert deep.tokenizer.encoder.stem.weight[:, :, :-1].abs().max() == 0
    assert torch.equal(deep.discriminator.stem.weight, discriminator)


def test_leaks_are_counted_and_there_are_none_with_norms_of_single_frames():
    causal, pooled = (FakeRun(training(options)) for options in ({}, {"pooled_norm": True}))
    found, other = (evaluate_tokenizer([run], "here").metrics[0] for run in (causal, pooled))
    assert found["here/leaking_percent"] == found["here/leak"] == 0 < found["here/moved"]
    assert other["here/leaking_percent"] == 100 and other["here/leak"] > 0
    tokens = causal.arrays["tokens"]
    assert found["here/perplexity"] == pytest.approx(perplexity(tokens))
    assert found["here/bits_per_pixel"] == pytest.approx(48 * 4 / 1280)


def test_perplexity_and_bits():
    assert perplexity(np.arange(8)) == pytest.approx(8) and perplexity(np.zeros((3, 3), int)) == 1
    assert bits_per_pixel(1280, 2**18, 17 * 128 * 128) == pytest.approx(0.0827, abs=1e-4)  # the card's


def test_quantisers_learn_side_by_side_and_are_compared_by_vocabulary():
    built = ladder()
    batch = next(Data().evaluation_batches("test"))
    losses = built.losses(batch)
    assert list(losses) == ["signs-4", "signs-16", "codes-4", "codes-16"]
    losses["signs-4"].backward()
    others = [p.grad for name, each in built.tokenizers.items() if name != "signs-4" for p in each.parameters()]
    assert others and not [gradient for gradient in others if gradient is not None]
    assert built(batch["images"]).shape == (4, 4, 2, 2)
    run = FakeRun(built)
    found = evaluate_vocabulary([run], "here")
    metrics = found.metrics[0]
    assert metrics["here/signs/16/mse"] == pytest.approx(run.arrays["signs-16/mse"].mean())
    assert metrics["here/codes/gain_db"] == pytest.approx(metrics["here/codes/16/psnr"] - metrics["here/codes/4/psnr"])
    assert 0 < metrics["here/signs/4/used_percent"] <= 100
    assert [series.name for series in found.figures[0].series] == ["signs", "codes"]
    assert found.figures[0].series[0].x == [4, 16] and len(found.galleries[0].rows[0]) == 3
    built.check_data(Data())
    other = Data()
    other.image_shape = (8, 8, 1)
    with pytest.raises(ValueError, match=r"data\.fit_to brings grey images to three channels"):
        built.check_data(other)
    with pytest.raises(ValueError, match="there is no trained arm"):
        evaluate_vocabulary([], "here")
