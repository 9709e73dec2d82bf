"""The language model that reads and writes a picture's words, and is never trained on pictures (sections 3.1 and 3.6).

Read `make_language` first: it gives any causal language model of `transformers` with its tokenizer, or a small one of
our own, which `language_training.SpaeLanguage` trains on text alone.

The small model is an LFM2: short convolutions beside attention, so that each place has the words before it at hand. Of
its first weights see `begin_with_likeness`: on texts, they decide whether it learns in context within a minute.
"""

import logging
import re
from collections.abc import Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_modules import rehearsal
from lightning_modules.layers.published import from_pretrained
from lightning_modules.settings import Count
from lightning_modules.spae import lexicon

if TYPE_CHECKING:  # takes seconds, and who calls has it
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Layer = Literal["convolution", "attention"]
WORD = re.compile(r"[^\W\d_]{2,}")  # letters alone: no digits, no signs, no single letter
SPREAD = 0.1  # standard deviation of fresh embeddings, about 1 over the root of their length
SPACES = "\u0120\u2581"  # what byte pairs and SentencePiece write for a space before a word
# Sizes of published models, so that their architecture can be built without their files: arguments of Qwen2Config.
PUBLISHED = {
    "Qwen/Qwen2.5-1.5B": {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 131072, "tie_word_embeddings": True,
    },
}  # fmt: skip


