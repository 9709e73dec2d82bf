"""The language model: a folder of `transformers` is loaded as it is, and the small one exports its embeddings once."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lightning_modules.layers.published import load_strictly
from lightning_modules.spae import lexicon
from lightning_modules.spae.language import make_language
from lightning_modules.spae.words import WordTable

OWN = {
    "hidden_size": 16,
    "layers": ["convolution", "attention"],
    "heads": 2,
    "mlp_dim": 16,
    "kernel": 3,
    "positions": 64,
}
PIECES = ["<s>", "<unk>", "Ġlion", "Ġvase", "lion", "Ġ7", "ing", "Ġa", "Ċ", "Ġ,", "ĠLion", "Ġdog2", "Ġcat"]


def own(**changes):
    torch.manual_seed(0)
    return make_language(**OWN | changes).eval()


def folder(path, kind, **tokenizer):
    """A tiny model of `transformers` with a tokenizer of its own, saved in the format of the hub."""
    torch.manual_seed(0)
    backend = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(PIECES)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", **tokenizer).save_pretrained(
        path
    )
    if kind == "gpt2":
        config = GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=2, n_positions=32)
        model = GPT2LMHeadModel(config)
    else:
        config = LlamaConfig(
            vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=32, tie_word_embeddings=kind == "tied",
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    model.save_pretrained(path)
    return model.eval()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "tied"])
def test_a_folder_is_loaded_with_its_tokenizer_and_says_the_same(kind, tmp_path):
    expected = folder(tmp_path, kind)
    language = make_language(hub=str(tmp_path))
    ids = torch.tensor([[2, 3, 10, 12]])
    assert torch.equal(language(ids), expected(input_ids=ids).logits)
    assert torch.equal(language.embeddings, expected.get_input_embeddings().weight)
    assert (language.dim, language.positions) == (8, 32)
    assert language.tied == (kind != "llama")


def test_the_table_of_a_folder_has_whole_words_only_each_once(tmp_path):
    expected = folder(tmp_path, "llama").get_input_embeddings().weight
    language = make_language(hub=str(tmp_path))
    ids, words = language.whole_words()
    assert (ids.tolist(), words) == ([2, 3, 12], ["lion", "vase", "cat"])
    assert language.vocabulary[10] == "Lion" and len(language.vocabulary) == 16
    table = WordTable(words=words, ids=ids.tolist(), dim=language.dim, scaling="none")
    table.fill(language.embeddings)
    torch.testing.assert_close(table.embeddings, expected[[2, 3, 12]])


def test_the_own_model_knows_the_words_of_the_captions_and_words_that_fit_no_picture():
    language = own()
    _, words = language.whole_words()
    assert {"red", "circle", "meadow", "walnut"} <= set(words)
    assert not set(words) & {"input:", "output:", "[pad]", ",", "a", "."}
    assert set(lexicon.HELD_OUT) <= set(words) and len(lexicon.HELD_OUT) == 32
    assert len(lexicon.TOKENS) == len(set(lexicon.TOKENS)) == len(language.embeddings)
    assert not set(lexicon.DISTRACTORS) & set(lexicon.text.vocabulary())


def test_a_sentence_becomes_the_places_of_its_words():
    ids = lexicon.language_tokenizer().encode("A red circle, at the middle left")
    assert ids == [lexicon.TOKENS.index(word) for word in "a red circle , at the middle left".split()]


def test_the_own_model_exports_its_embeddings_once_and_loads_what_it_exported():
    first, second = own(), own()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1.0)
    state = {name: x.clone() for name, x in first.state_dict().items()}
    assert sum(x.shape == first.embeddings.shape for x in state.values()) == 1
    load_strictly(second, state, "the language model")
    ids = torch.arange(10)[None]
    assert torch.equal(first(ids), second(ids))


def test_decoding_with_a_cache_gives_what_a_whole_pass_gives():
    language = own(layers=["convolution", "attention", "convolution"])
    ids = torch.randint(5, 100, (2, 12), generator=torch.Generator().manual_seed(0))
    step = language.cached()
    found = [step(ids[:, :7]), *(step(ids[:, place : place + 1]) for place in range(7, 12))]
    torch.testing.assert_close(torch.stack(found, 1), language(ids, keep=6), rtol=1e-4, atol=1e-5)


def test_a_word_sees_only_what_stands_before_it():
    language = own()
    ids = torch.arange(5, 25)[None]
    changed = ids.clone()
    changed[0, 12:] = 100
    torch.testing.assert_close(language(ids)[:, :12], language(changed)[:, :12])


def test_a_prompt_longer_than_the_positions_is_refused():
    with pytest.raises(ValueError, match="80 tokens are longer than the 64 positions"):
        own()(torch.ones(1, 80, dtype=torch.long))
    step = own().cached()
    step(torch.ones(1, 64, dtype=torch.long))
    with pytest.raises(ValueError, match="65 tokens"):
        step(torch.ones(1, 1, dtype=torch.long))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**OWN, "heads": None}, "language.heads must say how large"),
        ({"hub": "some/model", "heads": 2}, "has its own sizes; set heads to null"),
        ({**OWN, "heads": 3}, r"hidden_size \(16\) must be an even multiple of language.heads \(3\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_language(**settings)


def test_a_name_that_the_hub_does_not_have_ends_in_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read once, at the import
    with pytest.raises(ConnectionError, match="nobody/no-such-model") as caught:
        make_language(hub="nobody/no-such-model")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_with_more_words_than_the_model_is_refused(tmp_path):
    folder(tmp_path, "llama", additional_special_tokens=[f"<{number}>" for number in range(8)])
    with pytest.raises(ValueError, match="21 ids, but the language model has 16 embeddings"):
        make_language(hub=str(tmp_path))


def test_the_published_model_is_an_architecture_without_its_files():
    with torch.device("meta"):
        language = make_language(hub="Qwen/Qwen2.5-1.5B")
    assert sum(p.numel() for p in language.parameters()) == 1_543_714_304  # 1.54 billion, as its page says
