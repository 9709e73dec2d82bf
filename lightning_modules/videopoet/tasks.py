"""The tasks as data: what a task is given, and what it writes (section 3.3; the arrangement is `sequences.layout`).

The prompt names the kind of what is written, and not what is given: video from text, from an image and from nothing
have one prompt. Whether a task that is given first frames writes these again is not said in the paper; here it writes
what follows. Stylisation is given a caption with optical flow and depth of a clip (`guides.py`), and writes one that
moves alike; the paper gives the first frame too in some cases, which is not here.
"""

from dataclasses import dataclass
from typing import Literal

from lightning_modules.video_tokens.tasks import TASKS as MASKED
from lightning_modules.video_tokens.tasks import Conditions

PROMPTS = ("task/image", "task/video", "task/sound", "task/both")  # by what is written
Part = Literal["image", "start", "whole", "rest"]  # the first latent frame, the first ones, all, all after the given


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        title: in words.
        text: whether a caption is given.
        visual: latent frames that are given, as tokens of the clip itself.
        condition: what of the pixels is given, filled up to a whole clip.
        guided: whether optical flow and depth of a whole clip are given.
        audio: whether the sound is given, whole or of the first frame alone.
        video: latent frames that are written.
        sound: whether sound is written, whole or what is not given of it.
    """

    title: str
    text: bool = False
    visual: Part | None = None
    condition: Conditions | None = None
    guided: bool = False
    audio: Part | None = None
    video: Part | None = None
    sound: Part | None = None

    @property
    def prompt(self) -> str:
        """Name of the special that tells what is to be written."""
        if self.video and self.sound:
            return "task/both"
        return "task/sound" if self.sound else "task/image" if self.video == "image" else "task/video"


TASKS = {
    "unc": Task("video from nothing", video="whole"),
    "t2v": Task("video from text", text=True, video="whole"),
    "t2i": Task("image from text", text=True, video="image"),
    "i2v": Task("video from an image", visual="image", video="rest"),
    "fp": Task("frame prediction", visual="start", video="rest"),
    "inpaint": Task("inpainting of the centre", condition=MASKED["ipc"].condition, video="whole"),
    "outpaint": Task("outpainting from the centre", condition=MASKED["opc"].condition, video="whole"),
    "a2v": Task("video from sound", audio="whole", video="whole"),
    "v2a": Task("sound from video", visual="whole", sound="whole"),
    "avcont": Task("video and sound from their beginning", visual="image", audio="image", video="rest", sound="rest"),
    "stylise": Task("video from text, with motion and depth of another", text=True, guided=True, video="whole"),
}
