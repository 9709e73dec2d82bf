"""A trained text-video model as a tool: video files and sentences in, features and rankings out.

retriever = Retriever.load("data/results/tiny/clip_vip/clip_vip-world_video_text")
features = retriever.encode_files(["cat.mp4", "dog.mp4"])       # (2, dim), of length 1
for sentence, similarity in retriever.rank("cat.mp4", ["a cat jumps", "a dog sleeps"]):
    print(f"{similarity:.3f}  {sentence}")
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from safetensors.torch import load_file
from torch import Tensor

from lightning_modules import settings
from lightning_modules.base import PaperModule
from lightning_modules.datasets.tokenizers import TextTokenizer, tokenizer_called
from lightning_modules.datasets.video.files import evenly, read_frames
from lightning_modules.predictors import Predictor, lines_among
from lightning_modules.settings import Count


class Retriever(Predictor):
    """Video and text tower with what comes before them: decoding, frames, size, words.

    Args:
        model: called with stored pixels (batch channels frames height width); `encode_texts` takes token ids. Both give
            features of length 1.
        tokenizer: that of its texts.
        frames: how many are read of a video.
        image_size: side to which they are brought.
        text_length: tokens of a sentence.
        antialias: how frames are made smaller, see `video.files.resized`; official weights know it without.
    """

    def __init__(
        self,
        model: PaperModule,
        tokenizer: TextTokenizer,
        *,
        frames: Count,
        image_size: Count,
        text_length: Count,
        antialias: bool = False,
    ):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.frames, self.image_size, self.text_length = frames, image_size, text_length
        self.antialias = antialias
        self.sentences: list[str] = []

    @classmethod
    def load(cls, folder: str | Path) -> "Retriever":
        """The model that an evaluation has written: `retriever.json` and `retriever.safetensors`.

        Raises:
            ValueError: the folder has no such files.
        """
        folder = Path(folder)
        if not (folder / "retriever.json").is_file():
            raise ValueError(f"{folder} holds no retriever.json; `make repro` writes data/results/tiny/clip_vip/.")
        record = json.loads((folder / "retriever.json").read_text())
        model = settings.bind(record["model"], f"{folder}/retriever.json: model")()
        model.start_from(load_file(folder / "retriever.safetensors"))
        words, clip = record["tokenizer"], record["model"]["clip"]
        return cls(
            model,
            tokenizer_called(words),
            frames=record["model"]["frames"],
            image_size=clip["vision"]["image_size"],
            text_length=clip["text"]["max_position_embeddings"],
            antialias=words is None,  # the captioned world draws its clips as small as they are: nothing aliases
        )

    def begin(self, inputs: Sequence[Path], among: Path | None = None) -> list[Path]:
        """Take the sentences that videos are compared with from the one text file among the inputs, or from `among`.

        Raises:
            ValueError: there is not exactly one text file, or it has no sentences, or nothing else is there.
        """
        videos, self.sentences = lines_among(inputs, among, "sentences")
        return videos

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """The `top` sentences that fit a video file best, see `begin`.

        Raises:
            BrokenVideo: the file is not there or cannot be decoded.
        """
        for rank, (sentence, similarity) in enumerate(self.rank(path, self.sentences)[:top], start=1):
            yield {"rank": rank, "similarity": round(similarity, 6), "sentence": sentence}

    def encode_files(self, paths: Sequence[str | Path]) -> Float[Tensor, "videos dim"]:
        """Features of video files.

        Raises:
            BrokenVideo: a file is not there or cannot be decoded.
        """
        read = partial(
            read_frames,
            choose=partial(evenly, shown=self.frames),
            size=self.image_size,
            antialias=self.antialias,
        )
        return torch.cat([self.encode_frames(read(Path(path))) for path in paths])

    @torch.inference_mode()
    def encode_frames(self, frames: Iterable[UInt8[np.ndarray, "_ _ 3"]]) -> Float[Tensor, "1 dim"]:
        """Features of one video, given as its frames.

        Raises:
            ValueError: they differ in size, or are of another than the model reads.
        """
        frames = list(frames)
        if len(sizes := {frame.shape for frame in frames}) != 1:
            raise ValueError(f"the frames of a video must be of one size; got {sorted(sizes)}.")
        video = rearrange(torch.from_numpy(np.stack(frames)), "t h w c -> 1 c t h w")
        return self.model(video.to(self.model.device)).cpu()

    @torch.inference_mode()
    def encode_texts(self, sentences: Sequence[str]) -> Float[Tensor, "sentences dim"]:
        """Features of sentences; longer ones than the model reads are cut."""
        token_ids, _ = self.tokenizer(sentences, self.text_length)
        return self.model.encode_texts(torch.from_numpy(token_ids).to(self.model.device)).cpu()

    def predict(self, model_input: Sequence[str], params: dict | None = None) -> np.ndarray:
        """Features of videos and sentences, as `mlflow.pyfunc.load_model(...).predict` gives them.

        Args:
            model_input: one string each: the path of a video file, or a sentence. A list, a column or a table of one.
            params: part of MLflow's interface; not used.

        Returns:
            Features (strings, dim) of length 1: a product of two rows is their similarity.
        """
        given = [str(text) for text in np.asarray(model_input).ravel()]
        each = [self.encode_files([text]) if Path(text).is_file() else self.encode_texts([text]) for text in given]
        return torch.cat(each).numpy()

    def rank(self, path: str | Path, sentences: Sequence[str]) -> list[tuple[str, float]]:
        """The sentences with their cosine similarity to a video file, the most similar first."""
        similarity = (self.encode_texts(sentences) @ self.encode_files([path])[0]).tolist()
        return sorted(zip(sentences, similarity, strict=True), key=lambda pair: -pair[1])
