"""Answers about a user's pictures and sentences: the class of a picture, and the words behind `[MASK]`."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_modules.datasets import storage
from lightning_modules.datasets.pictures import stored
from lightning_modules.datasets.tokenizers import TextTokenizer, tokenizer_called
from lightning_modules.files import ROOT
from lightning_modules.predictors import Predictor, centre_share
from lightning_modules.vit_bert.module import VitBert

SHOWN = 60  # letters of a sentence in a message
MASK = "[MASK]"
TEXTS = (".txt", ".text")


class Answers(Predictor):
    """One network for pictures and for sentences.

    Args:
        module: the trained network.
        record: `data` and `dataset` of what it was trained on, see `predictors.load`.
    """

    def __init__(self, module: VitBert, record: dict):
        self.module, self.record = module.eval(), record
        self.tasks = record["data"]["tasks"]

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """What cuts sentences."""
        return tokenizer_called(self.tasks["texts"]["data"].get("tokenizer"))

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes; their numbers where the data set tells none."""
        card = storage.card(ROOT / self.record["dataset"] / self.tasks["images"]["part"])
        return card.get("classes") or [str(number) for number in range(card["num_classes"])]

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """Of a picture its `top` classes; of a text file, for each line, the `top` words for each `[MASK]` in it.

        Raises:
            ValueError: the file cannot be read, or a line has no `[MASK]`, or is too long.
        """
        if Path(path).suffix.lower() not in TEXTS:
            for rank, (name, share) in enumerate(self.classify(path)[:top], start=1):
                yield {"rank": rank, "class": name, "probability": round(share, 6)}
            return
        for number, line in enumerate(lines_of(Path(path)), start=1):
            for place, words in enumerate(self.fill(line), start=1):
                for rank, (word, share) in enumerate(words[:top], start=1):
                    yield {"line": number, "mask": place, "rank": rank, "word": word, "probability": round(share, 6)}

    @torch.inference_mode()
    def classify(self, path: str | Path) -> list[tuple[str, float]]:
        """The classes of a picture with their probabilities, the likeliest first.

        Raises:
            ValueError: the picture cannot be read, or the network has not learnt pictures.
        """
        self._check("images")
        side = self.module.network.tokens["image"].image_size
        scale = self.module.preprocess.pixel_scale
        pixels = stored(Path(path), (3, side, side), scale, centre_share(self.tasks["images"]["data"]))
        shares = self.module(torch.from_numpy(np.asarray(pixels)))[0].float().softmax(0).tolist()
        return sorted(zip(self.classes, shares, strict=False), key=lambda pair: -pair[1])

    @torch.inference_mode()
    def fill(self, text: str) -> list[list[tuple[str, float]]]:
        """For each `[MASK]` of a sentence all words with their probabilities, the likeliest first.

        Two sentences may be told apart by a tabulator.

        Raises:
            ValueError: there is no `[MASK]`, the sentence is too long, or the network has not learnt words.
        """
        self._check("texts")
        token_ids, segments = self._read(text)
        asked = token_ids == self.tokenizer.mask_id
        if not asked.any():
            raise ValueError(f"{text[:SHOWN]!r} has no [MASK]: write it where a word is to be filled in.")
        network = self.module.network
        features = network.text_features(token_ids, torch.ones_like(asked), segments)
        shares = network.word_logits(features, asked).float().softmax(1)[:, : len(self.tokenizer)]
        order = shares.argsort(1, descending=True)
        spelled = self.tokenizer.backend.id_to_token
        return [
            [(spelled(word), shares[place, word].item()) for word in row] for place, row in enumerate(order.tolist())
        ]

    def _read(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and segments of one sentence or two."""
        parts = [self._ids(part) for part in text.split("\t")]
        if len(parts) > 2:
            raise ValueError(f"{text[:SHOWN]!r} has {len(parts)} sentences between tabulators, expected one or two.")
        ids = [*parts[0], *(parts[1][1:] if len(parts) == 2 else ())]
        most = len(self.module.network.tokens["text"].positions)
        if len(ids) > most:
            raise ValueError(f"{text[:SHOWN]!r} has {len(ids)} tokens, expected at most {most}: make it shorter.")
        segments = [0] * len(parts[0]) + [1] * (len(ids) - len(parts[0]))
        return torch.tensor([ids]), torch.tensor([segments])

    def _ids(self, sentence: str) -> list[int]:
        """With start and end; the mask is no word that a tokenizer cuts."""
        pieces = [self.tokenizer.backend.encode(piece).ids for piece in sentence.split(MASK)]
        ids = pieces[0][:-1]
        for piece in pieces[1:]:
            ids += [self.tokenizer.mask_id, *piece[1:-1]]
        return [*ids, pieces[-1][-1]]

    def _check(self, task: str) -> None:
        learnt = self.record["data"].get("trained") or list(self.tasks)
        if task not in learnt:
            raise ValueError(
                f"the network has learnt {' and '.join(learnt)}, not {task}: take an arm that has, such as vit_bert."
            )


def lines_of(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        ValueError: it cannot be read, or has none.
    """
    try:
        lines = [line for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text: {error}. Save it as UTF-8.") from error
    if not lines:
        raise ValueError(f"{path} has no lines: write a sentence with [MASK] into it.")
    return lines
