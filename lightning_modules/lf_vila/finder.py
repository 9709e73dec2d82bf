"""Paragraphs for long videos, and the moment of a sentence in a video: what a trained LF-VILA answers.

finder = load("data/results/tiny/lf_vila/lf_vila")
for paragraph, similarity in finder.rank("mine.mp4", ["the red circle. the blue circle.", "the cyan circle."]):
    print(f"{similarity:.3f}  {paragraph}")
moment = finder.moment("mine.mp4", "the blue circle")
print(moment.begins, moment.ends)
moment.picture.save("moment.png")
"""

import re
import reprlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from lightning_modules.datasets.known_words import check_texts
from lightning_modules.datasets.tokenizers import tokenizer_called
from lightning_modules.datasets.video.annotated import merged
from lightning_modules.datasets.video.files import evenly
from lightning_modules.datasets.video.showing import read_shown, scaled
from lightning_modules.lf_vila.module import LFVILA
from lightning_modules.predictors import Predictor, lines_among

STRIP, BAR, LETTERS = 96, 24, 16  # heights in pixels of frames, of a clip's bar and of the sentence, in a time line
INK, PAPER, BEST, OTHER = (20, 20, 20), (255, 255, 255), (34, 119, 187), (190, 205, 215)
EXAMPLE = "The red circle. The blue one."


class Moment(NamedTuple):
    """Where in a video a sentence is found.

    `begins` and `ends` are the seconds of the best clip, `similarities` those of all clips, and `picture` a time line:
    frames, and under each clip how similar it is.
    """

    begins: float
    ends: float
    similarities: list[float]
    picture: Image.Image


class Finder(Predictor):
    """Ranks paragraphs for videos, and finds sentences in them.

    A paragraph is a line; its sentences end with `.`, `!` or `?`. If it has more than the model reads, neighbours are
    joined as in training (`video.annotated.merged`). A line of one sentence is also looked for in time, unless the
    model was pre-trained without the contrast over time: nothing has taught it then what clips and sentences share.

    Args:
        module: trained in stage one or for retrieval.
        record: `data` that it was trained with, see `predictors.load`.

    Raises:
        ValueError: the model compares no videos and texts, since it has another task.
    """

    def __init__(self, module: LFVILA, record: dict | None = None):
        if module.task != "align":
            raise ValueError(
                f"this model was trained for the task {module.task!r}; expected one of the task 'align', such as "
                "data/results/tiny/lf_vila/lf_vila"
            )
        self.module = module.eval()
        data = (record or {}).get("data", {})
        self.tokenizer, self.length = tokenizer_called(data.get("tokenizer")), data.get("text_length", 50)
        self.sentences = module.network.clips
        self.tells_moments = module.time_weight > 0 or module.stage == "finetune"
        self.lines: list[str] = []

    def begin(self, inputs: Sequence[Path], among: Path | None = None) -> list[Path]:
        """Take the paragraphs from the one text file among the inputs, or from `among`.

        Raises:
            ValueError: there is not exactly one text file, or it has no paragraphs or one without a word that the model
                knows, or nothing else is there.
        """
        videos, self.lines = lines_among(inputs, among, "paragraphs")
        check_texts(self.lines, self.tokenizer, "paragraphs", EXAMPLE)
        return videos

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """The `top` paragraphs for a video file, see `begin`; of those with one sentence also its moment.

        `row` is the number of the paragraph, from 0 on.

        Raises:
            BrokenVideo: the file is not there or cannot be decoded.
            ValueError: there are no paragraphs.
        """
        check_texts(self.lines, self.tokenizer, "paragraphs", EXAMPLE)
        seen = self._read(path)
        for rank, (row, similarity) in enumerate(self._ranked(seen, self.lines)[:top], start=1):
            paragraph = self.lines[row]
            found = {"row": row, "rank": rank, "similarity": round(similarity, 6), "paragraph": paragraph}
            if self.tells_moments and len(split_sentences(paragraph)) == 1:
                moment = self._moment(seen, paragraph)
                found |= {"begins": round(moment.begins, 2), "ends": round(moment.ends, 2), "moment": moment.picture}
            yield found

    def rank(self, path: str | Path, paragraphs: Sequence[str]) -> list[tuple[str, float]]:
        """The paragraphs with their cosine similarity to a video file, the most similar first.

        Raises:
            BrokenVideo: the file is not there or cannot be decoded.
            ValueError: there are no paragraphs, or one that is in no list or has no word that the model knows.
        """
        check_texts(paragraphs, self.tokenizer, "paragraphs", EXAMPLE)
        return [(paragraphs[row], similarity) for row, similarity in self._ranked(self._read(path), paragraphs)]

    def moment(self, path: str | Path, sentence: str) -> Moment:
        """Where in a video file a sentence is found.

        Raises:
            BrokenVideo: the file is not there or cannot be decoded.
            ValueError: the sentence is no text, or several, or has no word that the model knows; or the model was
                pre-trained without the contrast over time.
        """
        if not self.tells_moments:
            raise ValueError(
                "this model was pre-trained with model.time_weight 0, so nothing has taught it where in a video a "
                "sentence is; expected one with the contrast over time, such as data/results/tiny/lf_vila/lf_vila"
            )
        if not isinstance(sentence, str) or not sentence.strip():
            raise ValueError(f"sentence is {reprlib.repr(sentence)}, expected a text such as 'the blue circle'.")
        if len(said := split_sentences(sentence)) > 1:
            raise ValueError(
                f"sentence is {reprlib.repr(sentence)}, which are {len(said)}: ask for each by itself, or `rank` them "
                "as a paragraph."
            )
        check_texts([sentence], self.tokenizer, "sentence", "the blue circle")
        return self._moment(self._read(path), sentence)

    @torch.inference_mode()
    def encode_texts(
        self, paragraphs: Sequence[str]
    ) -> tuple[Float[Tensor, "paragraphs dim"], Float[Tensor, "paragraphs sentences dim"]]:
        """Features of paragraphs, and of their sentences; of missing sentences they say nothing."""
        ids = torch.full((len(paragraphs), self.sentences, self.length), self.tokenizer.pad_id)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for row, paragraph in enumerate(paragraphs):
            said = merged(split_sentences(paragraph), self.sentences)[0]
            found = self.tokenizer(said, self.length)
            ids[row, : len(said)], mask[row, : len(said)] = (torch.from_numpy(x) for x in found)
        device = self.module.device
        return tuple(x.cpu() for x in self.module.network.text_features(ids.to(device), mask.to(device)))

    @torch.inference_mode()
    def _read(self, path: str | Path) -> "_Seen":
        network = self.module.network
        shown = read_shown(
            Path(path),
            partial(evenly, shown=network.frames),
            partial(_centred, height=network.size[0], width=network.size[1]),
        )
        video = rearrange(torch.from_numpy(shown.frames), "t h w c -> 1 c t h w").to(self.module.device)
        whole, clips = network.video_features(self.module.read(video))
        return _Seen(whole[0].cpu(), clips[0].cpu(), shown.frames, shown.seconds)

    def _ranked(self, seen: "_Seen", paragraphs: Sequence[str]) -> list[tuple[int, float]]:
        """The numbers of the paragraphs with their similarity, the most similar first."""
        similarity = (self.encode_texts(paragraphs)[0] @ seen.whole).tolist()
        return sorted(enumerate(similarity), key=lambda pair: -pair[1])

    def _moment(self, seen: "_Seen", sentence: str) -> Moment:
        similarity = (seen.clips @ self.encode_texts([sentence])[1][0, 0]).tolist()
        best, count = int(np.argmax(similarity)), len(similarity)
        times = [seen.seconds * number / count for number in (best, best + 1)]
        return Moment(*times, similarity, time_line(seen.frames, similarity, sentence, seen.seconds))


