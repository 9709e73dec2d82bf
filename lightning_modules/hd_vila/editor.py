"""Pictures of a user's own changed by sentences, or enlarged with their help, by a trained `Manipulation`.

from lightning_modules.predictors import load

editor = load("data/results/tiny/hd_vila/hd_vila-manipulation")
for found in editor.change("mine.png", ["a red banded circle moving left"]):
    found["changed"].save("changed.png")
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lightning_modules.datasets import pictures
from lightning_modules.datasets.known_words import check_texts
from lightning_modules.datasets.tokenizers import tokenizer_called
from lightning_modules.hd_vila.manipulation import Manipulation, enlarged
from lightning_modules.hd_vila.ranker import EXAMPLE
from lightning_modules.predictors import Predictor, lines_among


class Editor(Predictor):
    """Changes pictures by sentences. A picture is cut to its central square and brought to the generator's size.

    Args:
        module: trained for `edit` or `enlarge`.
        record: `data` that it was trained on, see `predictors.load`.
    """

    def __init__(self, module: Manipulation, record: dict):
        self.module, data = module.eval(), record["data"]
        self.tokenizer, self.length = tokenizer_called(data.get("tokenizer")), data["text_length"]
        self.sentences: list[str] = []

    def begin(self, inputs: Sequence[Path], among: Path | None = None) -> list[Path]:
        """Take the sentences from the one text file among the inputs, or from `among`.

        Raises:
            ValueError: there is not exactly one text file, or it has no sentences or one without a word that the model
                knows, or nothing else is there.
        """
        others, self.sentences = lines_among(inputs, among, "sentences")
        check_texts(self.sentences, self.tokenizer, "sentences", EXAMPLE)
        return others

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """The picture as each sentence changes it, see `change`; this is no ranking, so `top` has no effect.

        Raises:
            ValueError: the file is no picture that can be read.
        """
        yield from self.change(path, self.sentences)

    @torch.inference_mode()
    def change(self, path: str | Path, sentences: Sequence[str]) -> Iterator[dict[str, Any]]:
        """For each sentence its `row` and the picture `changed`, with the cosine of both `before` and `after`.

        Raises:
            ValueError: the file is no picture that can be read, or there are no sentences, or one that is in no list
                or has no word that the model knows.
        """
        check_texts(sentences, self.tokenizer, "sentences", EXAMPLE)
        module, device = self.module, self.module.device
        pixels = torch.from_numpy(np.array(pictures.read(Path(path))))
        given = module.centre(module.guide.preprocess(pixels.permute(2, 0, 1)[None].to(device)))
        if module.task == "enlarge":
            given = enlarged(given)
        ids, mask = (torch.from_numpy(x).to(device) for x in self.tokenizer(sentences, self.length))
        texts = module.guide.encode_texts(ids, mask).split(1)
        for row, (sentence, text) in enumerate(zip(sentences, texts, strict=True)):
            changed, _ = module.drawn(given, text)
            before, after = ((module.seen(x)[0] * text).sum().item() for x in (given, changed))
            yield {
                "row": row,
                "sentence": sentence,
                "before": round(before, 6),
                "after": round(after, 6),
                "changed": Image.fromarray(module.stored(changed)[0].cpu().numpy()),
            }
