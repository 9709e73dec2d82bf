"""Measures clips and sounds that a language model writes against what it was given."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_modules.videopoet.motion import background, centres, direction, velocity
from lightning_modules.videopoet.pitch import disagreement, heights

ROOM = 0.2  # of the frame: how far from the border a thing has to be at the end of a clip, for the clip to go on


class Measured:
    """Measurements on clips that are written, beside real ones.

    Args:
        real: clips of the data, pixels from 0 to 1, which show the background too.
    """

    def __init__(self, real: Float[Tensor, "batch 3 frames h w"]):
        self.behind = background(real)
        self.frames, self.real = real.shape[2], self.centres(real)

    def centres(self, video: Float[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch frames 2"]:
        """See `motion.centres`."""
        return centres(video, self.behind)

    def written(
        self,
        labels: Int[Tensor, " batch"],
        made: Mapping[str, Float[Tensor, "batch 3 frames h w"]],
        wave: Float[Tensor, "batch samples"],
        sound: Float[Tensor, "batch samples"],
        chained: Float[Tensor, "batch samples"],
    ) -> dict[str, Tensor]:
        """Of each clip, whether the thing goes as told (`.../right`), and how well picture and sound agree.

        `.../height` is the mean distance between the heights that are seen and heard, as a share of the frame;
        `.../other_height` is that to another clip. Of real clips both are `truth/...`.

        Args:
            labels: the directions that captions tell.
            made: clips `again` (through the tokenizer), `t2v` and `a2v`.
            wave: the clips' sound.
            sound: that is written for them.
            chained: that is written for the clips written from text, so that two tasks follow one another.
        """
        found = {
            "truth/right": direction(self.real) == labels,
            "ceiling/right": direction(self.centres(made["again"])) == labels,
            "t2v/right": direction(self.centres(made["t2v"])) == labels,
        }
        pairs = {
            "truth": (wave, self.real),
            "a2v": (wave, self.centres(made["a2v"])),
            "v2a": (sound, self.real),
            "t2v_v2a": (chained, self.centres(made["t2v"])),
        }
        for name, (told, seen) in pairs.items():
            heard = heights(told)
            found[f"{name}/height"] = disagreement(heard, seen[..., 1])
            found[f"{name}/other_height"] = disagreement(heard, seen[..., 1].roll(1, 0))
        return found

    def chained(
        self, longer: Float[Tensor, "batch 3 longer h w"], apart: Float[Tensor, "batch 3 longer h w"]
    ) -> dict[str, Tensor]:
        """Of each clip, `chaining/speed`, how far the velocity in the segments that continue it is from its own.

        In sides of a frame per frame; `chaining/control/speed` is that of the control. `chaining/room`: whether the
        thing is so far from the border that a clip of the data would go on.

        Args:
            longer: clips that were continued.
            apart: the same with segments written from nothing, the control.
        """
        start = self.centres(longer[:, :, : self.frames])
        found = {"chaining/room": room(start[:, -1], direction(start))}
        for name, video in (("chaining", longer), ("chaining/control", apart)):
            faster = velocity(self.centres(video)[:, self.frames :]) - velocity(start)
            found[f"{name}/speed"] = faster.square().sum(1).sqrt()
        return found


def jumps(
    longer: Float[Tensor, "batch 3 longer h w"], apart: Float[Tensor, "batch 3 longer h w"], frames: int
) -> dict[str, Tensor]:
    """Of each clip, the mean squared change of pixels from its last frame to the first that continues it.

    Args:
        longer: clips that were continued, `chaining/step`.
        apart: the same with segments written from nothing, the control, `chaining/control/step`.
        frames: of the clips before.
    """
    pairs = (("chaining", longer), ("chaining/control", apart))
    return {
        f"{name}/step": (video[:, :, frames] - video[:, :, frames - 1]).square().flatten(1).mean(1)
        for name, video in pairs
    }


def room(last: Float[Tensor, "batch 2"], way: Int[Tensor, " batch"]) -> Tensor:
    """Whether there is room ahead of things that are in some places and go right, left, down or up."""
    ahead = torch.stack([1 - last[:, 0], last[:, 0], 1 - last[:, 1], last[:, 1]], 1)
    return ahead.gather(1, way[:, None])[:, 0] > ROOM
