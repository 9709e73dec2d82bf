"""What is written into the nested settings of tokenizers and generators is refused before anything is trained."""

import inspect

import pytest
import torch

from lightning_modules import settings
from lightning_modules.magvit.module import Magvit
from lightning_modules.magvit.tokenizer import Tokenizer
from lightning_modules.video_tokens.causal_tokenizer import CausalTokenizer
from lightning_modules.video_tokens.lookup_free import LookupFree
from lightning_modules.video_tokens.training import check_files
from stages.composing import compose

SMALL = {"width": 2, "multipliers": (1, 1), "blocks": 1, "norm_groups": 2, "codebook_size": 4, "frames": 5, "size": 4}
CASES = [
    ("magvit", "tokenizer.width", 0, "model.tokenizer.width is 0, expected greater than or equal to 1"),
    ("magvit", "tokenizer.multipliers", [], "model.tokenizer.multipliers is [], "),
    ("magvit", "tokenizer.padding", "reflct", "model.tokenizer.padding is 'reflct', expected 'zeros', 'reflect' or"),
    ("magvit", "tokenizer.codebook_size", "64", "model.tokenizer.codebook_size is '64', expected a valid integer"),
    ("magvit", "network.heads", 0, "model.network.heads is 0"),
    ("magvit", "network.dropout", 2.0, "model.network.dropout is 2.0"),
    ("magvit", "weights", [1.0, 2.0], "weights has 2 entries, expected 3: one for each of tasks"),
    ("magvit", "schedule", "cosin", "model.schedule is 'cosin', expected 'cosine', 'uniform'"),
    ("magvit", "decoding.steps", 0, "decoding.steps is 0, expected greater than or equal to 1"),
    ("magvit", "decoding.schedule", "lin", "decoding.schedule is 'lin', expected 'cosine', 'uniform'"),
    ("magvit", "decoding.temperature", -1.0, "decoding.temperature is -1.0, expected greater than or equal to 0"),
    ("magvit", "given_frames", 4, "given_frames is 4, which leaves none of 4 frames to make in the task fp: "),
    ("magvit_tokenizer", "discriminator.multipliers", [], "model.discriminator.multipliers is [], "),
    ("magvit_tokenizer", "discriminator.width", 0, "model.discriminator.width is 0"),
    ("magvit_tokenizer", "tokenizer.quantiser.temperature", 0.0, "tokenizer.quantiser.temperature is 0.0, expected gr"),
    ("magvit2_tokenizer", "tokenizer.quantisation", "lookupfree", "model.tokenizer.quantisation is 'lookupfree', "),
    ("magvit2_tokenizer", "tokenizer.quantiser.order", "litle", "tokenizer.quantiser.order is 'litle', expected 'litt"),
    ("magvit2_tokenizer", "tokenizer.quantiser.commitment", -1, "tokenizer.quantiser.commitment is -1"),
    ("magvit2", "network.bits", [], "model.network.bits is [], "),
    ("magvit2", "network.bits", [5, 0], "model.network.bits: 1 is 0, expected greater than or equal to 1"),
    ("magvit2_ar", "network.mlp_multiple", 0, "model.network.mlp_multiple is 0"),
    ("magvit2_actions", "reader.tokenizer.blocks", 0, "model.reader.tokenizer.blocks is 0"),
    ("magvit2_vocabulary", "kinds.codebook.quantiser.codebook", "1", "tokenizer.quantiser.codebook is '1', expected"),
    ("camvig", "tokenizer.norm_groups", 0, "model.tokenizer.norm_groups is 0"),
    ("camvig", "network.layers", 0, "model.network.layers is 0"),
    ("videopoet", "network.heads", "2", "model.network.heads is '2', expected a valid integer"),
    ("videopoet_sr", "network.blocks", 0, "model.network.blocks is 0"),
]  # fmt: skip
UNKNOWN = [
    ("magvit", "tokenizer", "widht", "model.tokenizer: unknown key 'widht'; did you mean 'width'?"),
    ("magvit", "network", "length", "model.network: unknown key 'length'"),
    ("magvit", "decoding", "step", "model.decoding: unknown key 'step'; did you mean 'steps'?"),
    ("magvit_tokenizer", "discriminator", "blurr", "model.discriminator: unknown key 'blurr'; did you mean 'blur'?"),
    ("magvit2_tokenizer", "published", "i3", "model.published: unknown key 'i3'; did you mean 'i3d'?"),
]


def built(system: str, change) -> torch.nn.Module:
    """The model of a system, with its settings changed, as the stages build it."""
    block = compose("tiny", system=system, overrides={})["system"]["model"]
    change(block)
    return settings.bind(block, "conf/system/x/tiny.yaml: model")()


@pytest.mark.parametrize(("key", "name", "value", "message"), CASES)
def test_a_value_that_is_no_choice_or_out_of_bounds_is_refused_in_one_line(key, name, value, message):
    def change(block):
        *path, last = name.split(".")
        for part in path:
            block = block.setdefault(part, {})
        block[last] = value

    with pytest.raises(ValueError) as raised:
        built(key, change)
    assert message in str(raised.value).replace("yaml: ", "") and "\n" not in str(raised.value)


