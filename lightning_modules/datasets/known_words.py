"""Texts of a user's own that a trained model is to read: `check_texts` refuses those that say nothing to it."""

import reprlib

import numpy as np

from lightning_modules.datasets.tokenizers import TextTokenizer

READ = 512  # tokens of a text that are looked at


def check_texts(texts: object, tokenizer: TextTokenizer, name: str, example: str) -> None:
    """Refuse what is no list of texts, and texts without a word that the tokenizer knows.

    Such a text is not nothing to a network: it has a feature, which may be nearer to a video than any other.

    Args:
        texts: given by a user.
        tokenizer: of the model.
        name: of the argument.
        example: a text that would do.

    Raises:
        ValueError: see above.
    """
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(each, str) for each in texts):
        raise ValueError(f"{name} is {reprlib.repr(texts)}, expected a list such as [{example!r}].")
    ids, _ = tokenizer(texts, READ)
    silent = (tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id, tokenizer.unknown_id)
    for text, row in zip(texts, ids, strict=True):
        if np.isin(row, silent).all():
            raise ValueError(
                f"{name} has {reprlib.repr(text)}, of which the model knows no word; expected a text such as "
                f"{example!r}."
            )
