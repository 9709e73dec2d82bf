"""Answers about a user's files: pictures that move, clips that go on, sound for clips, clips for texts and sounds.

Tasks are chained (section 3.5): what is written from a picture, a text or an earlier clip gets its sound from the same
network, where it has learnt to write sound.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lightning_modules.datasets.pictures import stored as stored_picture
from lightning_modules.datasets.video.films import Film, Sound
from lightning_modules.datasets.video.hearing import read_sound
from lightning_modules.datasets.video.sequences import central_square
from lightning_modules.datasets.video.showing import read_shown
from lightning_modules.predictors import Predictor
from lightning_modules.video_tokens.predictor import as_clip, named
from lightning_modules.video_tokens.training import stored
from lightning_modules.videopoet.audio import HIGHEST, stored_sound
from lightning_modules.videopoet.module import VideoPoet
from lightning_modules.videopoet.prompts import Asked, read_asked
from lightning_modules.videopoet.text import cutter

PICTURES, SOUNDS, TEXTS = (".png", ".jpg", ".jpeg", ".webp", ".bmp"), (".wav", ".mp3", ".flac", ".ogg"), (".txt",)
CLIPS = 64  # as long as so many clips is what is read of a video
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

        A video, all of it or its last `CLIPS` clips, gets sound (`v2a`) and goes on after its end (`fp`); a picture
        begins to move (`i2v`); a sound gets a video (`a2v`); a text file has captions, see `prompts`, and each gets a
        video (`t2v`, or `stylise` where it names one to follow).
        Films that are written get sound, too.

        An answer has `task` and `film`; where sound is written also `sound`; of a text its `caption`; of a video
        `read`, which frames of it were looked at.

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
        if not {"v2a", "fp"} & set(self.module.tasks):
            return
        video, read = self._read(path, CLIPS * self.module.tokenizer.frames)
        if "v2a" in self.module.tasks:
            yield {"row": "sound", "task": "sound for the video", "read": read, **self._film(video)}
        if "fp" in self.module.tasks:
            missing = max(0, self.module.known_frames - video.shape[2])
            first = torch.cat([video[:, :, :1].expand(-1, -1, missing, -1, -1), video], 2)
            longer = self.module.extended(first, self.module.segments)[:, :, missing:]
            film = Film(_frames(longer), self.rate)
            yield {"row": "longer", "task": "the video goes on", "read": read, "film": film}

    def _read(self, path: Path, most: int) -> tuple[Video, str]:
        """The last frames of a video file at the model's rate, their central squares, and which frames these are.

        Raises:
            ValueError: the file is not there or cannot be decoded.
        """
        size, told = self.module.tokenizer.size, []

        def choose(total: int) -> Int[np.ndarray, " shown"]:
            told.append(f"{'all' if total <= most else f'the last {most} of'} {total} frames at {self.rate:g} a second")
            return np.arange(max(0, total - most), total)

        with named(path):
            show = partial(central_square, short_side=size, size=size)
            return as_clip(read_shown(path, choose, show, rate=self.rate).frames), told[-1]

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
        for number, asked in enumerate(read_asked(path)):
            if not asked.like and "t2v" not in self.module.tasks:
                continue
            film = self._film(self.written(asked, seed=number))
            task = "a video of the text" + (f", with the motion of {asked.like.name}" if asked.like else "")
            yield {"row": str(number), "task": task, "caption": asked.caption, **film}

    def written(self, asked: Asked, seed: int = 0) -> Video:
        """The clip of a caption, away from its negative prompt, and with the motion of a video if it names one.

        Raises:
            ValueError: a text has more words than there are places, there is a negative prompt without guidance, or a
                video is to be followed that cannot be read, or by a network that has not learnt it.
        """
        module, batch, task = self.module, self._told(asked.caption), "stylise" if asked.like else "t2v"
        if asked.like:
            if task not in module.tasks:
                raise ValueError(
                    f"the motion of {asked.like} is to be followed, but the network has learnt "
                    f"{', '.join(module.tasks)}, and not stylise, which this needs: take an "
                    "arm that has, or leave out 'like:'."
                )
            followed, _ = self._read(asked.like, module.tokenizer.frames)
            missing = module.tokenizer.frames - followed.shape[2]
            batch["video"] = torch.cat([followed, *[followed[:, :, -1:]] * missing], 2) * module.pixel_scale
        options = {} if asked.guidance is None else {"guidance": asked.guidance}
        if not asked.avoided:
            return module.generate(task, batch, seed=seed, **options)["video"]
        options = module.decoding | options
        if not options["guidance"]:
            raise ValueError(
                f"{asked.avoided!r} is to be avoided, but guidance is 0, so that nothing is: write 'guidance: 2' above "
                "the caption."
            )
        layout = module.layouts[task]
        texts = (batch, self._told(asked.avoided) | {"video": batch["video"]})
        given, without = (module.sequences(task, each, whole=False) for each in texts)
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
        """A video as a film, with sound where the network can write it, clip after clip."""
        if "v2a" not in self.module.tasks:
            return {"film": Film(_frames(video), self.rate)}
        length, codec, waves = self.module.tokenizer.frames, self.module.codec, []
        for number, clip in enumerate(video.split(length, 2)):
            whole = torch.cat([clip, *[clip[:, :, -1:]] * (length - clip.shape[2])], 2) * self.module.pixel_scale
            wave = self.module.generate("v2a", {"video": whole}, seed=number)["wave"]
            waves.append(wave[0, : round(clip.shape[2] / length * codec.samples)])
        sound = Sound(stored_sound(torch.cat(waves).clamp(-1, 1 - 1 / HIGHEST)[None])[0].numpy(), codec.rate)
        return {"film": Film(_frames(video), self.rate, sound), "sound": sound}


def _frames(video: Video) -> UInt8[np.ndarray, "frames h w 3"]:
    return stored(video)[0].numpy()
