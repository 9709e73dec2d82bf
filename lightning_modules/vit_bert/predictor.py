"""Answers about a user's pictures and sentences: the class of a picture, and the words behind `[MASK]`.

Read `Answers` for a pre-trained network, `Tuned` for a fine-tuned one: classes of its own, or labels of sentences.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lightning_modules.datasets import storage
from lightning_modules.datasets.glue import FORMS
from lightning_modules.datasets.pictures import stored
from lightning_modules.datasets.tokenizers import TextTokenizer, tokenizer_called
from lightning_modules.files import ROOT
from lightning_modules.predictors import Predictor, centre_share
from lightning_modules.runs import Run
from lightning_modules.vit_bert.finetuning import FineTuneImages, FineTuneTexts
from lightning_modules.vit_bert.module import VitBert

SHOWN = 60  # letters of a sentence in a message
MASK = "[MASK]"
TEXTS = (".txt", ".text")
FILE = "tuned.json"  # of the results of fine-tuned arms: which network answers, and the data set it was judged on
BUILT = "built.json"  # beside the protocols of an arm: how its pre-training was built
FOLLOWS = ("does not follow", "follows")  # labels of pairs that are no task of GLUE


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
        return card.get("classes") or numbered(card["num_classes"])

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
        return classified(self.module, side, path, self.tasks["images"]["data"], self.classes)

    @torch.inference_mode()
    def fill(self, text: str) -> list[list[tuple[str, float]]]:
        """For each `[MASK]` of a sentence all words with their probabilities, the likeliest first.

        Two sentences may be told apart by a tabulator.

        Raises:
            ValueError: there is no `[MASK]`, the sentence is too long, or the network has not learnt words.
        """
        self._check("texts")
        token_ids, segments = self.reading(text)
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

    def reading(self, text: str) -> tuple[Int[Tensor, "1 length"], Int[Tensor, "1 length"]]:
        """See `read_sentences`."""
        return read_sentences(text, self.tokenizer, len(self.module.network.tokens["text"].positions))

    def _check(self, task: str) -> None:
        learnt = self.record["data"].get("trained") or list(self.tasks)
        if task not in learnt:
            raise ValueError(
                f"the network has learnt {' and '.join(learnt)}, not {task}: take an arm that has, such as vit_bert."
            )


class Tuned(Predictor):
    """A fine-tuned network: classes of pictures, or what it says of sentences.

    Args:
        module: the trained network.
        data: settings of the data of pictures or texts in pre-training.
        labels: names of the outputs in their order; empty for scores.
        pairs: whether two sentences are judged together.
    """

    def __init__(
        self, module: FineTuneImages | FineTuneTexts, data: Mapping[str, Any], labels: Sequence[str], *, pairs: bool
    ):
        self.module, self.data, self.labels, self.pairs = module.eval(), data, list(labels), pairs

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """What cuts sentences."""
        return tokenizer_called(self.data.get("tokenizer"))

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """Of a picture its `top` classes; of a text file, for each line, the `top` labels, or its score.

        Raises:
            ValueError: the file cannot be read, is of the modality that the network has not learnt, or a line has not
                the sentences that are expected, unknown words only, or too many.
        """
        if Path(path).suffix.lower() not in TEXTS:
            for rank, (name, share) in enumerate(self.classify(path)[:top], start=1):
                yield {"rank": rank, "class": name, "probability": round(share, 6)}
            return
        for number, line in enumerate(lines_of(Path(path), "a sentence"), start=1):
            said = self.judge(line)
            if isinstance(said, float):
                yield {"line": number, "score": round(said, 6)}
                continue
            for rank, (name, share) in enumerate(said[:top], start=1):
                yield {"line": number, "rank": rank, "label": name, "probability": round(share, 6)}

    @torch.inference_mode()
    def classify(self, path: str | Path) -> list[tuple[str, float]]:
        """The classes of a picture with their probabilities, the likeliest first.

        Raises:
            ValueError: the picture cannot be read, or the network was fine-tuned on sentences.
        """
        if not isinstance(self.module, FineTuneImages):
            raise ValueError(
                f"{path} is no text file, but the network was fine-tuned on sentences: give a .txt file, or take the "
                "results of another arm, such as vit_bert-images."
            )
        return classified(self.module, self.module.tokens.image_size, path, self.data, self.labels)

    @torch.inference_mode()
    def judge(self, text: str) -> list[tuple[str, float]] | float:
        """The labels of a sentence, or of two with a tabulator between them, the likeliest first; of STS-B a score.

        Raises:
            ValueError: see `answer`.
        """
        if not isinstance(self.module, FineTuneTexts):
            raise ValueError(
                "the network was fine-tuned on pictures and reads no sentences: take the results of another arm, such "
                "as vit_bert-texts."
            )
        wanted, there = 1 + self.pairs, len(text.split("\t"))
        if there != wanted:
            way = "write both on one line, with a tabulator between them" if self.pairs else "write one on each line"
            raise ValueError(f"{text[:SHOWN]!r} has {there} sentences, expected {wanted}: {way}.")
        token_ids, segments = read_sentences(text, self.tokenizer, len(self.module.tokens.positions))
        said = self.module(token_ids, torch.ones_like(token_ids, dtype=torch.bool), segments)[0].float()
        if not self.labels:
            return said.item()
        return sorted(zip(self.labels, said.softmax(0).tolist(), strict=True), key=lambda pair: -pair[1])


def load_tuned(folder: Path) -> Tuned:
    """What answers with the results of fine-tuned arms: the network of the first one.

    Args:
        folder: `data/results/<preset>/<paper>/<arm>`.

    Raises:
        ValueError: the trained network is not there.
    """
    told = json.loads((folder / FILE).read_text())
    place = ROOT / told["run"]
    if not (place / "facts.json").is_file():
        raise ValueError(f"{place} has no trained network, of which {folder / FILE} speaks; run `make repro`.")
    run, built = Run(place, int(place.name.removeprefix("seed-"))), json.loads((place.parents[1] / BUILT).read_text())
    weights = {name: torch.from_numpy(x) for name, x in run.weights().items()}
    outputs = len(weights["head.classifier.weight"])
    model, tasks = built["model"], built["data"]["tasks"]
    common = {name: model[name] for name in ("encoder", "modality_embedding", "deviation")}
    if "tokens.words.weight" in weights:
        task = run.facts.get("task")
        module = FineTuneTexts(texts=model["texts"], outputs=outputs, task=task, **common)
        labels = (FORMS[task].labels or ()) if task else FOLLOWS
        found = Tuned(module, tasks["texts"]["data"], labels, pairs=FORMS[task].second is not None if task else True)
    else:
        sizes = model["images"] | {"classes": outputs}
        module = FineTuneImages(images=sizes, preprocess=model["preprocess"], **common)
        data = ROOT / "data/datasets" / told["dataset"] / place.parents[4].name  # of the preset
        labels = _classes(data, data / tasks["images"]["part"]) or numbered(outputs)
        found = Tuned(module, tasks["images"]["data"], labels, pairs=False)
    module.load_export(weights)
    return found


def _classes(*folders: Path) -> list[str] | None:
    """Names of the classes in the first of the folders that holds a data set."""
    there = next((folder for folder in folders if (folder / "card.json").is_file()), None)
    return storage.card(there).get("classes") if there else None


def numbered(count: int) -> list[str]:
    """Numbers in place of names."""
    return [str(number) for number in range(count)]


def classified(
    module: VitBert | FineTuneImages, side: int, path: str | Path, data: Mapping[str, Any], classes: Sequence[str]
) -> list[tuple[str, float]]:
    """The classes of a picture with their probabilities, the likeliest first.

    Args:
        module: whose `forward` says logits of stored pixels.
        side: of the pictures that it reads, in pixels.
        path: of the picture.
        data: settings of the data of pictures, which say what is cut off.
        classes: names of the outputs.

    Raises:
        ValueError: the picture cannot be read.
    """
    pixels = stored(Path(path), (3, side, side), module.preprocess.pixel_scale, centre_share(data))
    shares = module(torch.from_numpy(np.asarray(pixels)))[0].float().softmax(0).tolist()
    return sorted(zip(classes, shares, strict=False), key=lambda pair: -pair[1])


def read_sentences(
    text: str, tokenizer: TextTokenizer, most: int
) -> tuple[Int[Tensor, "1 length"], Int[Tensor, "1 length"]]:
    """Ids and segments of one sentence or two, with a tabulator between them; `[MASK]` stands for a hidden word.

    Args:
        text: the sentences.
        tokenizer: what cuts them.
        most: tokens.

    Raises:
        ValueError: there are more than two sentences, too many tokens, or unknown words alone.
    """
    parts = [_ids(part, tokenizer) for part in text.split("\t")]
    if len(parts) > 2:
        raise ValueError(f"{text[:SHOWN]!r} has {len(parts)} sentences between tabulators, expected one or two.")
    ids = [*parts[0], *(parts[1][1:] if len(parts) == 2 else ())]
    if len(ids) > most:
        raise ValueError(f"{text[:SHOWN]!r} has {len(ids)} tokens, expected at most {most}: make it shorter.")
    words = set(ids) - {tokenizer.start_id, tokenizer.end_id, tokenizer.mask_id}
    if words == {tokenizer.unknown_id}:
        raise ValueError(
            f"{text[:SHOWN]!r} has no word that the model knows: use those of the texts it was trained on."
        )
    segments = [0] * len(parts[0]) + [1] * (len(ids) - len(parts[0]))
    return torch.tensor([ids]), torch.tensor([segments])


def _ids(sentence: str, tokenizer: TextTokenizer) -> list[int]:
    """With start and end; the mask is no word that a tokenizer cuts."""
    pieces = [tokenizer.backend.encode(piece).ids for piece in sentence.split(MASK)]
    ids = pieces[0][:-1]
    for piece in pieces[1:]:
        ids += [tokenizer.mask_id, *piece[1:-1]]
    return [*ids, pieces[-1][-1]]


def lines_of(path: Path, wanted: str = "a sentence with [MASK]") -> list[str]:
    """The lines of a text file that are not empty.

    Args:
        path: of the file.
        wanted: what a line is to be.

    Raises:
        ValueError: it cannot be read, or has none.
    """
    try:
        lines = [line for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text: {error}. Save it as UTF-8.") from error
    if not lines:
        raise ValueError(f"{path} has no lines: write {wanted} into it.")
    return lines
