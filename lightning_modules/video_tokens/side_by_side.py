"""Clips of networks as arrays and pictures that can be shown."""

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from lightning_modules.video_tokens.training import stored


def shown(video: Float[Tensor, "1 3 frames h w"]) -> dict[str, Any]:
    """A clip as an array, and its frames side by side as a picture."""
    from PIL import Image

    frames: UInt8[np.ndarray, "frames h w 3"] = stored(video)[0].numpy()
    return {"video": frames, "frames": Image.fromarray(np.concatenate(list(frames), axis=1))}
