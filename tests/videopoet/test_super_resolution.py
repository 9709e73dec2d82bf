"""VideoPoet's super-resolution in token space: windows along three axes, conditions that are damaged, and guidance."""

import math

import numpy as np
import pytest
import torch

from lightning_modules.datasets.video.drawn import encode
from lightning_modules.metrics.claims import load_facts
from lightning_modules.runs import Run
from lightning_modules.video_tokens.causal_tokenizer import CausalTokenizer
from lightning_modules.video_tokens.clips import ClipData
from lightning_modules.videopoet import upscaling_evaluation
from lightning_modules.videopoet.super_resolution import Layer, SuperResolution, halved, scores, together, windows
from lightning_modules.videopoet.upscaling import Enlarger, Upscaler, larger, replaced, smaller
from tests.conftest import ROOT

TOKENIZER = {"frames": 5, "size": 16, "width": 4, "multipliers": (1, 1, 1), "blocks": 1, "halve_time": (True, True),
             "codebook_size": 16, "norm_groups": 2}  # fmt: skip
NETWORK = {"bits": (1, 3), "windows": [[1, 4, 2], [1, 2, 4], [2, 2, 2]], "blocks": 1, "hidden_size": 16, "mlp_dim": 16,
           "heads": 2}  # fmt: skip
DECODING = {"steps": 3, "schedule": "cosine", "temperature": 4.5, "sampling_temperature": 1.0, "text": 1.0, "low": 1.0}
GRID = (2, 4, 4)
ORACLES = {oracle.name: oracle.__pydantic_extra__
           for oracle in load_facts(ROOT / "lightning_modules/videopoet/facts.yaml").oracles}  # fmt: skip
STAGES = {  # of the paper: grid of tokens, and windows
    "sr-stage-1": ((5, 56, 32), [[1, 56, 4], [1, 8, 32], [5, 8, 8]]),
    "sr-stage-2": ((5, 112, 64), [[1, 112, 2], [1, 4, 64], [5, 8, 8]]),
}


def module(**options):
    torch.manual_seed(0)
    given = {"tokenizer": TOKENIZER, "size": [16, 16], "text": {"words": 9, "dim": 6}, "network": NETWORK}
    built = Upscaler(**{**given, "decoding": DECODING, "judged_rows": 3, **options})
    with torch.no_grad():
        for parameter in built.network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return built


def batch(rows=4, size=16):
    draw = torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (rows, 3, 5, size, size), generator=draw).to(torch.uint8)
    caption = torch.randint(0, 9, (rows, 3), generator=draw)
    return {"video": video, "caption": caption, "caption_mask": torch.ones(rows, 3, dtype=torch.bool),
            "rows": torch.arange(rows)}  # fmt: skip


class Data:
    rows, num_classes, video_shape = {"test": None}, 0, (3, 5, 16, 16)

    def evaluation_batches(self, split):
        return iter([batch(), batch(2)])


