"""What a caption is for the language model: features of a frozen T5 (section 3.1), or learnt embeddings of words.

Read `make_text` first. Both are called with ids and their attention mask, and have `dim` numbers for each place; places
that the mask leaves out are zeros.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_modules import rehearsal
from lightning_modules.layers.published import from_pretrained
from lightning_modules.layers.teacher import Frozen
from lightning_modules.settings import Count

# Sizes of published encoders, so that their architecture can be built without their files: arguments of T5Config.
PUBLISHED = {
    "google/t5-v1_1-xl": {
        "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32, "vocab_size": 32128,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    },
    "google/t5-v1_1-small": {
        "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "vocab_size": 32128,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    },
}  # fmt: skip


class Words(nn.Module):
    """An embedding for each word of a small vocabulary, learnt with the network that reads it.

    Args:
        words: of the vocabulary.
        dim: of an embedding.
    """

    def __init__(self, *, words: Count, dim: Count):
        super().__init__()
        self.dim, self.embedding = dim, nn.Embedding(words, dim)

    def forward(self, ids: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]) -> Float[Tensor, "b l dim"]:
        """Embeddings of the words that the mask keeps."""
        return self.embedding(ids) * mask[..., None]


class T5Features(Frozen):
    """The encoder of T5, never trained; its weights are in no checkpoint and no export.

    Args:
        name: of the hub, such as `google/t5-v1_1-xl`, or a folder in its format.

    Raises:
        ConnectionError: the weights cannot be had.
    """

    def __init__(self, name: str):
        from transformers import T5Config, T5EncoderModel

        def drawn() -> T5EncoderModel:
            sizes = PUBLISHED.get(name, PUBLISHED["google/t5-v1_1-small"])
            narrow = {key: rehearsal.width(sizes[key]) for key in ("d_model", "d_ff")}
            return T5EncoderModel(T5Config(**sizes | narrow))

        # The hub's file has the decoder too.
        super().__init__(from_pretrained(T5EncoderModel, name, drawn, unused=("decoder.*", "lm_head.*")))
        self.dim: int = self.network.config.d_model

    @torch.no_grad()
    def forward(self, ids: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]) -> Float[Tensor, "b l dim"]:
        """What the encoder makes of the places that the mask keeps."""
        return self.network(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]


def make_text(*, hub: str | None = None, words: Count | None = None, dim: Count | None = None) -> Words | T5Features:
    """T5 by its name, or embeddings of `words` with `dim` numbers.

    Raises:
        ValueError: both are given, or neither.
    """
    if (hub is None) == (words is None or dim is None) or (hub is not None and (words or dim)):
        raise ValueError(
            f"text has hub {hub!r}, words {words} and dim {dim}: give hub alone (a T5), or words and dim without it."
        )
    return Words(words=words, dim=dim) if hub is None else T5Features(hub)
