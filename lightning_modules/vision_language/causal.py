"""Causal language models of `transformers` with their tokenizers: published, saved, or small ones of our own.

Read `Language` first. A Llama with fresh weights (`make_causal`) reads and writes the words of `words.py`.
"""

import inspect
import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules import rehearsal
from lightning_modules.layers.published import from_pretrained
from lightning_modules.settings import STRICT, Count
from lightning_modules.vision_language import words

if TYPE_CHECKING:  # takes seconds, and who calls has it
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SPACES = "\u0120\u2581"  # what byte pairs and SentencePiece write for a space before a word
# Buffers that files of GPT-2, GPT-Neo and Llama hold beside the weights, and that are computed anew.
BUFFERS = ("*.inv_freq", "*.attn.bias", "*.attention.bias", "*.masked_bias")
TOKENIZER_FILES = ("tokenizer.json", "*.model", "vocab.*", "tekken.json")
SPREAD = 0.02  # standard deviation of a Llama's fresh weights, that of `transformers`
# Sizes of published models, so that their architecture can be built without their files: arguments of Qwen2Config, and
# of LlamaConfig.
QWEN = {
    "Qwen/Qwen2.5-1.5B": {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 131072, "tie_word_embeddings": True,
    },
}  # fmt: skip
VICUNA_7B = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
}  # fmt: skip
TINY_LLAMA = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
    "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 2048,
}  # fmt: skip
LLAMA = {
    "lmsys/vicuna-7b-v1.5": VICUNA_7B,
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": TINY_LLAMA,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": TINY_LLAMA,
}
Fallback = Callable[[], "PreTrainedTokenizerBase"]


class LanguageSettings(TypedDict):
    """Arguments of `make_causal`, which says what they are."""

    __pydantic_config__ = STRICT
    hub: NotRequired[str | None]
    hidden_size: NotRequired[Count | None]
    layers: NotRequired[Count | None]
    heads: NotRequired[Count | None]
    kv_heads: NotRequired[Count | None]
    mlp_dim: NotRequired[Count | None]
    positions: NotRequired[Count | None]


