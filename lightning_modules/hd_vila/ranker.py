"""Sentences ranked for a video file of high resolution, by a trained HD-VILA.

from lightning_modules.predictors import load

ranker = load("data/results/tiny/hd_vila/hd_vila")
for sentence, similarity in ranker.rank("clip.mp4", ["a red striped circle moving left"]):
    print(f"{similarity:.3f}  {sentence}")
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from lightning_modules.datasets.known_words import check_texts
from lightning_modules.datasets.tokenizers import tokenizer_called
from lightning_modules.datasets.video.files import evenly, read_frames
from lightning_modules.hd_vila.hybrid import Hybrid
from lightning_modules.hd_vila.module import HdVila
from lightning_modules.predictors import Predictor, lines_among

EXAMPLE = "a red circle moving left"


class Ranker(Predictor):
    """Ranks sentences for videos, which are read as the module reads them: one sharp frame, small neighbours.

    Args:
        module: the trained networks.
        record: `data` that it was trained on, see `predictors.load`.

    Raises:
        ValueError: the module was trained for another task than features.
    """

    def __init__(self, module: HdVila, record: dict):
        if module.task != "contrast":
            raise ValueError(
                f"this model was trained for {module.task!r}; sentences are ranked by one of task 'contrast'."
            )
        self.module, data = module.eval(), record["data"]
        self.tokenizer, self.text_length = tokenizer_called(data.get("tokenizer")), data["text_length"]
        self.hybrid = None
        if "source_size" in data:  # as `HybridClips` shows videos
            sizes = tuple(data["source_size"]), tuple(data["size"])
            self.hybrid = Hybrid(data["frames"], data["stride"], *sizes, data["middles"], data.get("padded", False))
            self.clips, self.rate = data["evaluation_clips"], data.get("rate")
        self.sentences: list[str] = []

    def begin(self, inputs: Sequence[Path], among: Path | None = None) -> list[Path]:
        """Take the sentences that videos are compared with from the one text file among the inputs, or from `among`.

        Raises:
            ValueError: there is not exactly one text file, or it has no sentences or one without a word that the model
                knows, or nothing else is there.
        """
        videos, self.sentences = lines_among(inputs, among, "sentences")
        check_texts(self.sentences, self.tokenizer, "sentences", EXAMPLE)
        return videos

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """The `top` sentences that fit a video file best, see `begin`.

        Raises:
            BrokenVideo: the file is not there or cannot be decoded.
        """
        for rank, (sentence, similarity) in enumerate(self.rank(path, self.sentences)[:top], start=1):
            yield {"rank": rank, "similarity": round(similarity, 6), "sentence": sentence}

    @torch.inference_mode()
    def rank(self, path: str | Path, sentences: Sequence[str]) -> list[tuple[str, float]]:
        """The sentences with their cosine similarity to a video file, the most similar first.

        The file is read as videos are judged. A model of the drawn world gets frames that are spread evenly over it.

        Raises:
            BrokenVideo: the file is not there or cannot be decoded, or is too short.
            ValueError: there are no sentences, or one that is in no list or has no word that the model knows.
        """
        check_texts(sentences, self.tokenizer, "sentences", EXAMPLE)
        token_ids, mask = (torch.from_numpy(x) for x in self.tokenizer(sentences, self.text_length))
        device = self.module.device
        video = self.module.encode(*self.module.clips_of({name: x.to(device) for name, x in self._read(path).items()}))[
            0
        ]
        similarity = (self.module.encode_texts(token_ids.to(device), mask.to(device)) @ video).tolist()
        return sorted(zip(sentences, similarity, strict=True), key=lambda pair: -pair[1])

    def _read(self, path: str | Path) -> dict[str, Tensor]:
        """A batch of one video, without texts."""
        if self.hybrid is None:
            choose = partial(evenly, shown=self.module.clips * self.module.frames)
            frames = torch.from_numpy(read_frames(Path(path), choose, self.module.size[0], antialias=True))
            return {"video": rearrange(frames, "t h w c -> 1 c t h w")}
        high, low = (torch.from_numpy(x) for x in self.hybrid.read(Path(path), self.clips, rate=self.rate))
        return {
            "middle": rearrange(high, "k h w c -> 1 k c h w"),
            "neighbours": rearrange(low, "k t h w c -> 1 k t c h w"),
        }
