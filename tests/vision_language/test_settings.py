"""What is written into the nested settings of these systems is held against their signatures, before torch sees it."""

import pytest

from lightning_modules import settings
from stages.composing import compose

MODELS = [
    ("vlora", "generator.rank", 0, "model: generator.rank is 0, expected greater than or equal to 1"),
    ("vlora", "generator.depth", 0, "model: generator.depth is 0"),
    ("vlora", "generator.skip", 0, "model: generator.skip is 0"),
    ("vlora", "generator.skip", 3, "generator.skip is 3, which does not divide the 2 layers"),
    ("vlora", "generator.alpha", -1.0, "model: generator.alpha is -1.0"),
    ("vlora", "generator.kinds", "qx", "generator.kinds is 'qx', expected some of qkvom"),
    ("vlora", "projector.inner", 0, "model: projector.inner is 0"),
    ("vlora", "queries.tokens", 0, "model: queries.tokens is 0"),
    ("vlora", "tower.fit", "crp", "model: tower.fit is 'crp', expected 'crop', 'pad' or 'squash'"),
    ("vlora", "tower.sizes.patch_size", 0, "model: tower.sizes.patch_size is 0"),
    ("vlora", "tower.sizes.patch_size", 5, r"tower.sizes.image_size \(32\) must be a multiple of .*patch_size \(5"),
    ("vlora", "tower.sizes.num_attention_heads", 3, r"tower.sizes.hidden_size \(64\) must be a multiple"),
    ("vlora", "language.layers", 0, "model: language.layers is 0"),
    ("mm_gem", "pool.grid", 0, "model: pool.grid is 0"),
    ("mm_gem", "pool.refine", "x", "model: pool.refine is 'x', expected 'none' or 'attention'"),
    ("mm_gem", "tower.layer", 9, "tower.layer is 9, but a tower of 3 blocks has -4 to 3"),
    ("caption_tower", "text.num_hidden_layers", 0, "model: text.num_hidden_layers is 0"),
    ("caption_tower", "text.num_attention_heads", 5, r"text.hidden_size \(64\) must be a multiple"),
    ("caption_language", "language.kv_heads", "2", "model: language.kv_heads is '2', expected a valid integer"),
]  # fmt: skip
DATA = [
    ("vlora", "form.question", "user :", "data.form.question is 'user :', expected a text with one {} where"),
    ("vlora", "form.sampled", "no", "data: form.sampled is 'no', expected a valid boolean"),
    ("vlora", "length", 0, "data: length is 0"),
    ("mm_gem", "padding", "up", "data: padding is 'up', expected 'left' or 'right'"),
]  # fmt: skip


def bound(system, block, name, value, **given):
    """The block of a system with one value changed, built as the stages do."""
    block = compose("tiny", system=system, overrides={f"{block}.{name}": value})["system"][block]
    return settings.bind(block, "conf/system/x/tiny.yaml: " + ("data" if given else "model"), **given)()


@pytest.mark.parametrize(("system", "name", "value", "message"), MODELS)
def test_a_nested_value_of_a_model_is_named_with_what_was_expected(system, name, value, message):
    with pytest.raises(ValueError, match=message.replace("model: ", r"model\.")) as raised:
        bound(system, "model", name, value)
    assert "\n" not in str(raised.value)


def test_an_unknown_nested_key_is_named():
    block = compose("tiny", system="vlora", overrides={})["system"]["model"]
    with pytest.raises(ValueError, match=r"model\.generator: rnk: unknown key"):
        settings.bind(block | {"generator": {"rnk": 2}}, "model")


@pytest.mark.parametrize(("system", "name", "value", "message"), DATA)
def test_a_nested_value_of_the_data_is_named_with_what_was_expected(tmp_path, system, name, value, message):
    with pytest.raises(ValueError, match=message.replace("data: ", r"data\.").replace("{}", r"\{\}")):
        bound(system, "data", name, value, folder=tmp_path, seed=0)


@pytest.mark.parametrize(("system", "length", "message"), [
    ("vlora", 1, "data.length is 1, but what stands before an answer takes 5 tokens"),
    ("vlora", 5, "data.length is 5, but what stands before an answer takes 5 tokens"),
    ("vlora", 65, "data.length is 65 behind 0 visual tokens, set it to 64 at most"),
    ("mm_gem", 1, "data.length is 1, but what stands before an answer takes 1 tokens"),
    ("mm_gem", 61, "data.length is 61 behind 4 visual tokens, set it to 60 at most"),
    ("caption_language", 65, "data.length is 65, set it to 64 at most"),
])  # fmt: skip
def test_a_length_without_an_answer_or_without_positions_is_refused(tmp_path, system, length, message):
    model = bound(system, "model", "language.hub", None)
    model.given = True
    with pytest.raises(ValueError, match=message):
        model.check_data(bound(system, "data", "length", length, folder=tmp_path, seed=0))