@pytest.mark.parametrize(("key", "name", "word", "message"), UNKNOWN)
def test_an_unknown_word_is_refused_with_the_known_one_that_is_near(key, name, word, message):
    with pytest.raises(ValueError) as raised:
        built(key, lambda block: block.setdefault(name, {}).update({word: 1}))
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_setting_that_all_kinds_have_belongs_to_none_of_them():
    with pytest.raises(ValueError, match=r"model.kinds.codebook has 'width', which model.tokenizer gives to all kinds"):
        built("magvit2_vocabulary", lambda block: block["kinds"]["codebook"].update(width=4))


def test_a_network_that_is_not_there_is_missed_before_the_training(tmp_path):
    there = tmp_path / "i3d.pt"
    there.touch()
    check_files({"i3d": str(there), "c3d": None, "lpips": True})
    with pytest.raises(ValueError, match=r"model.published.i3d is '.*away.pt', where no file is: give one, or null"):
        check_files({"i3d": str(tmp_path / "away.pt")})


def begun(kind, *arguments, **options):
    """An object begun without the checks that only tests have."""
    inspect.unwrap(kind.__init__)(kind.__new__(kind), *arguments, **options)


def test_python_has_the_same_words():
    with pytest.raises(ValueError, match=r"quantisation \('lookupfree'\) must be one of lookup_free, vector"):
        begun(CausalTokenizer, quantisation="lookupfree", halve_time=(True,), **SMALL)
    with pytest.raises(ValueError, match=r"order \('litle'\) must be one of little, big"):
        begun(LookupFree, 4, 2, order="litle")
    with pytest.raises(ValueError, match=r"decoding: unknown key 'step'; did you mean 'steps'"):
        Magvit(
            tokenizer={**SMALL, "frames": 4, "halve_time": (True,), "embedding_dim": 4}, num_classes=0,
            network={"layers": 1, "hidden_size": 8, "mlp_dim": 8, "heads": 2}, tasks=["fp"], judged_tasks=["fp"],
        ).generate(torch.zeros(1, 3, 4, 4, 4), torch.zeros(1, dtype=torch.long), "fp", step=3)  # fmt: skip


@pytest.mark.parametrize("tokenizer", [
    Tokenizer(**{**SMALL, "frames": 4}, halve_time=(True,), embedding_dim=4),
    CausalTokenizer(**SMALL, halve_time=(True,)),
])  # fmt: skip
@pytest.mark.parametrize(("call", "given", "message"), [
    ("encode", torch.zeros(3, 5, 4, 4), r"video of shape \(3, 5, 4, 4\), expected \(batch, 3, frames, height, width\)"),
    ("encode", torch.zeros(1, 1, 5, 4, 4), r"video of shape \(1, 1, 5, 4, 4\), expected \(batch, 3, frames"),
    ("encode", torch.zeros(1, 3, 0, 4, 4), r"video of shape \(1, 3, 0, 4, 4\), expected .* none of them 0"),
    ("encode", torch.zeros(1, 3, 5, 4, 4, dtype=torch.uint8), r"video of torch.uint8, expected floats from 0 to 1"),
    ("encode", torch.full((1, 3, 5, 4, 4), 255.0), r"pixels from 255 to 255, expected 0 to 1: divide stored pixels by"),
    ("encode", torch.full((1, 3, 5, 4, 4), torch.nan), r"pixels from nan to nan, expected 0 to 1"),
    ("encode", torch.zeros(1, 3, 4, 4, 5), r"clips of shape \(1, 3, 4, 4, 5\) cannot become tokens"),
    ("decode", torch.zeros(1, 2, 2, 2), r"tokens of torch.float32, expected whole numbers"),
    ("decode", torch.zeros(2, 2, 2, dtype=torch.long), r"tokens of shape \(2, 2, 2\), expected \(batch, t, h, w\)"),
    ("decode", torch.zeros(1, 0, 2, 2, dtype=torch.long), r"tokens of shape \(1, 0, 2, 2\), expected .*, none of them"),
    ("decode", torch.full((1, 2, 2, 2), 4), r"tokens from 4 to 4, expected 0 to 3"),
    ("decode", torch.full((1, 2, 2, 2), -1), r"tokens from -1 to -1, expected 0 to 3"),
    ("decode", torch.zeros(1, 2, 2, 2, dtype=torch.bool), r"tokens of torch.bool, expected whole numbers"),
])  # fmt: skip
def test_what_is_no_clip_and_no_tokens_is_refused_in_one_line(tokenizer, call, given, message):
    with pytest.raises(ValueError, match=message) as raised:
        getattr(tokenizer, call)(given)
    assert "\n" not in str(raised.value)


def test_clips_and_tokens_of_other_sizes_are_taken():
    tokenizer = CausalTokenizer(**SMALL, halve_time=(True,)).eval()
    tokens = tokenizer.encode(torch.rand(2, 3, 3, 8, 4))
    assert tokens.shape == (2, 2, 4, 2) and tokenizer.decode(tokens.int()).shape == (2, 3, 3, 8, 4)
