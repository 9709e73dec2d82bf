"""Answers about a user's pictures of landscapes: films in which they move, on their own or as a clip does."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lightning_modules.datasets.pictures import read
from lightning_modules.datasets.video.files import BrokenVideo
from lightning_modules.datasets.video.films import Film
from lightning_modules.datasets.video.sequences import central_square
from lightning_modules.datasets.video.showing import read_shown
from lightning_modules.fgla.evaluation import coloured
from lightning_modules.fgla.module import Codes, Fgla
from lightning_modules.fgla.warping import accumulate, animated, warp
from lightning_modules.predictors import Predictor
from lightning_modules.video_tokens.training import stored

RATE = 8.0  # frames a second of a film
LARGEST = 1024  # pixels of a film's longer side
SMALLEST = 128  # pixels a side that OpenCV's flow is computed of
NARROWEST = 32  # times that one side of a picture may be as long as the other: of longer ones no film can be coded
VIDEOS = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v")


class Landscapes(Predictor):
    """Pictures that move: as the training clips that look most alike, by chance, or as clips of the user's.

    Args:
        module: a trained FGLA.
        record: content of `predictor.json`; its block `data` says how far apart frames are.
    """

    def __init__(self, module: Fgla, record: dict | None = None):
        self.module, self.clips = module.eval(), []
        self.stride = int((record or {}).get("data", {}).get("stride", 1))

    def begin(self, inputs: Sequence[Path], among: Path | None = None) -> list[Path]:
        """Pictures are to be animated; videos among the inputs, or in folders, are clips whose motion they get.

        Raises:
            ValueError: there is no picture, a folder lies in a folder, or films of two clips would have one name.
        """
        super().begin([], among)
        inputs = [path for given in inputs for path in files_of(given)]
        self.clips = [path for path in inputs if path.suffix.lower() in VIDEOS]
        pictures = [path for path in inputs if path.suffix.lower() not in VIDEOS]
        names = [row_of(clip.stem) for clip in self.clips]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"films of two clips would be called {twice!r}: rename one of the clips.")
        if not pictures:
            raise ValueError(f"there are {len(self.clips)} clips and no picture: give a picture to be animated.")
        return pictures

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """A film for each clip that was given to `begin`; if none was, one that is recalled, and `top` by chance.

        Motion is drawn by chance only where the encoder is variational. The flow is computed at the model's size and
        enlarged, so that a film has the picture's own resolution, up to 1,024 pixels. An answer has `motion`, the
        `film`, its `frames` side by side at the model's size, the `flow` of each step (steps 2 h w) in pixels there,
        and its `colours`: hue is direction, saturation length.

        Raises:
            ValueError: the picture or a clip cannot be read, the picture is very long and narrow, a clip has a single
                frame, or the model remembers no training clip whose motion could be recalled.
        """
        picture = _tensor(np.array(read(Path(path))))
        height, width = picture.shape[-2:]
        if max(height, width) > NARROWEST * min(height, width):
            raise ValueError(
                f"{path} has {width} x {height} pixels, expected sides of which one is at most {NARROWEST} times the "
                "other: cut a part out."
            )
        small = self.squeezed(picture)
        with torch.inference_mode():
            for name, codes in self.motions(small, top):
                flows = self.module.moved(small, codes)
                low = self.module.rendered(small, flows, codes)
                film = stored(self.enlarged(picture, small, flows, low))[0].numpy()
                frames = stored(low)[0].numpy()
                yield {
                    "row": row_of(name),
                    "motion": name,
                    "film": Film(film, RATE),
                    "frames": _picture(np.concatenate(list(frames), axis=1)),
                    "flow": flows[0].numpy(),
                    "colours": _picture(np.concatenate(list(in_colours(flows[0].numpy())), axis=1)),
                }

    def motions(self, small: Float[Tensor, "1 3 size size"], drawn: int) -> Iterator[tuple[str, Codes]]:
        """Names and codes of all motions that a picture is to get.

        Args:
            small: the picture at the model's size.
            drawn: how many by chance; their light stays as it is.

        Raises:
            ValueError: see `answer`.
        """
        for clip in self.clips:
            yield clip.stem, self.codes_of(clip)
        if self.clips:
            return
        if not self.module.known.any():
            raise ValueError("the model remembers no training clip, so nothing can be recalled: give a clip, too.")
        yield "recalled", self.module.recall(small)
        for number in range(drawn if self.module.encoder.variational else 0):
            yield f"by chance {number}", self.module.prior(1, torch.Generator().manual_seed(number))

    def codes_of(self, clip: Path) -> Codes:
        """The codes of a clip: of its middle, frames as far apart as in training; fewer of a short one.

        An encoder that sees flows, but has no network for them, gets those of OpenCV (Farneback's).

        Raises:
            ValueError: the file cannot be read, or has a single frame.
        """
        module = self.module
        show = partial(central_square, short_side=module.size, size=module.size)
        choose = partial(middle, shown=module.frames, stride=self.stride)
        frames = read_shown(clip, choose, show).frames
        video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 255
        unknown = "flow" in module.encoder.sees and module.flow_teacher is None
        return module.encode(video, estimated(frames) if unknown else None)

    def squeezed(self, picture: Float[Tensor, "1 3 h w"]) -> Float[Tensor, "1 3 size size"]:
        """A picture as the model sees it, without regard to its aspect ratio.

        Training clips are squares that were cut out. In a wide picture, motion is therefore stretched along its width,
        and its direction changes by so much.
        """
        return F.interpolate(picture, size=(self.module.size,) * 2, mode="bilinear", antialias=True)

    def enlarged(
        self,
        picture: Float[Tensor, "1 3 h w"],
        small: Float[Tensor, "1 3 size size"],
        flows: Float[Tensor, "1 steps 2 size size"],
        low: Float[Tensor, "1 3 frames size size"],
    ) -> Float[Tensor, "1 3 frames tall wide"]:
        """A film in the picture's own resolution.

        The picture itself is warped once for each frame, by the flow to it, enlarged. What the model then changes of
        its own small warped frames, repairs and light, is enlarged and added.

        Args:
            picture: the user's.
            small: the same at the model's size.
            flows: between neighbours, in pixels there.
            low: the model's clip.
        """
        height, width = picture.shape[-2:]
        factor = min(1.0, LARGEST / max(height, width))
        tall, wide = (max(2, round(side * factor)) for side in (height, width))
        large = F.interpolate(picture, size=(tall, wide), mode="bilinear", antialias=True)
        changes, scale = low[:, :, 1:] - animated(small, flows), flows.new_tensor([wide, tall]) / self.module.size
        frames = [large]
        for total, change in zip(accumulate(flows).unbind(1), changes.unbind(2), strict=True):
            total = _resized(total, tall, wide) * scale[:, None, None]
            frames.append(warp(large, total) + _resized(change, tall, wide))
        return torch.stack(frames, 2).clamp(0, 1)


def files_of(given: Path) -> list[Path]:
    """A file that was given, or those of a folder.

    Raises:
        ValueError: a folder lies in it.
    """
    if not given.is_dir():
        return [given]
    files = sorted(given.iterdir())
    if lying := next((path for path in files if path.is_dir()), None):
        raise ValueError(f"{lying} lies in a folder and is one itself: give it as an input of its own.")
    return files


def row_of(motion: str) -> str:
    """The part of a film's name that tells motions apart."""
    return motion.replace(" ", "-")


def middle(total: int, shown: int, stride: int) -> Int[np.ndarray, " shown"]:
    """Frames a stride apart around the middle of a clip; where it is short, a smaller stride, and then fewer frames.

    Raises:
        BrokenVideo: there is a single frame.
    """
    if total < 2:
        raise BrokenVideo(f"it has {total} frame, but motion lies between at least 2: give a longer clip")
    shown = min(shown, total)
    stride = min(stride, (total - 1) // (shown - 1))
    return (total - (shown - 1) * stride - 1) // 2 + stride * np.arange(shown)


def estimated(frames: UInt8[np.ndarray, "frames h w 3"]) -> Float[Tensor, "1 steps 2 h w"]:
    """Backward flows between neighbours in pixels, by OpenCV (Farneback); small frames are enlarged before."""
    import cv2

    cv2.setNumThreads(1)
    cv2.setUseOptimized(False)
    factor = -(-SMALLEST // min(frames.shape[1:3]))
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
    grey = [cv2.resize(each, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC) for each in grey]
    found = []
    for before, after in pairwise(grey):
        flow = cv2.calcOpticalFlowFarneback(after, before, None, 0.5, 4, 15, 3, 7, 1.5, 0)
        flow = cv2.resize(flow, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA) / factor
        found.append(flow.transpose(2, 0, 1))
    return torch.from_numpy(np.stack(found)[None]).float()


def in_colours(flows: Float[np.ndarray, "steps 2 h w"]) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Flows as colours, the longest of all in the strongest."""
    longest = max(float(np.hypot(flows[:, 0], flows[:, 1]).max()), 1e-6)
    return (coloured(flow, longest) for flow in flows)


def _tensor(pixels: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "1 3 h w"]:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None] / 255


def _resized(x: Float[Tensor, "1 c h w"], tall: int, wide: int) -> Float[Tensor, "1 c tall wide"]:
    return F.interpolate(x, size=(tall, wide), mode="bilinear", align_corners=False)


def _picture(pixels: UInt8[np.ndarray, "h w 3"]) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)
