"""What is measured in a batch of clips, for `CamViG.predictions`."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from lightning_modules.camvig import measuring
from lightning_modules.camvig.paths import poses_of

Arrays = dict[str, np.ndarray]
MADE = "made"


def measured(
    clips: Mapping[str, UInt8[np.ndarray, "batch frames h w 3"]], batch: Mapping[str, Tensor], data: object
) -> Arrays:
    """By the depths of things where these are known (`layers`), by essential matrices elsewhere.

    With depths: `<clips>/shifts` (batch things later 2), see `measuring.shifts`, and `<clips>/own` (batch later 2), the
    shift of a thing that moves by itself; of what was asked for `asked/shifts` and `asked/path`; and of generated clips
    with a path `made/path` (batch later 6), see `measuring.cameras`. Elsewhere `<clips>/turn_error` and
    `<clips>/direction_error` (batch later), in degrees, NaN where nothing can be measured.

    Args:
        clips: of several origins, by their names; `made` are those that were generated.
        batch: with `path`, and `layers` or `focal`.
        data: of the captioned world, with `depths`, `focal` and `own`.
    """
    path = batch["path"].cpu().numpy().astype(np.float64)
    found: Arrays = {}
    if "layers" not in batch:
        for name, videos in clips.items():
            found |= _by_essential_matrices(name, videos, path, batch["focal"].cpu().numpy())
        return found
    layers, posed = batch["layers"].cpu().numpy(), batch["posed"].cpu().numpy()
    asked = [measuring.expected(*each, data.depths, data.focal) for each in zip(poses_of(path), layers, strict=True)]
    found |= {"asked/shifts": np.stack(asked), "asked/path": path}
    for name, videos in clips.items():
        flows = [measuring.flows(video) for video in videos]
        for part, things in (("shifts", data.depths), ("own", {data.own: None})):
            found[f"{name}/{part}"] = np.stack(
                [measuring.shifts(*each, things) for each in zip(flows, layers, strict=True)]
            )
        found[f"{name}/own"] = found[f"{name}/own"][:, 0]
        if name == MADE:
            found["made/path"] = np.full(path.shape, np.nan)
            for row in np.flatnonzero(posed):
                found["made/path"][row] = measuring.cameras(flows[row], layers[row], data.depths, data.focal)
    return found


def _by_essential_matrices(
    name: str, videos: np.ndarray, path: np.ndarray, focal: Float[np.ndarray, "batch 2"]
) -> Arrays:
    errors = np.full((2, *path.shape[:2]), np.nan)
    middle = np.array(videos.shape[3:1:-1]) / 2
    for row, (video, asked, lengths) in enumerate(zip(videos, path, focal, strict=True)):
        for later, numbers in enumerate(asked):
            moved = measuring.between(video[0], video[later + 1], lengths * 2 * middle, middle)
            if moved is not None:
                errors[0, row, later] = measuring.turn_between(moved.rotation, numbers[3:])
                errors[1, row, later] = measuring.angle_between(moved.direction, numbers[:3])
    return {f"{name}/turn_error": errors[0], f"{name}/direction_error": errors[1]}