class Language(nn.Module):
    """A causal language model and its tokenizer.

    Its state has the embeddings once, also where they are the output layer too.

    Args:
        model: of `transformers`, with a head.
        tokenizer: its tokenizer.

    Raises:
        ValueError: the tokenizer has more ids than the model has embeddings.
    """

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"):
        super().__init__()
        self.tokenizer = tokenizer
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
        """Tokens of the longest prompt, with what is written after it."""
        return self._whole[0].config.max_position_embeddings

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The blocks of a model that has them under this name."""
        return getattr(self._whole[0].base_model, "layers", [])

    @cached_property
    def vocabulary(self) -> list[str]:
        """The spelling of each id that is a whole word, else an empty text.

        A whole word has two letters at least, nothing but letters, and is marked as the beginning of a word where the
        tokenizer marks that; a tokenizer of words marks none.
        """
        tokens = self.tokenizer.convert_ids_to_tokens(list(range(len(self.tokenizer))))
        special = set(self.tokenizer.all_special_tokens) | set(lexicon.PROMPT_WORDS)
        marked = any(token and token[0] in SPACES for token in tokens)
        found = [_whole_word(token, marked) if token and token not in special else "" for token in tokens]
        return found + [""] * (len(self.embeddings) - len(found))

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

    def check_length(self, length: int) -> None:
        """Refuse a prompt, with what is to be written after it, that the model has no positions for.

        Raises:
            ValueError: see above.
        """
        if length > self.positions:
            raise ValueError(
                f"a prompt and its answer of {length} tokens are longer than the {self.positions} positions of the "
                "language model: ask for fewer shots, repeats or words."
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


def make_language(
    *,
    hub: str | None = None,
    hidden_size: Count | None = None,
    layers: list[Layer] | None = None,
    heads: Count | None = None,
    mlp_dim: Count | None = None,
    kernel: Count | None = None,
    positions: Count | None = None,
) -> Language:
    """A causal language model of `transformers`: a published or saved one, or a small one with fresh weights.

    Under `torch.device("meta")` a published one is its architecture only, without network.

    Args:
        hub: a name of the Hugging Face hub, or a folder in its format with a tokenizer; null for fresh weights and the
            words of `lexicon`.
        hidden_size: of an embedding, for fresh weights only, as all that follow.
        layers: what each layer looks back with, such as `[convolution, attention]`.
        heads: of attention.
        mlp_dim: inner size of each layer's gated MLP.
        kernel: places that a convolution looks at.
        positions: tokens of the longest prompt.

    Raises:
        ValueError: sizes are given for a published one, which has its own, or are missing for a fresh one, or do not
            fit each other.
        ConnectionError: the hub cannot be reached and the files are not in its cache.
    """
    given = {"hidden_size": hidden_size, "layers": layers, "heads": heads, "mlp_dim": mlp_dim, "kernel": kernel,
             "positions": positions}  # fmt: skip
    odd = [name for name, value in given.items() if (value is None) == (hub is None)]
    if odd and hub is None:
        raise ValueError(f"language.hub is null, so language.{odd[0]} must say how large the fresh model is.")
    if odd:
        raise ValueError(f"language.hub is {hub!r}, which has its own sizes; set {', '.join(odd)} to null.")
    if hub is not None:
        return Language(_published(hub), _published_tokenizer(hub))
    if hidden_size % heads or hidden_size // heads % 2:
        raise ValueError(
            f"language.hidden_size ({hidden_size}) must be an even multiple of language.heads ({heads}): each head "
            "turns "
            "pairs of numbers."
        )
    return Language(_fresh(**given), lexicon.language_tokenizer())


def _fresh(
    *, hidden_size: int, layers: Sequence[Layer], heads: int, mlp_dim: int, kernel: int, positions: int
) -> "PreTrainedModel":
    from transformers import Lfm2Config, Lfm2ForCausalLM

    # that a kernel for CUDA is not installed; on such short texts it would change nothing
    logging.getLogger("transformers.integrations.hub_kernels").setLevel(logging.ERROR)
    kinds = {"convolution": "conv", "attention": "full_attention"}
    config = Lfm2Config(
        vocab_size=len(lexicon.TOKENS),
        hidden_size=hidden_size,
        intermediate_size=mlp_dim,
        block_auto_adjust_ff_dim=False,
        num_hidden_layers=len(layers),
        layer_types=[kinds[layer] for layer in layers],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        conv_L_cache=kernel,
        max_position_embeddings=positions,
        conv_bias=True,
        initializer_range=SPREAD,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        pad_token_id=lexicon.TOKENS.index(lexicon.PAD),
        bos_token_id=lexicon.TOKENS.index(lexicon.START),
        eos_token_id=lexicon.TOKENS.index(lexicon.END),
        tie_word_embeddings=True,
    )
    model = Lfm2ForCausalLM(config)
    begin_with_likeness(model)
    return model


@torch.no_grad()
def begin_with_likeness(model: "PreTrainedModel") -> None:
    """Fresh weights with which a place looks for places whose surroundings have the same words, and copies from there.

    Trained attention is much like this: queries and keys are nearly the same map, and values are handed on (mimetic
    initialisation, Trockman and Kolter, 2305.09828). A convolution begins as the sum of the last places, turned, so
    that it is told apart from a place's own word. With small random weights instead, the same network at the same
    rate guessed in all tasks on texts after 500 steps, where this one had 85 and 96 % right of two classes with equal
    inputs (1 and 3 shots, seed 50); so did a Llama of two layers after 400.

    Args:
        model: an LFM2 whose heads have together the width of an embedding.
    """
    for layer in model.base_model.layers:
        nn.init.normal_(layer.feed_forward.w2.weight, std=SPREAD / 5)
        if not layer.is_attention_layer:
            gates, turned = layer.conv.in_proj.weight.split([2 * model.config.hidden_size, model.config.hidden_size])
            nn.init.normal_(gates, std=SPREAD / 5)
            nn.init.orthogonal_(turned)
            gates, turned = layer.conv.in_proj.bias.split([2 * model.config.hidden_size, model.config.hidden_size])
            gates.fill_(1)  # open
            layer.conv.conv.weight.fill_(layer.conv.conv_kernel_size**-0.5)
            layer.conv.out_proj.weight.copy_(SPREAD * torch.eye(model.config.hidden_size))
            continue
        for name in ("q_proj", "k_proj", "v_proj"):
            weight = getattr(layer.self_attn, name).weight
            nn.init.normal_(weight, std=SPREAD / 5)
            weight.add_(torch.eye(len(weight)))
        layer.self_attn.out_proj.weight.copy_(SPREAD * torch.eye(model.config.hidden_size))


def _published(hub: str) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    model = from_pretrained(AutoModelForCausalLM, hub, partial(_published_architecture, hub), unused=("*.inv_freq",),
                            new=("lm_head.weight",))  # fmt: skip  # tied heads are not stored
    return model.eval()


def _published_architecture(hub: str) -> "PreTrainedModel":
    from transformers import Qwen2Config, Qwen2ForCausalLM

    if hub not in PUBLISHED:
        raise ValueError(f"the sizes of {hub!r} are not written out; known without its files: {[*PUBLISHED]}.")
    sizes = dict(PUBLISHED[hub])
    heads = sizes["num_attention_heads"]
    for name in ("hidden_size", "intermediate_size"):
        sizes[name] = rehearsal.width(sizes[name])
    sizes["hidden_size"] -= sizes["hidden_size"] % (2 * heads)
    return Qwen2ForCausalLM(Qwen2Config(**sizes, bos_token_id=None, eos_token_id=None, pad_token_id=None))


def _published_tokenizer(hub: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a published model; in a rehearsal without it, the words of `lexicon`.

    Raises:
        ConnectionError: the hub cannot be reached and the files are not in its cache.
    """
    from transformers import AutoTokenizer

    if torch.get_default_device().type == "meta":
        return lexicon.language_tokenizer()
    try:
        return AutoTokenizer.from_pretrained(hub)
    except (OSError, ValueError) as error:
        if rehearsal.replaces(f"tokenizer {hub}", missing=True):
            return lexicon.language_tokenizer()
        raise ConnectionError(
            f"the tokenizer of {hub} could not be fetched from huggingface.co, nor found in its cache. Connect this "
            f"machine, or run `hf download {hub}` on one that is connected and copy its cache (HF_HOME) here."
        ) from error


def _whole_word(token: str, marked: bool) -> str:
    begins = token[0] in SPACES
    word = token[1:] if begins else token
    return word if begins == marked and WORD.fullmatch(word) else ""
