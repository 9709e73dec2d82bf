"""BERT (Devlin et al., 1810.04805) in parts: its layers run from one to another, so that a video may join halfway.

The modules are those of `transformers`, so checkpoints keep their names. Also the masking of words, and its loss.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import BertConfig, BertForPreTraining

from lightning_modules.layers.published import from_pretrained
from lightning_modules.rehearsal import width

LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
PUBLISHED = {"google-bert/bert-base-uncased": {}, "google-bert/bert-large-uncased": LARGE}
NO_LABEL = -100  # of a word that was not masked


def make_bert(
    *, hub: str | None = None, sizes: Mapping[str, object] | None = None, tied: bool = False
) -> BertForPreTraining:
    """A BERT with its heads: a published or saved one, or one of given sizes with fresh weights.

    Its parts are `bert.embeddings`, `bert.encoder.layer`, `bert.pooler`, `cls.predictions` (of masked words) and
    `cls.seq_relationship`. The head of masked words begins with the word embeddings.
    Under `torch.device("meta")` a published one is its architecture only, without network.

    Args:
        hub: a name of the Hugging Face hub or a folder in its format; null for fresh weights.
        sizes: settings of `BertConfig`, for fresh weights only.
        tied: whether the head of masked words stays the word embeddings, as in BERT.

    Raises:
        ValueError: sizes are given for a published one, which has its own, or missing for a fresh one.
        ConnectionError: the hub cannot be reached and the weights are not in its cache.
    """
    if (hub is None) == (sizes is None):
        raise ValueError(f"bert: hub ({hub!r}) or sizes ({sizes}) must be given, and the other one must be null.")
    if hub is None:
        model = BertForPreTraining(BertConfig(**sizes))
    else:
        model = from_pretrained(BertForPreTraining, hub, partial(_published_architecture, hub))
    if not tied:
        head = model.cls.predictions.decoder
        head.weight = nn.Parameter(head.weight.detach().clone())
    return model.train()  # a published one comes in evaluation mode


def _published_architecture(hub: str) -> BertForPreTraining:
    if hub not in PUBLISHED:
        raise ValueError(f"the sizes of {hub!r} are not written out; known without its files: {[*PUBLISHED]}.")
    config = BertConfig(**PUBLISHED[hub])
    config.hidden_size, config.intermediate_size = width(config.hidden_size), width(config.intermediate_size)
    return BertForPreTraining(config)


def sizes_of(bert: BertForPreTraining) -> dict[str, object]:
    """The `sizes` of `make_bert` that build the same architecture without its weights."""
    both = ("vocab_size", "max_position_embeddings", "hidden_act", "layer_norm_eps", "type_vocab_size")
    dropout = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    return {name: getattr(bert.config, name) for name in (*LARGE, *both, *dropout)}


def run_layers(
    layers: Iterable[nn.Module],
    states: Float[Tensor, "batch tokens dim"],
    attention_mask: Bool[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, "batch tokens dim"]:
    """Some layers of a BERT, one after the other.

    Args:
        layers: such as `bert.encoder.layer[12:]`.
        states: what the layer before them gave.
        attention_mask: True for tokens that are seen, at least one of each row; None for all.
    """
    mask = None if attention_mask is None else attention_mask[:, None, None, :]
    for layer in layers:
        states = layer(states, mask)
    return states


def masked_mean(
    states: Float[Tensor, "batch tokens dim"], attention_mask: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch dim"]:
    """Mean over the tokens that the mask keeps."""
    kept = attention_mask[:, :, None].to(states.dtype)
    return (states * kept).sum(1) / kept.sum(1)


def mask_words(
    token_ids: Int[Tensor, "batch length"],
    *,
    special: Sequence[int],
    mask_id: int,
    vocabulary: int,
    share: float = 0.15,
) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]:
    """BERT's masking: of the drawn tokens, 80 % become the mask, 10 % any token, and 10 % stay as they are.

    Args:
        token_ids: of sentences with start, end and padding.
        special: ids that are never drawn.
        mask_id: of the mask.
        vocabulary: number of ids, from which any token is drawn.
        share: probability that a token is drawn.

    Returns:
        The ids to be read, and the labels: the old id where a token was drawn, `NO_LABEL` elsewhere.
    """
    chance = torch.rand(token_ids.shape, device=token_ids.device)
    ordinary = ~torch.isin(token_ids, torch.tensor(special, device=token_ids.device))
    drawn = ordinary & (chance < share)
    masked = drawn & (chance < 0.8 * share)
    replaced = drawn & (chance >= 0.9 * share)
    read = torch.where(replaced, torch.randint_like(token_ids, vocabulary), token_ids).masked_fill(masked, mask_id)
    return read, token_ids.masked_fill(~drawn, NO_LABEL)


def masked_word_loss(logits: Float[Tensor, "*rows words"], labels: Int[Tensor, "*rows"]) -> Float[Tensor, ""]:
    """Cross-entropy, mean over the words that have a label; 0 where none has."""
    total = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=NO_LABEL, reduction="sum")
    return total / (labels != NO_LABEL).sum().clamp(min=1)
