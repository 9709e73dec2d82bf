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
from lightning_modules.datasets.tokenizers import tokenizer_called
from lightning_modules.hd_vila.manipulation import Manipulation, enlarged
from lightning_modules.hd_vila.ranker import check_sentences
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
            ValueError: there is not exactly one text file, or it has no sentences, or nothing else is there.
        """
        others, self.sentences = lines_among(inputs, among, "sentences")
        return others

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """The picture as the first `top` sentences change it, see `change`.

        Raises:
            ValueError: the file is no picture that can be read.
        """
        yield from self.change(path, self.sentences[:top])

    @torch.inference_mode()
    def change(self, path: str | Path, sentences: Sequence[str]) -> Iterator[dict[str, Any]]:
        """For each sentence `changed`, a picture, with the cosine of picture and sentence `before` and `after`.

        Raises:
            ValueError: the file is no picture that can be read, or there are no sentences, or one that is in no list.
        """
        check_sentences(sentences)
        module, device = self.module, self.module.device
        pixels = torch.from_numpy(np.array(pictures.read(Path(path))))
        given = module.centre(module.guide.preprocess(pixels.permute(2, 0, 1)[None].to(device)))
        if module.task == "enlarge":
            given = enlarged(given)
        ids, mask = (torch.from_numpy(x).to(device) for x in self.tokenizer(sentences, self.length))
        for sentence, text in zip(sentences, module.guide.encode_texts(ids, mask).split(1), strict=True):
            changed, _ = module.drawn(given, text)
            before, after = ((module.seen(x)[0] * text).sum().item() for x in (given, changed))
            yield {
                "sentence": sentence,
                "before": round(before, 6),
                "after": round(after, 6),
                "changed": Image.fromarray(module.stored(changed)[0].cpu().numpy()),
            }
