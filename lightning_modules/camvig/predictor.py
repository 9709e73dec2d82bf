"""Answers about a user's pictures: clips along named moves of a camera, or along the paths of pose files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_modules.camvig.module import CamViG
from lightning_modules.camvig.paths import MOVES, ORBITS, named_move, path_of, scaled
from lightning_modules.datasets.pictures import read
from lightning_modules.datasets.video.files import evenly
from lightning_modules.datasets.video.films import Film
from lightning_modules.datasets.video.posed import read_poses
from lightning_modules.predictors import Predictor
from lightning_modules.video_tokens.side_by_side import shown

REACH, PIVOT = 0.5, 3.0  # of a named move, in shares of what path tokens reach to; how far off an orbit's middle lies
FAR = 1e-6  # of a reach: what is rounding
RATE = 8.0  # frames a second of a film, as VideoPoet's
UNTOLD = ("still", "tilt up", "tilt down")  # moves that are not among the answers


class Animator(Predictor):
    """A picture as the first frame of clips.

    Args:
        module: a trained CamViG.
        record: not needed.
    """

    def __init__(self, module: CamViG, record: dict | None = None):
        self.module, self.files = module.eval(), []

    def begin(self, inputs: Sequence[Path], among: Path | None = None) -> list[Path]:
        """Pictures are to be animated; text files among the inputs are pose files of RealEstate10K.

        Raises:
            ValueError: there is no picture, or two pose files have one name.
        """
        super().begin([], among)
        self.files = [path for path in inputs if path.suffix.lower() == ".txt"]
        pictures = [path for path in inputs if path.suffix.lower() != ".txt"]
        names = [file.stem for file in self.files]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two pose files are called {twice!r}, and so would be their films: rename one of them.")
        if not pictures:
            raise ValueError(f"there are {len(self.files)} pose files and no picture: give a picture to be animated.")
        return pictures

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """The picture along each named move, or along each pose file that was given to `begin`.

        An answer has `move`, `path` (later 6), see `paths`, the `film`, and its `frames` side by side; and `cut`, where
        the path goes further than the model's paths reach, so that it is told less.

        Raises:
            ValueError: the picture or a pose file cannot be read, or is too short.
        """
        paths = {file.stem: self.path_of(file) for file in self.files} or self.moves()
        for name, numbers in paths.items():
            found = shown(self.along(path, numbers))
            film = Film(found["video"], RATE)
            yield {
                "row": name.replace(" ", "-"),
                "move": name,
                "path": numbers,
                "film": film,
                "frames": found["frames"],
                **self._cut(numbers),
            }

    def moves(self) -> dict[str, Float[np.ndarray, "later 6"]]:
        """The paths of all named moves, half as far as the model's path tokens reach."""
        reach = self.module.path_tokens
        options = {"translation": REACH * reach["translation"], "rotation": REACH * reach["rotation"], "pivot": PIVOT}
        names = [name for name in [*MOVES, *ORBITS] if name not in UNTOLD]
        return {name: named_move(name, self.module.later + 1, **options) for name in names}

    def path_of(self, file: Path) -> Float[np.ndarray, "later 6"]:
        """The path of a pose file, as many of its poses as the clip has frames, evenly spread.

        Its longest distance becomes that of a named move, because a pose file says no unit.

        Raises:
            ValueError: it cannot be read, or has too few poses.
        """
        poses, frames = read_poses(file).poses, self.module.later + 1
        if len(poses) < frames:
            raise ValueError(f"{file} has {len(poses)} poses, expected at least {frames}: one for each frame.")
        found = scaled(path_of(poses[evenly(len(poses), frames)]), None)
        return np.concatenate([found[:, :3] * REACH * self.module.path_tokens["translation"], found[:, 3:]], -1)

    def _cut(self, path: Float[np.ndarray, "later 6"]) -> dict[str, str]:
        """What a user has to know of a path that goes too far."""
        reach = self.module.path_tokens
        for what, numbers in (("translation", path[:, :3]), ("rotation", path[:, 3:])):
            if (most := np.abs(numbers).max()) > reach[what] * (1 + FAR):
                return {"cut": f"{what} goes up to {most:.2f}, but paths of this model reach to {reach[what]:g}"}
        return {}

    def along(self, picture: str | Path, path: Float[np.ndarray, "later 6"]) -> Float[Tensor, "1 3 frames size size"]:
        """The clip of a picture, squeezed into a square, along a path in the model's units.

        Raises:
            ValueError: the picture cannot be read.
        """
        size = self.module.tokenizer.size
        pixels = np.array(read(Path(picture), "RGB", (size, size)))
        picture = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            return self.module.generate(picture, torch.from_numpy(path)[None].float(), torch.ones(1, dtype=torch.bool))