class _Seen(NamedTuple):
    whole: Float[Tensor, " dim"]
    clips: Float[Tensor, "clips dim"]
    frames: UInt8[np.ndarray, "shown height width 3"]
    seconds: float


def split_sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph, without their ends."""
    return [part.strip() for part in re.split(r"[.!?]+(?:\s+|$)", paragraph) if part.strip()] or [paragraph]


def time_line(
    frames: UInt8[np.ndarray, "shown height width 3"], similarity: Sequence[float], sentence: str, seconds: float
) -> Image.Image:
    """Frames in a row, and a bar under each clip with its begin and cosine: from the lowest to the highest, in blue."""
    small = [Image.fromarray(frame) for frame in frames]
    small = [picture.resize((STRIP * picture.width // picture.height, STRIP)) for picture in small]
    across = small[0].width
    sheet = Image.new("RGB", (across * len(small), STRIP + 2 * BAR + LETTERS), PAPER)
    for place, picture in enumerate(small):
        sheet.paste(picture, (place * across, 0))
    draw, width, floor = ImageDraw.Draw(sheet), sheet.width / len(similarity), STRIP + 2 * BAR
    least, most = min(similarity), max(similarity)
    for clip, value in enumerate(similarity):
        high = LETTERS + round((2 * BAR - LETTERS) * (value - least) / max(most - least, 1e-9))
        color = BEST if clip == int(np.argmax(similarity)) else OTHER
        draw.rectangle([clip * width + 2, floor - high, (clip + 1) * width - 3, floor - 1], fill=color)
        begins = f"{seconds * clip / len(similarity):.1f} s: {value:.2f}"
        draw.text((clip * width + 4, floor - LETTERS), begins, fill=INK)
    draw.text((4, floor + 2), sentence, fill=INK)
    return sheet


def _centred(picture: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """The largest central part of the wanted shape, scaled to it."""
    tall, wide = picture.shape[:2]
    cut = min(tall, wide * height // width), min(wide, tall * width // height)
    top, left = (tall - cut[0]) // 2, (wide - cut[1]) // 2
    return scaled(picture[top : top + cut[0], left : left + cut[1]], height, width)