@pytest.mark.parametrize("stage", STAGES)
def test_windows_of_the_paper_have_its_sizes_and_counts_and_save_what_was_computed(stage):
    grid, sizes = STAGES[stage]
    with torch.device("meta"):
        network = SuperResolution(grid=grid, bits=(9, 9), text_dim=8, windows=sizes, blocks=1, hidden_size=8,
                                  mlp_dim=8, heads=1)  # fmt: skip
        tokens = math.prod(grid)
        logits = network(
            torch.zeros(1, tokens, dtype=torch.long), torch.zeros(1, tokens // 4, dtype=torch.long),
            torch.zeros(1, 4, 8), torch.ones(1, 4, dtype=torch.bool),
        )  # fmt: skip
    assert [part.shape for part in logits] == [(1, tokens, 512)] * 2
    assert sum(part.shape[-1] for part in logits) == ORACLES["sr-heads"]["classes"] and network.codes == 262_144
    assert [math.prod(size) for size in sizes] == [224, 256, 320]
    assert ", ".join(str(tokens // math.prod(size)) for size in sizes) == ORACLES[stage]["counts"]
    assert scores(grid, [grid] * 3) / network.scores() == pytest.approx(ORACLES[stage]["scores_ratio"], rel=1e-12)
    assert tokens == {"sr-stage-1": 8960, "sr-stage-2": 35_840}[stage]


def test_windows_divide_a_grid_and_are_put_together_again():
    x = torch.arange(2 * 2 * 4 * 6.0).view(2, 2, 4, 6, 1)
    parts = windows(x, (1, 4, 3))
    assert parts.shape == (8, 12, 1)
    assert torch.equal(parts[1].view(4, 3), x[0, 0, :, 3:, 0]) and torch.equal(parts[2].view(4, 3), x[0, 1, :, :3, 0])
    assert torch.equal(together(parts, (1, 4, 3), (2, 4, 6)), x)


def layer(window):
    torch.manual_seed(0)
    draw = [torch.randn(1, 2, 4, 4, 8), torch.randn(1, 2, 2, 2, 8), torch.randn(1, 3, 8)]
    return Layer(8, 2, 16, window).eval(), draw, torch.ones(1, 3, dtype=torch.bool)


@pytest.mark.parametrize("window", [(1, 4, 2), (1, 2, 4), (2, 2, 2)])
def test_a_layer_looks_within_its_window_of_either_clip(window):
    built, (x, low, text), seen = layer(window)
    with torch.inference_mode():
        before = built(x, low, text, seen)
        x[0, 0, 0, 0, 0] += 1
        by_own = (built(x, low, text, seen) != before).any(-1)
        x[0, 0, 0, 0, 0] -= 1
        low[0, 0, 0, 0, 0] += 1
        by_low = (built(x, low, text, seen) != before).any(-1)
    inside = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    inside[:, : window[0], : window[1], : window[2]] = True
    assert torch.equal(by_own, inside) and torch.equal(by_low, inside)


def test_one_window_of_the_whole_clip_is_full_attention():
    built, (x, low, text), seen = layer((2, 4, 4))
    own, above, before_text, before_mlp = built.norms
    with torch.inference_mode():
        flat = x.flatten(1, 3)
        flat = flat + built.own(own(flat), own(flat))
        flat = flat + built.low(above(flat), low.flatten(1, 3))
        flat = flat + built.text(before_text(flat), text)
        flat = flat + built.mlp(before_mlp(flat))
        torch.testing.assert_close(built(x, low, text, seen).flatten(1, 3), flat)


def test_words_that_are_not_seen_change_nothing_and_those_seen_do():
    network = module().eval().network
    tokens, low, text = torch.zeros(1, 32, dtype=torch.long), torch.zeros(1, 8, dtype=torch.long), torch.randn(1, 3, 6)
    seen = torch.tensor([[True, True, False]])
    with torch.inference_mode():
        before = network(tokens, low, text, seen)[1]
        text[0, 2] += 1
        assert torch.equal(network(tokens, low, text, seen)[1], before)
        text[0, 1] += 1
        assert not torch.equal(network(tokens, low, text, seen)[1], before)
        without = [network(tokens, low, x, torch.zeros_like(seen))[1] for x in (text, -text)]
    assert torch.equal(*without)


def test_sub_tokens_are_groups_of_bits_the_least_significant_first():
    network, tokens = module().network, torch.arange(16)
    first, second = network.split(tokens)
    assert torch.equal(first, tokens & 1) and torch.equal(second, tokens >> 1)
    assert torch.equal(network.joined([first, second]), tokens)


def test_a_hidden_token_shows_nothing_and_the_small_clip_is_that_of_the_tokenizer():
    built, given = module().eval(), batch()
    high, told = built.tokens_of(given)
    video = given["video"] / 255
    assert torch.equal(high, built.tokenizer.encode(video).flatten(1))
    assert torch.equal(told["low"], built.tokenizer.encode(smaller(video)).flatten(1))
    assert high.shape == (4, 32) and told["low"].shape == (4, 8) and halved(GRID) == (2, 2, 2)
    with torch.inference_mode():
        hidden = torch.full_like(high, built.codes)
        each = [built.network(hidden, **told)[0] for _ in range(2)]
    assert torch.equal(*each)


def test_noise_replaces_at_most_its_share_and_none_of_it_without():
    built = module(noise=0.4)
    low = torch.full((400, 50), 3)
    torch.manual_seed(0)
    changed = (built.noised(low) != 3).float().mean(1)
    assert 0.15 < changed.mean() < 0.22  # half of 0.4, of which one in 16 draws is the code itself
    assert changed.max() < 0.65 and changed.min() == 0
    built.noise = 0.0
    assert torch.equal(built.noised(low), low)
    assert (replaced(low, 1.0, 16, None) != 3).float().mean() == pytest.approx(15 / 16, abs=0.02)


def loss_of(built, given, shift=0):
    """The loss with certain draws; the small clip's tokens may be others."""
    built.told = lambda low, each: Upscaler.told(built, (low + shift) % built.codes, each)
    torch.manual_seed(0)
    return built.loss(given).item()


def test_a_condition_that_is_always_dropped_decides_nothing():
    given = batch()
    other = {**given, "caption": (given["caption"] + 1) % 9}
    no_text, no_low = module(noise=0.0, text_drop=1.0), module(noise=0.0, low_drop=1.0)
    assert loss_of(no_text, other) == loss_of(no_text, given) != loss_of(no_text, given, shift=1)
    assert loss_of(no_low, given, shift=1) == loss_of(no_low, given) != loss_of(no_low, other)


def test_guidance_moves_away_from_less_that_is_told():
    built = module().eval()
    high, told = built.tokens_of(batch())
    hidden = torch.full_like(high, built.codes)
    with torch.inference_mode():
        both = built.network(hidden, **told)
        low = built.network(hidden, **told.without())
        none = built.network(hidden, **told.without(hidden=built.codes))
        plain, moved = built.guided(hidden, told, 1.0, 1.0), built.guided(hidden, told, 4.0, 1.5)
    for part in range(2):
        torch.testing.assert_close(plain[part], both[part])
        expected = none[part] + 1.5 * (low[part] - none[part]) + 4.0 * (both[part] - low[part])
        torch.testing.assert_close(moved[part], expected)
    assert not torch.equal(both[0], low[0]) and not torch.equal(low[0], none[0])


def test_decoding_is_fixed_by_its_seed_and_gives_codes():
    built = module().eval()
    _, told = built.tokens_of(batch())
    first, again, other = (built.generate(told, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (4, 32) and 0 <= first.min() and first.max() < 16
    sure = [built.generate(told, 0, steps=1, sampling_temperature=0.0) for _ in range(2)]
    assert torch.equal(*sure)


def test_small_clips_and_large_ones_are_drawn_at_the_large_size():
    built, stored = module().eval(), batch()["video"]
    with torch.inference_mode():
        large = built(stored)
        small = built(smaller(stored / 255) * 255)
    assert large.shape == (4, 3, 5, 16, 16) and torch.equal(large, small)
    assert larger(smaller(stored / 255)).shape == large.shape


def test_tokens_are_kept_and_larger_clips_are_cut_around_the_centre():
    built, given = module(keep_tokens=True).train(), batch(size=20)
    torch.manual_seed(0)
    first = built.loss(given).item()
    given["video"].zero_()  # the tokens are known
    torch.manual_seed(0)
    assert built.loss(given).item() == first
    video = batch(size=20)["video"]
    assert torch.equal(built.read(video), video[..., 2:18, 2:18] / 255)


def test_predictions_are_measured_and_shown():
    built = module(corrupted=0.5).eval()
    assert isinstance(Data(), ClipData)
    arrays = {name: x.numpy() for name, x in built.predictions(Data(), torch.device("cpu")).items()}
    assert len(arrays["true/nll"]) == 6 and len(arrays["true/mse"]) == 3
    assert arrays["shown/small"].shape == (3, 5, 8, 8, 3) and arrays["shown/true"].shape == (3, 5, 16, 16, 3)
    run = Run.__new__(Run)
    run.__dict__.update(seed=0, facts=built.facts(), predictions=lambda: arrays)
    found = upscaling_evaluation.evaluate([run], "toy", examples=2)
    metrics = found.metrics[0]
    assert metrics["toy/true/nll"] == pytest.approx(arrays["true/nll"].mean())
    assert metrics["toy/redrawn/right_percent"] == pytest.approx(100 * arrays["redrawn/right"].mean())
    assert metrics["toy/stretched/mse"] == pytest.approx(arrays["stretched/mse"].mean())
    assert (metrics["toy/scores"], metrics["toy/full_scores"]) == (32 * (8 + 8 + 8), 3 * 32**2)
    assert [len(row) for row in found.galleries[0].rows] == [5, 5]
    with pytest.raises(ValueError, match="no trained arm to evaluate"):
        upscaling_evaluation.evaluate([], "toy")


def test_the_surprise_of_guesses_is_that_of_all_codes():
    built = module().eval()
    for head in built.network.heads:
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    with torch.inference_mode():
        nll, right = built.predicted(*built.tokens_of(batch()))
    torch.testing.assert_close(nll, torch.full((4,), math.log(16)))
    assert right.max() < 0.6


def test_an_arm_begins_with_the_tokenizer_of_another():
    built = module()
    weights = {f"tokenizer.{name}": x + 1 for name, x in built.tokenizer.state_dict().items()}
    built.start_from({**weights, "codec.bias": torch.zeros(1)})
    assert all(torch.equal(x, weights[f"tokenizer.{name}"]) for name, x in built.tokenizer.state_dict().items())
    assert not any(p.requires_grad for p in built.tokenizer.parameters())
    with pytest.raises(ValueError, match="the tokenizer of the arm in `from`"):
        built.start_from({"tokenizer.other": torch.zeros(1)})


def test_a_video_file_is_drawn_large(tmp_path):
    encode(tmp_path / "mine.mp4", 8)
    small, large = Enlarger(module()).answer(tmp_path / "mine.mp4")
    assert small["video"].shape == (5, 8, 8, 3) and large["video"].shape == (5, 16, 16, 3)
    assert large["video"].dtype == np.uint8 and large["frames"].size == (80, 16)
    with pytest.raises(ValueError, match=r"none\.mp4"):
        list(Enlarger(module()).answer(tmp_path / "none.mp4"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"network": {**NETWORK, "windows": [[1, 3, 2]]}},
            r"network.windows has \[1, 3, 2\].*divide the grid \(2, 4, 4\)",
        ),
        ({"network": {**NETWORK, "windows": [[1, 4, 1]]}}, "even in height and width"),
        ({"network": {**NETWORK, "windows": [[4, 2]]}}, "numbers of tokens along time, height and width"),
        ({"network": {**NETWORK, "heads": 3}}, r"network.hidden_size \(16\) must be a multiple of network.heads \(3\)"),
        ({"network": {**NETWORK, "bits": [2, 3]}}, "network.bits make 32 tokens, but the tokenizer has 16"),
        (
            {"network": {**NETWORK, "windws": [[1, 4, 2]]}},
            "model.network: unknown key 'windws'; did you mean 'windows'",
        ),
        ({"network": {**NETWORK, "windows": []}}, "model.network.windows is"),
        ({"network": {**NETWORK, "blocks": 0}}, "model.network.blocks is 0"),
        ({"text": {"words": 5, "dim": 4, "word": 5}}, "model.text: unknown key 'word'"),
        ({"size": [16, 12]}, r"size is \[16, 12\], expected multiples of 8 pixels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        module(**options)


@pytest.mark.parametrize("shape", [(3, 9, 16, 16), (3, 5, 12, 16)])
def test_clips_that_do_not_fit_are_refused(shape):
    data = Data()
    data.video_shape = shape
    with pytest.raises(ValueError, match=r"expected 5 \(tokenizer.frames\) of at least 16 x 16 \(size\)"):
        module().check_data(data)


def test_tokens_of_the_papers_clips_are_as_many_as_it_says():
    with torch.device("meta"):
        options = {"frames": 17, "size": 128, "multipliers": (1, 1, 1, 1), "width": 8, "blocks": 1, "norm_groups": 1}
        tokenizer = CausalTokenizer(**options)
    for name in ("tokens-128", "tokens-224", "tokens-image", "tokens-long-128", "tokens-long-224", "tokens-448",
                 "tokens-896"):  # fmt: skip
        clip = ORACLES[name]
        shape = (1, 3, clip["frames"], clip["height"], clip["width"])
        tokenizer.check_shape(shape)
        t = 1 + (clip["frames"] - 1) // tokenizer.time
        assert t * clip["height"] // tokenizer.space * clip["width"] // tokenizer.space == clip["tokens"]
