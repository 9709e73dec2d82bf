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
from lightning_modules.videopoet.prompts import Asked, read_asked
from lightning_modules.videopoet.text import cutter

PICTURES, SOUNDS, TEXTS = (".png", ".jpg", ".jpeg", ".webp", ".bmp"), (".wav", ".mp3", ".flac", ".ogg"), (".txt",)
LONGEST = 512  # tokens of a text that are looked at, to say how many it has
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
        text file has captions, see `prompts`, and each gets a video (`t2v`). Films that are written get sound, too.

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
        for number, asked in enumerate(read_asked(path)):
            film = self._film(self.written(asked, seed=number))
            yield {"row": str(number), "task": "a video of the text", "caption": asked.caption, **film}

    def written(self, asked: Asked, seed: int = 0) -> Video:
        """The clip of a caption, away from its negative prompt.

        Raises:
            ValueError: a text has more words than there are places, or there is a negative prompt without guidance.
        """
        module, batch = self.module, self._told(asked.caption)
        options = {} if asked.guidance is None else {"guidance": asked.guidance}
        if not asked.avoided:
            return module.generate("t2v", batch, seed=seed, **options)["video"]
        options = module.decoding | options
        if not options["guidance"]:
            raise ValueError(
                f"{asked.avoided!r} is to be avoided, but guidance is 0, so that nothing is: write 'guidance: 2' above "
                "the caption."
            )
        layout = module.layouts["t2v"]
        texts = (batch, self._told(asked.avoided))
        given, without = (module.sequences("t2v", each, whole=False) for each in texts)
        ids = module.network.generate(
            given, layout.slots, layout.places, without=without, generator=torch.Generator().manual_seed(seed),
            **options | {"top_k": int(options["top_k"])},
        )  # fmt: skip
        return module.drawn(module.words.visual_tokens(layout.written(ids)["video"]))

    def _told(self, text: str) -> dict[str, Tensor]:
        """A batch of one text.

        Raises:
            ValueError: it has more words than there are places.
        """
        cut, places = cutter(self.module.text), self.module.text_length
        ids, mask = cut([text], max(places, LONGEST))
        if (count := int(mask.sum())) > places:
            raise ValueError(
                f"{text!r} takes {count} tokens with its start and end, but this model reads {places}: make it shorter."
            )
        return self._blank(1) | {"caption": torch.from_numpy(ids[:, :places]),
                                 "caption_mask": torch.from_numpy(mask[:, :places])}  # fmt: skip

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
