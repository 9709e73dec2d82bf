"""Published language models, whatever their files hold, can be trained."""

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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
