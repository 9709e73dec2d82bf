"""Answers about a user's pictures, clips and sounds: which of the user's texts are nearest."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_modules.datasets.pictures import read
from lightning_modules.datasets.sentence_pieces import SentencePieces
from lightning_modules.datasets.sounds import read_whole
from lightning_modules.datasets.tokenizers import TextTokenizer
from lightning_modules.datasets.video.files import evenly, read_frames
from lightning_modules.predictors import Predictor, lines_among

CLIPS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".gif", ".m4v")
SHOWN = 60  # letters of a text in a message
SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".m4a")


@runtime_checkable
class Compares(Protocol):
    """What is asked of the trained model; `shown` is the side of pictures, frames of clips and samples of sounds."""

    modalities: Mapping[str, Mapping[str, Any]]
    tasks: Mapping[str, Mapping[str, Any]]
    shown: Mapping[str, int]
    tokenizer: TextTokenizer | SentencePieces

    def embed_texts(self, texts: Sequence[str], target: str) -> Float[Tensor, "texts common"]:
        """Vectors of length 1."""

    def embed(self, modality: str, batch: Mapping[str, Tensor], target: str = "text") -> Float[Tensor, "rows common"]:
        """Vectors of length 1 of `images`, `video` or `audio`."""


class Nearest(Predictor):
    """Files and texts of a user.

    Args:
        module: a trained model.
        record: content of `predictor.json`; its block `data` says which tasks were learnt, and how long texts were.
    """

    def __init__(self, module: Compares, record: dict | None = None):
        self.module, self.texts = module, []
        data = (record or {}).get("data", {})
        self.learnt = {name: module.tasks[name] for name in data.get("trained") or module.tasks}
        told = (
            each["data"].get("text_length", 0) for name, each in data.get("tasks", {}).items() if name in self.learnt
        )
        self.longest = max(told, default=0) or module.modalities.get("text", {}).get("buckets", 0)
        self._kept: dict[str, tuple[list[str], Tensor]] = {}

    def begin(self, inputs: Sequence[Path], among: Path | None = None) -> list[Path]:
        """Take the texts from the one text file (.txt) among the inputs, or `among`, one on each line.

        Raises:
            ValueError: there is not exactly one text file, it is empty, or nothing else is there; a text is too long or
                of unknown words; or the model has learnt nothing with texts.
        """
        others, self.texts = lines_among(inputs, among, "texts", "pictures, clips or sounds")
        self._check_texts(self.texts)
        return others

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """The `top` texts that are nearest to a file.

        Raises:
            ValueError: the file cannot be read, or the model was not trained to compare such files with texts.
        """
        for rank, (text, similarity) in enumerate(self.rank(path, self.texts)[:top], start=1):
            yield {"rank": rank, "similarity": round(similarity, 6), "text": text}

    @torch.inference_mode()
    def rank(self, path: str | Path, texts: Sequence[str]) -> list[tuple[str, float]]:
        """Texts with their cosine similarity to a picture, a clip or a sound, the most similar first.

        Raises:
            ValueError: see `answer` and `begin`.
        """
        if not texts:
            return []
        self._check_texts(texts)
        modality, batch = self.opened(Path(path))
        self._check_compared(modality)
        similarity = (self._vectors(texts, modality) @ self.module.embed(modality, batch)[0]).tolist()
        return sorted(zip(texts, similarity, strict=True), key=lambda pair: -pair[1])

    def opened(self, path: Path) -> tuple[str, dict[str, Tensor]]:
        """The modality of a file, and its content as a batch of one.

        Raises:
            ValueError: it cannot be read.
        """
        if path.suffix.lower() in SOUNDS:
            if "spectrogram" not in self.module.modalities:
                raise ValueError(f"{path} is a sound, and the model hears none: give pictures or clips.")
            return "spectrogram", {"audio": self._sound(path, self.module.modalities["spectrogram"]["rate"])}
        if path.suffix.lower() in CLIPS:
            return "vision", {"video": self._clip(path)}
        image = read(path).resize((self.module.shown["side"],) * 2)
        return "vision", {"images": torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]}

    def _check_texts(self, texts: Sequence[str]) -> None:
        """Refuse texts that the model cannot read."""
        self._check_compared(None)
        tokenizer = self.module.tokenizer
        nothing = [tokenizer.pad_id, tokenizer.end_id, tokenizer.unknown_id, getattr(tokenizer, "start_id", None)]
        for text, ids, there in zip(texts, *tokenizer(list(texts), self.longest + 1), strict=True):
            if there.sum() > self.longest:
                raise ValueError(
                    f"{text[:SHOWN]!r} takes more than the {self.longest} tokens of the model: make it shorter."
                )
            if set(ids.tolist()) <= set(nothing):
                raise ValueError(
                    f"{text[:SHOWN]!r} has no word that the model knows: use those of the texts it was trained on."
                )

    def _check_compared(self, modality: str | None) -> None:
        """Refuse a modality, or null for all, that no task which was learnt has compared with texts."""
        compared = [task["modalities"] for task in self.learnt.values() if task["objective"] == "contrast"]
        if not any("text" in each and (modality is None or modality in each) for each in compared):
            raise ValueError(
                f"the model has learnt {' and '.join(self.learnt)}, where no {modality or 'file'} is compared with "
                "texts: take the results of another arm, such as imp."
            )

    def _clip(self, path: Path) -> Tensor:
        """Frames evenly spread over a clip, as squares."""
        shown = self.module.shown
        frames = read_frames(path, lambda total: evenly(total, shown["frames"]), shown["side"], antialias=True)
        return torch.from_numpy(frames).permute(3, 0, 1, 2)[None]

    def _sound(self, path: Path, rate: int) -> Tensor:
        """The beginning of a sound, with silence behind where it is too short."""
        samples = self.module.shown["samples"]
        heard = read_whole(path, rate)[:samples]
        return torch.from_numpy(np.pad(heard, (0, samples - len(heard))))[None]

    @torch.inference_mode()
    def _vectors(self, texts: Sequence[str], modality: str) -> Float[Tensor, "texts common"]:
        """Those of the texts of before are kept, for the next file."""
        kept = self._kept.get(modality)
        if kept is None or kept[0] != list(texts):
            self._kept[modality] = list(texts), self.module.embed_texts(texts, modality)
        return self._kept[modality][1]
