"""What a caption is for the language model: features of a frozen T5 (section 3.1), or learnt embeddings of words.

Read `make_text` first. Both are called with ids and their attention mask, and have `dim` numbers for each place; places
that the mask leaves out are zeros. `cutter` gives what makes ids of sentences for them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_modules import rehearsal
from lightning_modules.datasets.tokenizers import TextTokenizer, world_tokenizer
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
PAD, END = 0, 1  # of T5


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
        self.name, self.dim = name, int(self.network.config.d_model)

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


class T5Tokenizer:
    """T5's own tokenizer: word pieces, and an end token; there is no start token.

    Args:
        name: of the hub, such as `google/t5-v1_1-xl`, or a folder in its format.

    Raises:
        ConnectionError: its files cannot be had.
    """

    def __init__(self, name: str):
        from transformers import AutoTokenizer

        try:
            self.published = AutoTokenizer.from_pretrained(name)
        except OSError as error:
            if not rehearsal.replaces(f"tokenizer {name}", missing=True):
                raise ConnectionError(
                    f"the tokenizer {name} could not be fetched from huggingface.co, nor found in its cache. Connect "
                    f"this machine, or run `hf download {name}` on one that is connected and copy its cache (HF_HOME) "
                    "here."
                ) from error
            self.published = None  # a rehearsal spells

    def __call__(
        self, sentences: Sequence[str], length: int
    ) -> tuple[Int[np.ndarray, "rows length"], Bool[np.ndarray, "rows length"]]:
        """Ids, and whether there is a word, of sentences cut or padded to `length`; each keeps its end token."""
        ids, mask = np.full((len(sentences), length), PAD, np.int64), np.zeros((len(sentences), length), bool)
        for row, sentence in enumerate(sentences):
            found = [*self._pieces(sentence)[: length - 1], END]
            ids[row, : len(found)], mask[row, : len(found)] = found, True
        return ids, mask

    def __len__(self) -> int:
        """Number of ids; a rehearsal's are T5's letters."""
        return 32_100 if self.published is None else len(self.published)

    def _pieces(self, sentence: str) -> list[int]:
        if self.published is None:
            return [3 + byte for byte in sentence.encode()]
        return self.published(sentence, add_special_tokens=False)["input_ids"]


def cutter(text: Words | T5Features) -> TextTokenizer | T5Tokenizer:
    """What makes ids of sentences for learnt words (those of the captioned world), or for T5."""
    return T5Tokenizer(text.name) if isinstance(text, T5Features) else world_tokenizer()
