"""The language model as a folder of transformers, whose tokenizer knows [EMB]."""

import pytest
import torch
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lightning_modules.mm_gem.exporting import EMB
from lightning_modules.mm_gem.module import MmGem
from lightning_modules.vision_language.words import TOKENS, language_tokenizer
from tests.mm_gem.test_module import LANGUAGE, TOWER

TEXTS = ["a large red circle", "blue"]
UNUSED = 5  # rows that no token has


def made(language, **losses):
    """An MM-GEM with weights that no initialisation has given it, so that every row counts."""
    torch.manual_seed(0)
    module = MmGem(
        language=language, tower=TOWER, pool={"grid": 2}, embedding_dim=8, train_tower=True,
        losses={"embedding": 1.0, "generation": 1.0} | losses, parts={"embedding": None, "generation": None},
    ).eval()  # fmt: skip
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


@pytest.fixture(params=["ours", "published", "published, tied"])
def language(request, tmp_path):
    """Arguments of a language model; published ones have rows that no token has."""
    if request.param == "ours":
        return LANGUAGE
    config = LlamaConfig(
        vocab_size=len(TOKENS) + UNUSED, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=40, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, tie_word_embeddings="tied" in request.param,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "published")
    language_tokenizer().save_pretrained(tmp_path / "published")
    return {"hub": str(tmp_path / "published")}


@pytest.fixture
def loaded(language, tmp_path):
    module = made(language)
    exported = module.to_transformers()
    exported.model.save_pretrained(tmp_path / "out")
    exported.tokenizer.save_pretrained(tmp_path / "out")
    return (
        module,
        AutoModelForCausalLM.from_pretrained(tmp_path / "out"),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    )


@torch.no_grad()
def test_the_hidden_state_at_emb_is_what_the_vector_is_made_of(loaded):
    module, model, tokenizer = loaded
    assert type(model) is LlamaForCausalLM and tokenizer.convert_ids_to_tokens(len(TOKENS)) == EMB
    for text, vector in zip(TEXTS, module.embed_texts(TEXTS), strict=True):
        token_ids = tokenizer(text + EMB, return_tensors="pt")["input_ids"]
        assert token_ids[0].tolist() == [1, *module.network.language.encode(text), len(TOKENS)]
        states = model(token_ids, output_hidden_states=True).hidden_states[-1][:, -1]
        found = normalize(module.network.text_to_vector(states), dim=-1)[0]
        torch.testing.assert_close(found, vector, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_each_token_is_as_likely_as_before(loaded):
    module, model, tokenizer = loaded
    token_ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    expected = module.network.language(token_ids).softmax(2)
    found = model(token_ids).logits.softmax(2)
    torch.testing.assert_close(found[..., : len(TOKENS)], expected[..., : len(TOKENS)], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[..., len(TOKENS)], expected[..., module.network.embed_id], rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_emb_is_not_written(loaded):
    _, model, tokenizer = loaded
    given = tokenizer("a", return_tensors="pt")
    first = model(**given).logits[0, -1]
    model.get_output_embeddings().weight[len(TOKENS)] = 100 * model.model(**given).last_hidden_state[0, -1]
    assert model(**given).logits[0, -1].argmax() == len(TOKENS)
    written = model.generate(**given, max_new_tokens=1, do_sample=False)[0, -1]
    if not model.config.tie_word_embeddings:
        first[len(TOKENS)] = -torch.inf
        assert written == first.argmax()
    assert written != len(TOKENS)


def test_the_module_stays_as_it_is():
    module = made(LANGUAGE)
    before = {name: x.clone() for name, x in module.state_dict().items()}
    exported = module.to_transformers()
    torch.nn.init.zeros_(exported.model.get_input_embeddings().weight)
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())
    assert EMB not in module.network.language.tokenizer.get_vocab()


def test_an_arm_that_does_not_embed_shows_how_to_write():
    assert EMB in made(LANGUAGE, generation=0.0).to_transformers().usage
    assert made(LANGUAGE, embedding=0.0).to_transformers().usage == "logits = model(token_ids).logits"


def test_another_token_of_this_name_is_refused():
    module = made(LANGUAGE)
    module.network.language.tokenizer.add_tokens([EMB])
    with pytest.raises(ValueError, match=r"its tokenizer has a token \[EMB\] already"):
        module.to_transformers()
