"""Published language models, whatever their files hold, can be trained; what is none is refused in a line."""

import json

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import DataLoader
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from lightning_modules.vision_language.causal import make_causal
from lightning_modules.vision_language.words import TOKENS, language_tokenizer


def folder(path, dtype=torch.float32):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=40, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(dtype).save_pretrained(path)
    language_tokenizer().save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_trained_in_float32_whatever_is_stored(dtype, tmp_path):
    language = make_causal(hub=folder(tmp_path, dtype))
    assert {x.dtype for x in language.parameters()} == {torch.float32}
    optimizer = torch.optim.AdamW(language.parameters(), lr=1e-3)
    ids = torch.arange(8)[None]
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = language(ids).float().logsumexp(2).mean()
        loss.backward()
        optimizer.step()
    assert all(torch.isfinite(x).all() for x in language.parameters())


class Training(LightningModule):
    def __init__(self, hub):
        super().__init__()
        self.language = make_causal(hub=hub)
        self.language.whole.activation_checkpointing_enable({"use_reentrant": False})

    def training_step(self, batch, batch_idx):
        return self.language(batch).logsumexp(2).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*many workers")
def test_blocks_of_a_published_model_are_computed_again_in_the_backward_pass(tmp_path):
    module, calls = Training(folder(tmp_path)), []
    module.language.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(True))
    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.arange(8)[None, None], batch_size=None))
    assert len(calls) == 2


def byte_pairs(texts):
    """A tokenizer of pieces of bytes, as GPT-2's and Qwen's are, with a piece for each word of some texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(texts, trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_words_of_bytes_are_spelt_as_they_are_read(tmp_path):
    tokenizer = byte_pairs([" lion déjà año ½½ x²y don't 水水 lion7 \u0301a"] * 3)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    language = make_causal(hub=str(tmp_path))
    ids, words = language.whole_words()
    assert {"lion", "déjà", "año", "水水"} <= set(words)
    for token_id, word in zip(ids.tolist(), words, strict=True):
        assert word.isalpha() and language.decode([token_id]).lower() == f" {word}"


def saved(model, path):
    model.save_pretrained(path)
    language_tokenizer().save_pretrained(path)
    return str(path)


def test_a_model_without_positions_reads_texts_of_any_length(tmp_path):
    config = BloomConfig(vocab_size=len(TOKENS), hidden_size=8, n_layer=1, n_head=2)
    language = make_causal(hub=saved(BloomForCausalLM(config), tmp_path))
    assert language(torch.ones(1, 3000, dtype=torch.long), keep=1).shape == (1, 1, len(TOKENS))


def test_masks_that_old_files_of_gpt2_hold_are_left_out(tmp_path):
    config = GPT2Config(vocab_size=len(TOKENS), n_embd=8, n_layer=1, n_head=2, n_positions=32)
    hub = saved(GPT2LMHeadModel(config), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    masks = {"transformer.h.0.attn.bias": torch.ones(1, 1, 32, 32), "transformer.h.0.attn.masked_bias": torch.ones(1)}
    save_file(weights | masks, tmp_path / "model.safetensors", {"format": "pt"})
    assert make_causal(hub=hub).positions == 32


def test_a_model_that_keeps_no_keys_and_values_is_refused(tmp_path):
    config = MambaConfig(vocab_size=len(TOKENS), hidden_size=8, num_hidden_layers=1, state_size=2)
    with pytest.raises(ValueError, match="MambaForCausalLM keeps no keys and values of what it has read"):
        make_causal(hub=saved(MambaForCausalLM(config), tmp_path))


def test_what_is_no_causal_language_model_is_refused_in_one_line(tmp_path):
    config = T5Config(vocab_size=len(TOKENS), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    hub = saved(T5ForConditionalGeneration(config), tmp_path)
    for kind, told in (("t5", "T5Config"), ("t99", "`t99`")):
        written = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(written | {"model_type": kind}))
        with pytest.raises(
            ValueError, match=f"is no causal language model that transformers can build: .*{told}"
        ) as caught:
            make_causal(hub=hub)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", r"whose config\.json cannot be read \(Expecting property name"),
        ("config.json", "{}", r"has no config\.json with a model_type: name a folder of `save_pretrained`"),
        ("config.json", None, r"has no config\.json with a model_type"),
        ("model.safetensors", None, r"has no model\.safetensors: copy it there"),
        ("tokenizer.json", None, "has no tokenizer: copy tokenizer.json"),
        ("tokenizer.json", '{"added_tokens": [], "model": 1}', r"whose tokenizer cannot be read \("),
        ("tokenizer.json", "{}", r"whose tokenizer cannot be read \("),
    ],
)
def test_a_folder_that_lacks_a_file_says_which(tmp_path, name, content, message):
    hub = folder(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        make_causal(hub=hub)
    assert "\n" not in str(caught.value) and "huggingface.co" not in str(caught.value)


def test_weights_of_another_form_and_lost_parts_are_named(tmp_path):
    hub = folder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no model\.safetensors: load and save pytorch_model\.bin anew"):
        make_causal(hub=hub)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-1.safetensors").touch()
    with pytest.raises(ValueError, match=r"no model-2\.safetensors"):
        make_causal(hub=hub)


@pytest.mark.parametrize("hub", ["/no/such/folder", "./none", "a/b/c"])
def test_a_folder_that_is_not_there_is_no_name_of_the_hub(hub):
    with pytest.raises(ValueError, match=f"language.hub is .*{hub.lstrip('./')}.*, but there is no such folder"):
        make_causal(hub=hub)