class Language(nn.Module):
    """A causal language model and its tokenizer.

    Its state has the embeddings once, also where they are the output layer too.

    Args:
        model: of `transformers`, with a head.
        tokenizer: its tokenizer.
        no_words: tokens that are no words of a text, as the words of prompts.

    Raises:
        ValueError: the tokenizer has more ids than the model has embeddings, or the model cannot go on from keys and
            values of what it has read.
    """

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", no_words: Collection[str] = ()):
        super().__init__()
        if "past_key_values" not in inspect.signature(model.forward).parameters:
            raise ValueError(
                f"{type(model).__name__} keeps no keys and values of what it has read: name a language model with "
                "attention in language.hub."
            )
        self.tokenizer, self.no_words = tokenizer, no_words
        self.tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        self.model = model.base_model if self.tied else model
        self._whole = (model,)  # not a submodule: its head shares the embeddings
        if len(tokenizer) > len(self.embeddings):
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} ids, but the language model has {len(self.embeddings)} "
                "embeddings: "
                "name a folder whose tokenizer and weights belong together."
            )

    @property
    def whole(self) -> "PreTrainedModel":
        """The model with its head."""
        return self._whole[0]

    @property
    def embeddings(self) -> Float[Tensor, "vocabulary dim"]:
        """The input embeddings."""
        return self._whole[0].get_input_embeddings().weight

    @property
    def dim(self) -> int:
        """Of an embedding."""
        return self.embeddings.shape[1]

    @property
    def positions(self) -> int:
        """Tokens of the longest prompt, with what is written after it; without end where nothing limits it (BLOOM)."""
        config = self._whole[0].config.get_text_config()
        return getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None) or sys.maxsize

    @property
    def layers(self) -> nn.ModuleList | list[nn.Module]:
        """The blocks of a model that has them under this name."""
        return getattr(self._whole[0].base_model, "layers", [])

    @cached_property
    def vocabulary(self) -> list[str]:
        """The spelling of each id that is a whole word, else an empty text.

        A whole word has two letters at least, nothing but letters, and is marked as the beginning of a word where the
        tokenizer marks that; a tokenizer of words marks none. It is spelt as the tokenizer decodes it: pieces of bytes,
        as GPT-2 has them, write one letter beyond ASCII as several signs. What begins a word and is none by itself
        (`caf` of `caffeine`) cannot be told apart.
        """
        tokens = self.tokenizer.convert_ids_to_tokens(list(range(len(self.tokenizer))))
        special = set(self.tokenizer.all_special_tokens) | set(self.no_words)
        marked = any(token and token[0] in SPACES for token in tokens)
        found = [self._whole_word(token, marked) if token and token not in special else "" for token in tokens]
        return found + [""] * (len(self.embeddings) - len(found))

    def _whole_word(self, token: str, marked: bool) -> str:
        begins = token[0] in SPACES
        piece = token[1:] if begins else token
        if begins != marked or not piece or piece[0] in SPACES:
            return ""
        word = self.tokenizer.convert_tokens_to_string([piece])  # bytes that are no whole letters become U+FFFD
        return word if len(word) > 1 and word.isalpha() else ""

    def whole_words(self) -> tuple[Int[Tensor, " words"], list[str]]:
        """Ids and spellings of the whole words, each spelling once, in the order of the ids; case does not count.

        Raises:
            ValueError: the vocabulary has none.
        """
        first: dict[str, int] = {}
        for number, word in enumerate(self.vocabulary):
            if word:
                first.setdefault(word.lower(), number)
        if not first:
            raise ValueError("the vocabulary of the language model has no whole word: name another model.")
        return torch.tensor(list(first.values()), device="cpu"), list(first)  # ids, also where the model is only built

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without start and end tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of some ids."""
        return self.tokenizer.decode(list(token_ids))

    @cached_property
    def start(self) -> list[int]:
        """What the tokenizer puts before a text: the start token of a Llama, nothing for many others."""
        ids, start = self.tokenizer.encode("a"), self.tokenizer.bos_token_id
        return [start] if start is not None and ids[0] == start else []

    def forward(self, token_ids: Int[Tensor, "batch length"], keep: int = 0) -> Float[Tensor, "batch kept vocabulary"]:
        """Logits of the next token after each, or after the last `keep` ones.

        Raises:
            ValueError: there are more tokens than the model has positions.
        """
        self.check_length(token_ids.shape[1])
        return self._whole[0](input_ids=token_ids, logits_to_keep=keep, use_cache=False).logits

    def check_length(self, length: int, cure: str = "shorten one of them") -> None:
        """Refuse a prompt, with what is to be written after it, that the model has no positions for.

        Args:
            length: tokens of both together.
            cure: what can be made shorter.

        Raises:
            ValueError: see above.
        """
        if length > self.positions:
            raise ValueError(
                f"a prompt and its answer of {length} tokens are longer than the {self.positions} positions of the "
                f"language model: {cure}."
            )

    def cached(self) -> "Decoding":
        """Step by step decoding that keeps keys and values of what was read."""
        return Decoding(self)


class Decoding:
    """Decoding with a cache: what was read is not read again.

    Args:
        language: the model.
    """

    def __init__(self, language: Language):
        self.language, self.cache, self.read = language, None, 0

    @torch.no_grad()
    def __call__(self, token_ids: Int[Tensor, "batch new"]) -> Float[Tensor, "batch vocabulary"]:
        """Logits of what comes after further tokens.

        Raises:
            ValueError: there are more tokens than the model has positions.
        """
        self.read += token_ids.shape[1]
        self.language.check_length(self.read)
        found = self.language._whole[0](
            input_ids=token_ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1
        )
        self.cache = found.past_key_values
        return found.logits[:, -1]


def make_causal(
    *,
    hub: str | None = None,
    hidden_size: Count | None = None,
    layers: Count | None = None,
    heads: Count | None = None,
    kv_heads: Count | None = None,
    mlp_dim: Count | None = None,
    positions: Count | None = None,
) -> Language:
    """A causal language model of `transformers`: a published or saved one, or a small Llama with fresh weights.

    Under `torch.device("meta")` a published one is its architecture only, without network.

    Args:
        hub: a name of the Hugging Face hub, or a folder in its format with a tokenizer; null for fresh weights and the
            words of `words.py`.
        hidden_size: of an embedding, for fresh weights only, as all that follow.
        layers: number of blocks.
        heads: of attention.
        kv_heads: of keys and values, which groups of heads share.
        mlp_dim: inner size of each block's gated MLP.
        positions: tokens of the longest text.

    Raises:
        ValueError: sizes are given for a published one, which has its own, or are missing for a fresh one, or do not
            fit each other.
        ConnectionError: the hub cannot be reached and the files are not in its cache.
    """
    given = {"hidden_size": hidden_size, "layers": layers, "heads": heads, "kv_heads": kv_heads, "mlp_dim": mlp_dim,
             "positions": positions}  # fmt: skip
    if found := published_language(hub, given, words.language_tokenizer):
        found.whole.train()  # it comes in evaluation mode, in which nothing is computed again to save memory
        return found
    if hidden_size % (2 * heads) or heads % kv_heads:
        raise ValueError(
            f"language.hidden_size ({hidden_size}) must be an even multiple of language.heads ({heads}), and heads a "
            f"multiple of language.kv_heads ({kv_heads})."
        )
    return Language(_fresh(**given), words.language_tokenizer(), no_words=words.PROMPT_WORDS)


def _fresh(
    *, hidden_size: int, layers: int, heads: int, kv_heads: int, mlp_dim: int, positions: int
) -> "PreTrainedModel":
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words.TOKENS),
            hidden_size=hidden_size,
            intermediate_size=mlp_dim,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=positions,
            initializer_range=SPREAD,
            pad_token_id=words.TOKENS.index(words.PAD),
            bos_token_id=words.TOKENS.index(words.START),
            eos_token_id=words.TOKENS.index(words.END),
            tie_word_embeddings=False,
        )
    )


def published_language(
    hub: str | None, sizes: Mapping[str, object], fallback: Fallback, no_words: Collection[str] = ()
) -> Language | None:
    """A published language model with its tokenizer, or one from a folder; None where a fresh one is asked for.

    Args:
        hub: its name or folder; null for a fresh one.
        sizes: settings of a fresh one, each null for a published one.
        fallback: see `published_tokenizer`.
        no_words: see `Language`.

    Raises:
        ValueError: sizes are given for a published one, which has its own, or are missing for a fresh one; or what is
            named is no causal language model, or a folder without some of its files.
        ConnectionError: the hub cannot be reached and the files are not in its cache.
    """
    odd = [name for name, value in sizes.items() if (value is None) == (hub is None)]
    if odd and hub is None:
        raise ValueError(f"language.hub is null, so language.{odd[0]} must say how large the fresh model is.")
    if odd:
        raise ValueError(f"language.hub is {hub!r}, which has its own sizes; set {', '.join(odd)} to null.")
    return None if hub is None else Language(_published(hub), published_tokenizer(hub, fallback), no_words)


def _published(hub: str) -> "PreTrainedModel":
    """A published causal language model, or one from a folder; on the meta device its architecture.

    In float32, whatever is stored: steps of the optimiser would be lost in float16 or overflow, and mixed precision
    casts by itself.

    Raises:
        ConnectionError: the hub cannot be reached and the files are not in its cache.
        ValueError: on the meta device, its sizes are not written out; else it is no causal language model, or a folder
            without some of its files.
    """
    from transformers import AutoModelForCausalLM

    if _is_folder(hub) and rehearsal.current is None and torch.get_default_device().type != "meta":
        check_folder(Path(hub))
    try:
        model = from_pretrained(AutoModelForCausalLM, hub, partial(_published_architecture, hub), unused=BUFFERS,
                                new=("lm_head.weight",))  # fmt: skip  # tied heads are not stored
    except ValueError as error:
        if len(str(error).splitlines()) == 1:
            raise
        told = f"language.hub is {hub!r}, which is no causal language model that transformers can build"
        raise ValueError(f"{told}: {_first_line(error)}") from error  # it goes on with all classes that it has
    return model.float().eval()


def _is_folder(hub: str) -> bool:
    return Path(hub).is_dir() or hub.startswith((".", "/", "~")) or hub.count("/") > 1


def check_folder(folder: Path) -> None:
    """Refuse a folder that is no saved language model with its tokenizer: `transformers` would look for it in the hub.

    Raises:
        ValueError: it is not there, or lacks a file, or one is no JSON.
    """
    told = f"language.hub is {str(folder)!r}"
    if not folder.is_dir():
        raise ValueError(f"{told}, but there is no such folder: correct the path, or give a name of the hub.")
    found: dict[str, object] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found[path.name] = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{told}, whose {path.name} cannot be read ({error}): copy it again.") from error
    if not isinstance(config := found.get("config.json"), dict) or "model_type" not in config:
        raise ValueError(f"{told}, which has no config.json with a model_type: name a folder of `save_pretrained`.")
    index = found.get("model.safetensors.index.json")
    named = index.get("weight_map") if isinstance(index, dict) else None
    parts = sorted(set(named.values())) if isinstance(named, dict) else ["model.safetensors"]
    if missing := [name for name in parts if not (folder / name).is_file()]:
        others = sorted(path.name for path in folder.glob("*.bin"))
        cure = f"load and save {others[0]} anew, with safetensors" if others else "copy it there"
        raise ValueError(f"{told}, which has no {missing[0]}: {cure}.")
    if not any(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
        raise ValueError(f"{told}, which has no tokenizer: copy tokenizer.json and tokenizer_config.json there.")


def _published_architecture(hub: str) -> "PreTrainedModel":
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    if hub not in QWEN | LLAMA:
        raise ValueError(f"the sizes of {hub!r} are not written out; known without its files: {[*QWEN, *LLAMA]}.")
    sizes = dict((QWEN | LLAMA)[hub])
    heads = sizes["num_attention_heads"]
    for name in ("hidden_size", "intermediate_size"):
        sizes[name] = rehearsal.width(sizes[name])
    sizes["hidden_size"] -= sizes["hidden_size"] % (2 * heads)
    no_ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    if hub in QWEN:
        return Qwen2ForCausalLM(Qwen2Config(**sizes, **no_ids))
    return LlamaForCausalLM(LlamaConfig(**sizes, **no_ids))


def published_tokenizer(hub: str, fallback: Fallback) -> "PreTrainedTokenizerBase":
    """The tokenizer of a published model; on the meta device, and in a rehearsal without it, what `fallback` gives.

    Raises:
        ConnectionError: the hub cannot be reached and the files are not in its cache.
        ValueError: that of a folder cannot be read.
    """
    from transformers import AutoTokenizer

    if torch.get_default_device().type == "meta":
        return fallback()
    try:
        return AutoTokenizer.from_pretrained(hub)
    except Exception as error:  # files of another form raise anything, also Exception itself
        if rehearsal.replaces(f"tokenizer {hub}", missing=True):
            return fallback()
        if _is_folder(hub):
            told = f"language.hub is {hub!r}, whose tokenizer cannot be read ({_first_line(error)}): copy it again."
            raise ValueError(told) from error
        if not isinstance(error, OSError | ValueError):
            raise
        raise ConnectionError(
            f"the tokenizer of {hub} could not be fetched from huggingface.co, nor found in its cache. Connect this "
            f"machine, or run `hf download {hub}` on one that is connected and copy its cache (HF_HOME) here."
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
