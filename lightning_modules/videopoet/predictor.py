"""Answers about a user's files: pictures that move, clips that go on, sound for clips, clips for texts and sounds.

Tasks are chained (section 3.5): what is written from a picture, a text or an earlier clip gets its sound from the same
network, where it has learnt to write sound.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lightning_modules.datasets.pictures import stored as stored_picture
from lightning_modules.datasets.video.films import Film, Sound
from lightning_modules.datasets.video.hearing import read_sound
from lightning_modules.predictors import Predictor
from lightning_modules.video_tokens.predictor import clip_of
from lightning_modules.video_tokens.training import stored
from lightning_modules.videopoet.audio import HIGHEST, stored_sound
from lightning_modules.videopoet.module import VideoPoet
from lightning_modules.videopoet.text import cutter

PICTURES, SOUNDS, TEXTS = (".png", ".jpg", ".jpeg", ".webp", ".bmp"), (".wav", ".mp3", ".flac", ".ogg"), (".txt",)
Video = Float[Tensor, "1 3 frames h w"]


class Director(Predictor):
    """What a language model of videos makes of a file, by its kind: video, picture, sound, or text.

    Args:
        module: a trained language model.
        record: not needed.
    """

    def __init__(self, module: VideoPoet, record: dict | None = None):
        self.module = module.eval()

    @property
    def rate(self) -> float:
        """Frames a second."""
        codec = self.module.codec
        return self.module.tokenizer.frames * codec.rate / codec.samples

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """Films, as far as the network has learnt the tasks that they need.

        A video gets sound (`v2a`) and goes on (`fp`); a picture begins to move (`i2v`); a sound gets a video (`a2v`); a
        text file has a caption in each line, and each gets a video (`t2v`). Films that are written get sound, too.

        An answer has `task` and `film`; where sound is written also `sound`; of a text its `caption`.

        Raises:
            ValueError: the file cannot be read, or the network has learnt no task for it.
        """
        path, found = Path(path), False
        ways: dict[tuple[str, ...], Callable[[Path], Iterator[dict[str, Any]]]] = {
            PICTURES: self._animated, SOUNDS: self._pictured, TEXTS: self._staged,
        }  # fmt: skip
        way = next((way for suffixes, way in ways.items() if path.suffix.lower() in suffixes), self._continued)
        with torch.inference_mode():
            for answer in way(path):
                found = True
                yield answer
        if not found:
            raise ValueError(
                f"the network has learnt {', '.join(self.module.tasks)}, of which nothing can be made of {path}: take "
                "an arm with all tasks, such as videopoet."
            )

    def _continued(self, path: Path) -> Iterator[dict[str, Any]]:
        video = clip_of(path, self.module.tokenizer)
        if "v2a" in self.module.tasks:
            yield {"row": "sound", "task": "sound for the video", **self._film(video)}
        if "fp" in self.module.tasks:
            longer = self.module.extended(video, self.module.segments)
            yield {"row": "longer", "task": "the video goes on", "film": Film(_frames(longer), self.rate)}

    def _animated(self, path: Path) -> Iterator[dict[str, Any]]:
        if "i2v" not in self.module.tasks:
            return
        tokenizer, white = self.module.tokenizer, self.module.pixel_scale
        picture = stored_picture(path, (3, tokenizer.size, tokenizer.size), int(white))
        batch = {"video": torch.from_numpy(picture)[:, :, None].expand(-1, -1, tokenizer.frames, -1, -1)}
        yield {"task": "the picture moves", **self._film(self.module.generate("i2v", batch)["video"])}

    def _pictured(self, path: Path) -> Iterator[dict[str, Any]]:
        if "a2v" not in self.module.tasks:
            return
        codec = self.module.codec
        samples = read_sound(path, 0.0, codec.samples, codec.rate)
        video = self.module.generate("a2v", self._blank(1) | {"audio": torch.from_numpy(samples)[None]})["video"]
        yield {"task": "a video for the sound", "film": Film(_frames(video), self.rate, Sound(samples, codec.rate))}

    def _staged(self, path: Path) -> Iterator[dict[str, Any]]:
        if "t2v" not in self.module.tasks:
            return
        try:
            captions = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read as text: {error}. Save it as UTF-8.") from error
        cut = cutter(self.module.text)
        for number, caption in enumerate(captions):
            ids, mask = (torch.from_numpy(x) for x in cut([caption], self.module.text_length))
            batch = self._blank(1) | {"caption": ids, "caption_mask": mask}
            film = self._film(self.module.generate("t2v", batch, seed=number)["video"])
            yield {"row": str(number), "task": "a video of the text", "caption": caption, **film}

    def _blank(self, rows: int) -> dict[str, Tensor]:
        """Clips whose pixels are not looked at."""
        tokenizer = self.module.tokenizer
        return {"video": torch.zeros(rows, 3, tokenizer.frames, tokenizer.size, tokenizer.size)}

    def _film(self, video: Video) -> dict[str, Any]:
        """A clip as a film, with sound where the network can write it."""
        if "v2a" not in self.module.tasks:
            return {"film": Film(_frames(video), self.rate)}
        wave = self.module.generate("v2a", {"video": video * self.module.pixel_scale})["wave"]
        sound = Sound(stored_sound(wave.clamp(-1, 1 - 1 / HIGHEST))[0].numpy(), self.module.codec.rate)
        return {"film": Film(_frames(video), self.rate, sound), "sound": sound}


def _frames(video: Video) -> UInt8[np.ndarray, "frames h w 3"]:
    return stored(video)[0].numpy()
