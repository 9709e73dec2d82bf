"""Captions as ids of T5: word pieces and an end token, without a start token; other tokenizers by their names."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from lightning_modules import rehearsal
from lightning_modules.datasets.tokenizers import TextTokenizer, tokenizer_called

PAD, END, UNKNOWN = 0, 1, 2  # of T5
LETTERS = 3  # the first id that spells, in a rehearsal
WORDS = 32_100  # of T5's vocabulary


class SentencePieces:
    """T5's tokenizer in the call form of `TextTokenizer`.

    Args:
        name: of the hub, such as `google-t5/t5-base`, or a folder in its format.

    Raises:
        ConnectionError: its files cannot be had.
    """

    pad_id, end_id, unknown_id = PAD, END, UNKNOWN

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
        """Ids, int64, and attention mask of sentences, cut or padded to `length`; each keeps its end token."""
        ids, mask = np.full((len(sentences), length), PAD, np.int64), np.zeros((len(sentences), length), bool)
        for row, sentence in enumerate(sentences):
            found = [*self._pieces(sentence)[: length - 1], END]
            ids[row, : len(found)], mask[row, : len(found)] = found, True
        return ids, mask

    def __len__(self) -> int:
        """Number of ids."""
        return WORDS if self.published is None else len(self.published)

    def _pieces(self, sentence: str) -> list[int]:
        if self.published is None:
            return [LETTERS + byte for byte in sentence.encode()]
        return self.published(sentence, add_special_tokens=False)["input_ids"]


def caption_tokenizer(name: str | None) -> TextTokenizer | SentencePieces:
    """What cuts captions: T5's pieces where the name says `t5`, otherwise see `tokenizers.tokenizer_called`."""
    last = (name or "").rstrip("/").rpartition("/")[2].lower()
    return SentencePieces(name) if "t5" in last else tokenizer_called(name)
