"""The language model that reads and writes a picture's words, and is never trained on pictures (sections 3.1 and 3.6).

Read `make_language` first: it gives any causal language model of `transformers` with its tokenizer, or a small one of
our own, which `language_training.SpaeLanguage` trains on text alone.

The small model is an LFM2: short convolutions beside attention, so that each place has the words before it at hand. Of
its first weights see `begin_with_likeness`: on texts, they decide whether it learns in context within a minute.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NotRequired

import torch
from pydantic import Field
from torch import nn
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.settings import STRICT, Count
from lightning_modules.spae import lexicon
from lightning_modules.vision_language.causal import Language, published_language

if TYPE_CHECKING:  # takes seconds, and who calls has it
    from transformers import PreTrainedModel

Layer = Literal["convolution", "attention"]
SPREAD = 0.1  # standard deviation of fresh embeddings, about 1 over the root of their length


class LanguageSettings(TypedDict):
    """Arguments of `make_language`, which says what they are."""

    __pydantic_config__ = STRICT
    hub: NotRequired[str | None]
    hidden_size: NotRequired[Count | None]
    layers: NotRequired[Annotated[list[Layer], Field(min_length=1)] | None]
    heads: NotRequired[Count | None]
    mlp_dim: NotRequired[Count | None]
    kernel: NotRequired[Count | None]
    positions: NotRequired[Count | None]


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
    if found := published_language(hub, given, lexicon.language_tokenizer, lexicon.PROMPT_WORDS):
        return found
    if hidden_size % heads or hidden_size // heads % 2:
        raise ValueError(
            f"language.hidden_size ({hidden_size}) must be an even multiple of language.heads ({heads}): each head "
            "turns "
            "pairs of numbers."
        )
    return Language(_fresh(**given), lexicon.language_tokenizer(), lexicon.PROMPT_WORDS)


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
